"""Realm: one GGUF model in memory, many isolated tenants in one continuously batched forward pass.

from realm import load
model = load("smollm2-135m")
print(model.generate("The capital of France is", max_tokens=8))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realm.core.config import EngineConfig, KVType, ModelConfig, SpeculativeConfig
    from realm.core.errors import RealmError
    from realm.core.types import FinishReason, SamplingParams, TokenLogprobs, Usage
    from realm.lora.adapter import LoRAWeights
    from realm.runtime.dispatcher import FunctionDispatcher
    from realm.runtime.events import Event
    from realm.runtime.generation import Completion, Generation
    from realm.runtime.load import load
    from realm.runtime.manager import RuntimeManager
    from realm.runtime.model import Model

__version__ = "0.1.0"

# Imported when first asked for: `import realm` costs nothing, and the command line stays quick.
_HOMES = {
    "Completion": "realm.runtime.generation",
    "EngineConfig": "realm.core.config",
    "Event": "realm.runtime.events",
    "FinishReason": "realm.core.types",
    "FunctionDispatcher": "realm.runtime.dispatcher",
    "Generation": "realm.runtime.generation",
    "KVType": "realm.core.config",
    "LoRAWeights": "realm.lora.adapter",
    "Model": "realm.runtime.model",
    "ModelConfig": "realm.core.config",
    "RealmError": "realm.core.errors",
    "RuntimeManager": "realm.runtime.manager",
    "SamplingParams": "realm.core.types",
    "SpeculativeConfig": "realm.core.config",
    "TokenLogprobs": "realm.core.types",
    "Usage": "realm.core.types",
    "load": "realm.runtime.load",
}

__all__ = [
    "Completion",
    "EngineConfig",
    "Event",
    "FinishReason",
    "FunctionDispatcher",
    "Generation",
    "KVType",
    "LoRAWeights",
    "Model",
    "ModelConfig",
    "RealmError",
    "RuntimeManager",
    "SamplingParams",
    "SpeculativeConfig",
    "TokenLogprobs",
    "Usage",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'realm' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

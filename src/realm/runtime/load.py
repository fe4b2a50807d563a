"""`load`: the shortest way from a file to text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from realm.core.config import EngineConfig, ModelConfig
from realm.models.loader import Device
from realm.runtime.manager import RuntimeManager
from realm.runtime.model import Model


def load(model: str | Path, *, draft: str | Path | None = None, device: Device = "cpu", **limits: Any) -> Model:
    """Load a model, fetching it first if it is named in the catalogue and missing.

    Args:
        model: A catalogue name such as ``smollm2-135m``, the path of a GGUF file, or its URL.
        draft: A draft model, or ``auto`` for the one that Realm ships for the model, if it ships one.
        device: ``cpu`` for the native kernels, ``reference`` for plain torch.
        limits: Fields of `EngineConfig`.

    Raises:
        NotFound: neither a known name, nor a file, nor a URL.
        ModelFileError: a file is corrupt, of a kind that is not supported, or no draft for the model.
    """
    return RuntimeManager(EngineConfig(**limits), device=device).load_model(ModelConfig(model, draft_model_path=draft))

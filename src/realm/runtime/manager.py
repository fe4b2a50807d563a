"""RuntimeManager: the models of one process, loaded once and shared by everyone who asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from realm.core.config import AUTO_DRAFT, EngineConfig, ModelConfig
from realm.core.errors import InvalidRequest, NotFound
from realm.core.types import AdapterRef
from realm.engine.engine import Engine
from realm.gguf.reader import GGUFFile
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.lora.pool import AdapterPool
from realm.models.loader import Device, LoadedModel
from realm.models.loader import load_model as load_executor
from realm.runtime.adapter_library import unload_adapter
from realm.runtime.adapters import AdapterRegistry
from realm.runtime.catalogue import CATALOGUE, local_path
from realm.runtime.download import ensure_model
from realm.runtime.drafts import load_draft_model
from realm.runtime.generation import Completion, Generation
from realm.runtime.loop import EngineLoop
from realm.runtime.model import Model, Options
from realm.runtime.served import DEFAULT_TENANT, Limits
from realm.tokenizer.chat import load_chat_template

Loader = Callable[[Path, EngineConfig, Device], LoadedModel]


class RuntimeManager:
    """Loads models on demand, names one of them the default, and answers with them. Safe to use from any thread.

    Args:
        config: Limits of each model's engine.
        device: ``cpu`` for the native kernels, ``reference`` for plain torch.
        chat_template: Name of a built-in template, or a file, instead of the models' own.
        loader: Makes an executor of a file; tests put their own here.
    """

    def __init__(
        self,
        config: EngineConfig | None = None,
        *,
        device: Device = "cpu",
        chat_template: str | Path | None = None,
        loader: Loader = load_executor,
    ) -> None:
        self.config = config or EngineConfig()
        self.device = device
        self._loader = loader
        self._chat_template = chat_template
        self._configs: dict[str, ModelConfig] = {}
        self._models: dict[str, Model] = {}
        self._default_id: str | None = None
        self._tenant_adapters: dict[str, str] = {}
        self._lock = threading.RLock()

    @property
    def models(self) -> list[Model]:
        """Models in memory."""
        return list(self._models.values())

    @property
    def default_model_id(self) -> str | None:
        """What a call without a model's name gets."""
        return self._default_id

    def set_default_model(self, config: ModelConfig) -> None:
        """Name the model that answers when none is named. It is loaded by `model()`, or the first call that needs it.

        Raises:
            NotFound: there is no such file.
        """
        with self._lock:
            self._default_id = self._register(config)

    def load_model(self, config: ModelConfig | str | Path) -> Model:
        """Load a model now, or give the one already loaded under this id. The first one becomes the default.

        Raises:
            NotFound: there is no such file.
            ModelFileError: the file is corrupt, or of a kind that is not supported.
        """
        with self._lock:
            model_id = self._register(config if isinstance(config, ModelConfig) else ModelConfig(config))
            self._default_id = self._default_id or model_id
            return self.model(model_id)

    def unload_model(self, model_id: str) -> None:
        """Free a model; its open requests end with an error.

        Raises:
            NotFound: no such model.
        """
        with self._lock:
            if model_id not in self._configs:
                raise _unknown(model_id)
            del self._configs[model_id]
            model = self._models.pop(model_id, None)
            if self._default_id == model_id:
                self._default_id = next(iter(self._configs), None)
        if model is not None:
            model.close()

    def model(self, model_id: str | None = None) -> Model:
        """A model by id, or the default one; loads it if it isn't in memory yet.

        Raises:
            NotFound: no such model, or no default one.
        """
        with self._lock:
            model_id = model_id or self._default_id
            if model_id is None:
                raise NotFound("no model is set", code="model_not_found", hint="call set_default_model or load_model")
            if model_id not in self._configs:
                raise _unknown(model_id)
            if model_id not in self._models:
                self._models[model_id] = self._assemble(model_id, self._configs[model_id])
            return self._models[model_id]

    def set_limits(self, **limits: Any) -> None:
        """Change fields of `config`, before any model is loaded.

        Raises:
            InvalidRequest: a model is loaded already, or a value is out of range.
        """
        with self._lock:
            changed = replace(self.config, **limits)
            if self._models and changed != self.config:
                raise InvalidRequest(
                    f"the limits of {', '.join(self._models)} are fixed: it is loaded",
                    hint="set them before the first call",
                )
            self.config = changed

    def load_lora_adapter(self, adapter: LoRAWeights | str | Path, *, model: str | None = None) -> AdapterRef:
        """Make an adapter known under its name, for requests to name it. Takes a file's time; nobody else waits.

        Args:
            adapter: Weights, or the path of a PEFT directory or a GGUF adapter.
            model: The model it changes; the default one if None.

        Raises:
            RealmError: it can't be read, or doesn't fit the model.
        """
        weights = adapter if isinstance(adapter, LoRAWeights) else LoRAWeights.load(adapter)
        return self.model(model).adapters.load(weights).ref

    def unload_lora_adapter(self, adapter_id: str, *, model: str | None = None) -> None:
        """Forget an adapter; streams that began with it end with it.

        Raises:
            NotFound: no such adapter.
        """
        unload_adapter(self.model(model), adapter_id)

    def pin_lora_adapter(self, adapter_id: str, pinned: bool = True, *, model: str | None = None) -> None:
        """Keep an adapter ready to compute with, or let it give way to others again.

        Raises:
            NotFound: no such adapter.
            InvalidRequest: pinned adapters would take more than half of the pool's memory.
        """
        served = self.model(model)
        ref = served.adapters.get(adapter_id).ref
        if pinned:
            served.adapter_pool.pin(ref)
        else:
            served.adapter_pool.unpin(ref)

    def set_tenant_lora_adapter(self, tenant_id: str, adapter_id: str | None) -> None:
        """Choose what a tenant's requests run with when they name no adapter; None for the base model.

        The name is looked up when a request comes: the adapter may be loaded later.
        """
        if adapter_id is None:
            self._tenant_adapters.pop(tenant_id, None)
        else:
            self._tenant_adapters[tenant_id] = adapter_id

    def tenant_lora_adapter(self, tenant_id: str) -> str | None:
        """What `set_tenant_lora_adapter` chose."""
        return self._tenant_adapters.get(tenant_id)

    def generate(self, prompt: Any, *, model: str | None = None, **options: Unpack[Options]) -> Any:
        """`Model.generate` of a model by id, or of the default one; with the tenant's adapter if none is named."""
        return self.model(model).generate(prompt, **self._with_adapter(options))

    async def agenerate(self, prompt: Any, *, model: str | None = None, **options: Unpack[Options]) -> Any:
        """`generate` for a coroutine."""
        return await self.model(model).agenerate(prompt, **self._with_adapter(options))

    def stream(self, prompt: Any, *, model: str | None = None, **options: Unpack[Options]) -> Generation:
        """`Model.stream` of a model by id, or of the default one; with the tenant's adapter if none is named."""
        return self.model(model).stream(prompt, **self._with_adapter(options))

    def astream(self, prompt: Any, *, model: str | None = None, **options: Unpack[Options]) -> Generation:
        """`stream` for a coroutine."""
        return self.model(model).astream(prompt, **self._with_adapter(options))

    def submit(self, prompt: Any, *, model: str | None = None, **options: Unpack[Options]) -> Future[Completion]:
        """`Model.submit` of a model by id, or of the default one; with the tenant's adapter if none is named."""
        return self.model(model).submit(prompt, **self._with_adapter(options))

    def close(self) -> None:
        """Unload everything; open requests end with an error."""
        for model_id in list(self._configs):
            self.unload_model(model_id)

    def __enter__(self) -> RuntimeManager:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _with_adapter(self, options: Options) -> Options:
        chosen = self.tenant_lora_adapter(options.get("tenant", DEFAULT_TENANT))
        return options if chosen is None or "adapter" in options else {**options, "adapter": chosen}

    def _register(self, config: ModelConfig) -> str:
        local_path(config.model_path)  # a wrong name is told now, not at the first call
        if config.draft_model_path not in (None, AUTO_DRAFT):
            local_path(config.draft_model_path)
        model_id = config.model_id or _default_id(config.model_path)
        known = self._configs.setdefault(model_id, replace(config, model_id=model_id))
        if known.model_path != config.model_path:
            raise InvalidRequest(f"model id {model_id!r} is taken by {known.model_path}", param="model_id")
        if config.draft_model_path not in (None, known.draft_model_path):
            raise InvalidRequest(
                f"model {model_id!r} was set with draft {known.draft_model_path}", param="draft_model_path"
            )
        return model_id

    def _assemble(self, model_id: str, config: ModelConfig) -> Model:
        """Executor, engine, thread and tokenizer of one model."""
        path = ensure_model(config.model_path)
        loaded = self._loader(path, self.config, self.device)
        template = load_chat_template(loaded.metadata, loaded.tokenizer, self._chat_template)
        speculative, draft = load_draft_model(config, self.config, path, loaded, self.device)
        limits = replace(self.config, max_seq_len=loaded.max_seq_len, speculative=speculative)
        registry = AdapterRegistry(lambda: _read_base(path))
        pool = AdapterPool(loaded.executor, registry.weights_of, limits.adapter_cache_bytes)
        engine = Engine(loaded.executor, limits, loaded.tokenizer.end_ids, adapters=pool, draft=draft)
        loop = EngineLoop(engine, name=f"realm-{model_id}")
        pool.on_ready = loop.wake
        return Model(
            model_id,
            loop,
            loaded.tokenizer,
            template,
            Limits(
                engine.max_seq_len,
                limits.max_batch_size + limits.max_queued,
                0 if speculative is None else speculative.max_draft_tokens,
            ),
            adapters=registry,
            adapter_pool=pool,
            fingerprint=loaded.fingerprint,
            kv_format=limits.kv_type.value,
            created=int(time.time()),
            draft_model_id=None if draft is None else draft.name,
        )


def _read_base(path: Path) -> BaseModel:
    with GGUFFile.open(path) as file:
        return BaseModel.from_gguf(file)


def _default_id(model_path: str | Path) -> str:
    """A catalogue name as it is; of a file, its name without the ending."""
    return str(model_path) if str(model_path) in CATALOGUE else Path(str(model_path)).name.removesuffix(".gguf")


def _unknown(model_id: str) -> NotFound:
    return NotFound(f"the model {model_id!r} does not exist", code="model_not_found", param="model")

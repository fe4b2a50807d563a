"""RuntimeManager: the models of one process, loaded once and shared by everyone who asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from realm.core.config import EngineConfig, ModelConfig
from realm.core.errors import InvalidRequest, NotFound, UnsupportedParameter
from realm.engine.engine import Engine
from realm.models.loader import Device, LoadedModel
from realm.models.loader import load_model as load_executor
from realm.runtime.catalogue import CATALOGUE, local_path
from realm.runtime.download import ensure_model
from realm.runtime.generation import Generation
from realm.runtime.loop import EngineLoop
from realm.runtime.model import Model, Options
from realm.runtime.served import Limits
from realm.tokenizer.chat import load_chat_template
from realm.tokenizer.tokenizer import load_tokenizer

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
            UnsupportedParameter: something in `config` that this build does not do.
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

    def loaded(self, model_id: str) -> Model:
        """A model in memory by id; never loads.

        Raises:
            NotFound: no such model in memory.
        """
        model = self._models.get(model_id)
        if model is None:
            raise _unknown(model_id)
        return model

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

    def generate(self, prompt: Any, *, model: str | None = None, **options: Unpack[Options]) -> Any:
        """`Model.generate` of a model by id, or of the default one."""
        return self.model(model).generate(prompt, **options)

    async def agenerate(self, prompt: Any, *, model: str | None = None, **options: Unpack[Options]) -> Any:
        """`generate` for a coroutine."""
        return await self.model(model).agenerate(prompt, **options)

    def stream(self, prompt: Any, *, model: str | None = None, **options: Unpack[Options]) -> Generation:
        """`Model.stream` of a model by id, or of the default one."""
        return self.model(model).stream(prompt, **options)

    def astream(self, prompt: Any, *, model: str | None = None, **options: Unpack[Options]) -> Generation:
        """`stream` for a coroutine."""
        return self.model(model).astream(prompt, **options)

    def close(self) -> None:
        """Unload everything; open requests end with an error."""
        for model_id in list(self._configs):
            self.unload_model(model_id)

    def __enter__(self) -> RuntimeManager:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _register(self, config: ModelConfig) -> str:
        if config.draft_model_path is not None:
            raise UnsupportedParameter("draft models are not supported", param="draft_model_path")
        local_path(config.model_path)  # a wrong name is told now, not at the first call
        model_id = config.model_id or _default_id(config.model_path)
        known = self._configs.setdefault(model_id, replace(config, model_id=model_id))
        if known.model_path != config.model_path:
            raise InvalidRequest(f"model id {model_id!r} is taken by {known.model_path}", param="model_id")
        return model_id

    def _assemble(self, model_id: str, config: ModelConfig) -> Model:
        """Executor, engine, thread and tokenizer of one model."""
        loaded = self._loader(ensure_model(config.model_path), self.config, self.device)
        tokenizer = load_tokenizer(loaded.metadata)
        template = load_chat_template(loaded.metadata, tokenizer, self._chat_template)
        limits = replace(self.config, max_seq_len=loaded.max_seq_len)
        engine = Engine(loaded.executor, limits, tokenizer.end_ids)
        return Model(
            model_id,
            EngineLoop(engine, name=f"realm-{model_id}"),
            tokenizer,
            template,
            Limits(engine.max_seq_len, limits.max_batch_size + limits.max_queued),
            fingerprint=loaded.fingerprint,
            kv_format=limits.kv_type.value,
            created=int(time.time()),
        )


def _default_id(model_path: str | Path) -> str:
    """A catalogue name as it is; of a file, its name without the ending."""
    return str(model_path) if str(model_path) in CATALOGUE else Path(str(model_path)).name.removesuffix(".gguf")


def _unknown(model_id: str) -> NotFound:
    return NotFound(f"the model {model_id!r} does not exist", code="model_not_found", param="model")

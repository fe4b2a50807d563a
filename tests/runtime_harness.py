"""A runtime over an executor without weights: the whole way of a request but the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from realm.core.config import EngineConfig, ModelConfig
from realm.core.types import Batch
from realm.models.config import read_spec
from realm.models.loader import LoadedModel
from realm.runtime.manager import RuntimeManager
from realm.runtime.model import Model
from realm.testing.fake import FakeExecutor
from realm.testing.tiny import TinyModel, tiny_metadata
from realm.tokenizer.tokenizer import load_tokenizer

FAKE = "fake"


def fake_runtime(
    *,
    path: str | Path = __file__,
    num_kv_blocks: int = 64,
    on_step: Callable[[Batch], None] | None = None,
    tiny: TinyModel | None = None,
    **limits: Any,
) -> RuntimeManager:
    """A runtime whose default model, `fake`, draws from hashes. Small unless `limits` say otherwise."""
    tiny = tiny or TinyModel()

    def loader(path: Path, config: EngineConfig, device: str) -> LoadedModel:
        metadata = tiny_metadata(tiny)
        executor = FakeExecutor(tiny.vocab_size, num_kv_blocks, config.kv_block_tokens, on_step=on_step)
        max_seq_len = config.max_seq_len or tiny.context_length_tokens
        return LoadedModel(read_spec(metadata), executor, load_tokenizer(metadata), metadata, "f" * 64, max_seq_len)

    config = EngineConfig(**{"kv_block_tokens": 16, "max_batch_size": 8, "max_queued": 64, "num_threads": 1} | limits)
    runtime = RuntimeManager(config, loader=loader)
    runtime.set_default_model(ModelConfig(path, FAKE))
    return runtime


def assert_idle(model: Model) -> None:
    """Every pool is whole and nothing is open."""

    def check() -> None:
        model.loop._engine.check_integrity()
        stats = model.loop._engine.stats()
        assert (stats.num_running, stats.num_waiting, stats.kv_blocks_used) == (0, 0, 0)

    model.loop.call(check).result()
    assert model.loop.num_open == 0

"""LoRA on the token embedding: a lookup, in every company and with every number of threads the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from realm.core.config import EngineConfig, KVType
from realm.core.quant import QuantType
from realm.gguf.reader import GGUFFile
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.models.loader import LoadedModel, load_model
from realm.testing.batches import logits_in_chunks
from realm.testing.tiny import TinyModel, write_tiny_model

pytest.importorskip("realm._cpu", reason="the native module is not built")

CONFIG = EngineConfig(max_batch_size=8, max_seq_len=128, kv_block_tokens=16, kv_cache_tokens=1024, kv_type=KVType.F32)
IDS = np.random.default_rng(3).integers(0, 256, 40).tolist()


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = TinyModel(request.param, QuantType.F32, {"token_embd": QuantType.Q8_0}, tied=False)
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny)


def adapter(path: Path, rank: int) -> LoRAWeights:
    with GGUFFile.open(path) as file:
        base = BaseModel.from_gguf(file)
    assert base.embedding is not None
    rows, columns = base.embedding
    rng = np.random.default_rng(rank)
    made = LoRAWeights("a", rank, 2.0 * rank, architecture=base.architecture)
    made.add_layer_weights("token_embd", rng.normal(0, 1, (rank, columns)), rng.normal(0, 0.05, (rows, rank)))
    return made.bind(base)


def logits(model: LoadedModel, made: LoRAWeights | None, size: int = 16) -> np.ndarray:
    if made is not None:
        model.executor.set_adapter(2, model.executor.pack_adapter(made.layers))
    slot = -1 if made is None else 2
    return np.concatenate([c.copy() for c in logits_in_chunks(model.executor, IDS, size, 16, adapter_slot=slot)])


@pytest.mark.parametrize("rank", [1, 7, 16])
def test_as_the_reference_computes_it(path: Path, rank: int) -> None:
    made = adapter(path, rank)
    got = {device: logits(load_model(path, CONFIG, device), made) for device in ("cpu", "reference")}  # type: ignore[arg-type]
    base = logits(load_model(path, CONFIG), None)
    scale = np.abs(got["reference"]).max()
    assert np.abs(got["cpu"] - got["reference"]).max() <= 1e-5 * scale
    assert np.abs(got["cpu"] - base).max() > 0.05 * scale


def test_the_same_bits_in_chunks_of_any_size_and_with_any_threads(path: Path) -> None:
    made = adapter(path, 7)
    expected = logits(load_model(path, CONFIG), made)
    for num_threads, size in ((1, 1), (2, 5), (2, 40)):
        model = load_model(path, EngineConfig(**{**vars_of(CONFIG), "num_threads": num_threads}))
        np.testing.assert_array_equal(logits(model, made, size), expected)


def test_an_emptied_slot_leaves_nothing(path: Path) -> None:
    model = load_model(path, CONFIG)
    base = logits(model, None)
    assert not np.array_equal(logits(model, adapter(path, 7)), base)
    model.executor.set_adapter(2, None)
    np.testing.assert_array_equal(logits(model, None), base)


def vars_of(config: EngineConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in EngineConfig.__slots__}

"""Tiny models are whole models: they load, tokenize and step."""

from pathlib import Path

import numpy as np
import pytest

from realm.core.config import EngineConfig, KVType
from realm.core.quant import QuantType
from realm.core.types import Batch
from realm.gguf.reader import GGUFFile
from realm.models.config import SUPPORTED_ARCHITECTURES
from realm.models.loader import load_model
from realm.testing.tiny import TinyModel, write_tiny_model


def step_alone(ids: list[int]) -> Batch:
    num_tokens = len(ids)
    return Batch(
        token_ids=np.array(ids, np.int32),
        query_starts=np.array([0, num_tokens], np.int32),
        context_lens=np.zeros(1, np.int32),
        block_tables=np.arange(-(-num_tokens // 16), dtype=np.int32)[None, :],
        logit_rows=np.arange(num_tokens, dtype=np.int32),
        adapter_slots=np.full(1, -1, np.int32),
    )


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
@pytest.mark.parametrize("quant_type", [QuantType.F32, QuantType.Q4_1, QuantType.Q6_K])
def test_loads_tokenizes_and_steps(tmp_path: Path, architecture: str, quant_type: QuantType) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(architecture=architecture, quant_type=quant_type))
    config = EngineConfig(kv_cache_tokens=64, kv_block_tokens=16, kv_type=KVType.F32)
    model = load_model(path, config, device="reference")
    tokenizer = model.tokenizer
    text = "hello, the world: Grüße 你好 🦊"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    logits = model.executor.step(step_alone(ids))
    assert logits.shape == (len(ids), model.spec.vocab_size)
    assert np.isfinite(logits).all()
    assert 1.0 < logits.std() < 10.0  # neither flat nor one-hot


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    a = write_tiny_model(tmp_path / "a.gguf", TinyModel(seed=3)).read_bytes()
    assert write_tiny_model(tmp_path / "b.gguf", TinyModel(seed=3)).read_bytes() == a
    assert write_tiny_model(tmp_path / "c.gguf", TinyModel(seed=4)).read_bytes() != a


def test_types_can_be_mixed(tmp_path: Path) -> None:
    model = TinyModel(
        quant_type=QuantType.Q4_K, quant_overrides={"ffn_down": QuantType.Q6_K, "token_embd": QuantType.Q8_0}
    )
    with GGUFFile.open(write_tiny_model(tmp_path / "tiny.gguf", model)) as file:
        types = {name: info.quant_type for name, info in file.tensors.items()}
    assert types["token_embd.weight"] == QuantType.Q8_0
    assert types["blk.1.ffn_down.weight"] == QuantType.Q6_K
    assert types["blk.1.ffn_up.weight"] == QuantType.Q4_K

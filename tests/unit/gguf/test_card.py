import struct

import numpy as np
import pytest
from tests.unit.gguf.raw import gguf_bytes, tensor

from realm.core.config import KVType
from realm.core.quant import QuantType
from realm.gguf.card import read_card
from realm.gguf.reader import GGUFFile
from realm.gguf.writer import OutputTensor, write_gguf
from realm.testing.quants import random_blocks


def write(path, metadata, tensors=()):
    write_gguf(path, metadata, tensors)
    return GGUFFile.open(path)


def test_facts_of_a_small_model(tmp_path):
    rng = np.random.default_rng(0)
    metadata = {
        "general.architecture": "qwen3",
        "general.name": "tiny",
        "qwen3.context_length": 128,
        "qwen3.block_count": 2,
        "qwen3.embedding_length": 64,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 32,
        "qwen3.feed_forward_length": [96, 128],
        "tokenizer.ggml.model": "gpt2",
    }
    tensors = [
        OutputTensor("token_embd.weight", QuantType.Q8_0, (10, 64), random_blocks(QuantType.Q8_0, 10, 64, rng)),
        OutputTensor("a", QuantType.F32, (64,), random_blocks(QuantType.F32, 1, 64, rng)),
        OutputTensor("b", QuantType.F32, (2, 64), random_blocks(QuantType.F32, 2, 64, rng)),
    ]
    card = read_card(write(tmp_path / "m.gguf", metadata, tensors))
    assert (card.architecture, card.name, card.license, card.tokenizer) == ("qwen3", "tiny", None, "gpt2")
    assert (card.num_layers, card.num_heads, card.num_kv_heads, card.head_dim) == (2, 4, 2, 32)
    assert (card.vocab_size, card.feed_forward_size, card.num_parameters) == (10, 128, 640 + 64 + 128)
    assert [(s.type_name, s.num_tensors, s.num_bytes) for s in card.quant_mix] == [("F32", 2, 768), ("Q8_0", 1, 680)]
    assert card.kv_bytes_per_token(KVType.F16) == 2 * 2 * 2 * 32 * 2
    assert card.kv_bytes_per_token(KVType.INT8) == 2 * 2 * 2 * (32 + 4)
    assert card.memory_bytes(100) == 768 + 680 + 100 * 512


def test_a_file_that_says_nothing(tmp_path):
    card = read_card(write(tmp_path / "m.gguf", {"general.architecture": 3, ".context_length": "x"}))
    assert card.architecture is None
    assert card.context_length is None
    assert card.num_parameters == 0
    assert card.memory_bytes(1) is None


def test_unsupported_types_are_listed(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(
        gguf_bytes((), [tensor("t", [256], 16, 0), tensor("u", [1], 0, 96)], bytes(92) + struct.pack("<2f", 0, 1))
    )
    mix = read_card(GGUFFile.open(path)).quant_mix
    assert [(s.type_name, s.supported) for s in mix] == [("IQ2_XXS", False), ("F32", True)]


@pytest.mark.model
def test_smollm2(smollm2_path):
    card = read_card(GGUFFile.open(smollm2_path))
    assert card.architecture == "llama"
    assert card.license == "apache-2.0"
    assert (card.num_layers, card.num_heads, card.num_kv_heads, card.head_dim, card.hidden_size) == (30, 9, 3, 64, 576)
    assert (card.vocab_size, card.context_length, card.pre_tokenizer) == (49152, 8192, "smollm")
    assert card.num_parameters == 134_515_008
    assert card.chat_template
    assert card.kv_bytes_per_token(KVType.F16) == 23_040
    assert [s.type_name for s in card.quant_mix] == ["Q4_1", "Q8_0", "F32"]

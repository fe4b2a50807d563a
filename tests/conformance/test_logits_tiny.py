"""Tiny models of every family and rope variant against transformers with the same weights."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conformance.hf import build, logits
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from realm.core.config import EngineConfig, KVType
from realm.core.quant import QuantType
from realm.core.types import Float32Array
from realm.gguf.reader import GGUFFile
from realm.models.loader import Device, load_model
from realm.testing.batches import logits_in_chunks
from realm.testing.divergence import Divergence
from realm.testing.tiny import TinyModel, write_tiny_model

NUM_TOKENS = 200
IDS = np.random.default_rng(1).integers(0, TinyModel().vocab_size, NUM_TOKENS).tolist()
BLOCK_TOKENS = 16
CONFIG = EngineConfig(kv_type=KVType.F32, kv_block_tokens=BLOCK_TOKENS, kv_cache_tokens=512)
CONFIG_CLASSES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass
class Case:
    tiny: TinyModel
    hf: dict[str, Any] = field(default_factory=dict)
    rope: dict[str, Any] = field(default_factory=dict)
    config_class: type[Any] | None = None


def llama3_factors(head_dim: int) -> tuple[float, ...]:
    """What llama.cpp's converter writes as `rope_freqs.weight`."""
    factors = []
    low, high, context = (
        LLAMA3["low_freq_factor"],
        LLAMA3["high_freq_factor"],
        LLAMA3["original_max_position_embeddings"],
    )
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * 10_000.0 ** (i / head_dim)
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(LLAMA3["factor"])
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / LLAMA3["factor"] + smooth))
    return tuple(factors)


def yarn(arch: str, **more: float) -> dict[str, object]:
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 64, **more}
    return {f"{arch}.rope.scaling.{key}": value for key, value in keys.items()}


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
GEMMA_LINEAR = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0, "gemma3.rope.freq_base": 1e6}

CASES = {
    "llama": Case(TinyModel()),
    "llama-mha-untied": Case(TinyModel(num_kv_heads=4, tied=False)),
    "llama-one-kv-head": Case(TinyModel(num_heads=6, num_kv_heads=1, hidden_size=96)),
    "llama-wide-heads": Case(TinyModel(num_heads=3, num_kv_heads=3, head_dim=96, hidden_size=96)),
    "llama-base-500000": Case(TinyModel(metadata={"llama.rope.freq_base": 500_000.0}), rope={"rope_theta": 500_000.0}),
    "llama3-factors": Case(TinyModel(head_dim=32, rope_factors=llama3_factors(32)), rope=LLAMA3),
    "llama-linear": Case(TinyModel(metadata=LINEAR), rope={"rope_type": "linear", "factor": 4.0}),
    "llama-yarn": Case(TinyModel(head_dim=64, metadata=yarn("llama")), rope=YARN),
    "llama-yarn-factors": Case(
        TinyModel(head_dim=64, metadata=yarn("llama", yarn_beta_fast=16.0, yarn_beta_slow=2.0, yarn_attn_factor=1.25)),
        rope=YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25},
    ),
    "mistral-short-window": Case(TinyModel(sliding_window=7), {"sliding_window": 7}, config_class=MistralConfig),
    "mistral-long-window": Case(TinyModel(sliding_window=300), {"sliding_window": 300}, config_class=MistralConfig),
    "qwen2": Case(TinyModel("qwen2")),
    "qwen2-yarn-untied": Case(TinyModel("qwen2", head_dim=16, metadata=yarn("qwen2"), tied=False), rope=YARN),
    "qwen3": Case(TinyModel("qwen3", head_dim=32)),
    "gemma3-no-window": Case(TinyModel("gemma3"), {"layer_types": ["full_attention"] * 2}),
    "gemma3-short-window": Case(TinyModel("gemma3", num_layers=7, sliding_window=9), {"sliding_window": 9}),
    "gemma3-long-window": Case(TinyModel("gemma3", num_layers=6, sliding_window=400), {"sliding_window": 400}),
    "gemma3-linear": Case(
        TinyModel("gemma3", num_layers=6, sliding_window=40, metadata=GEMMA_LINEAR),
        {"sliding_window": 40},
        {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    ),
    "gemma3-27b": Case(
        TinyModel("gemma3", num_layers=62, sliding_window=30, num_heads=2, num_kv_heads=1),
        {"sliding_window": 30, "query_pre_attn_scalar": 32},
    ),
}


def hf_config(case: Case) -> Any:
    tiny = case.tiny
    hidden, inner, head_dim = tiny.sizes()
    rope: dict[str, Any] = PLAIN | case.rope
    extra: dict[str, Any] = {}
    if tiny.architecture == "gemma3":
        rope = {"full_attention": rope, "sliding_attention": PLAIN}
        extra = {"query_pre_attn_scalar": head_dim}
    config_class: Any = case.config_class or CONFIG_CLASSES[tiny.architecture]
    settings = {
        "vocab_size": tiny.vocab_size,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": tiny.num_layers,
        "num_attention_heads": tiny.num_heads,
        "num_key_value_heads": tiny.num_kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": tiny.context_length_tokens,
        "rms_norm_eps": 1e-5,
        "rope_parameters": rope,
        "tie_word_embeddings": tiny.tied,
        "pad_token_id": None,
    }
    return config_class(**settings | extra | case.hf)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def path(case: Case, tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.gguf", case.tiny)


@pytest.fixture
def expected(case: Case, path: Path) -> Float32Array:
    """What transformers says about `IDS`."""
    with GGUFFile.open(path) as file:
        return logits(build(hf_config(case), file), IDS)


def divergence(path: Path, device: Device, config: EngineConfig, expected: Float32Array) -> Divergence:
    found = Divergence()
    executor = load_model(path, config, device).executor
    found.add(np.concatenate(list(logits_in_chunks(executor, IDS, 37, BLOCK_TOKENS))), expected)
    return found


def test_reference_is_near_exact(path: Path, expected: Float32Array) -> None:
    assert divergence(path, "reference", CONFIG, expected).max_relative_error < 1e-3


def test_native_is_close(path: Path, expected: Float32Array) -> None:
    # Float32 weights, float16 KV.
    found = divergence(path, "cpu", replace(CONFIG, kv_type=KVType.F16), expected)
    assert found.max_relative_error < 1e-2
    assert found.mean_kl < 1e-4
    found = divergence(path, "cpu", CONFIG, expected)
    assert found.max_relative_error < 1e-3


@pytest.mark.parametrize("kv_type", KVType)
@pytest.mark.parametrize("quant_type", QuantType, ids=lambda t: t.name)
def test_native_is_close_for_every_tensor_type(quant_type: QuantType, kv_type: KVType, tmp_path: Path) -> None:
    """Against the reference, which the tests above tie to transformers. What int8 activations and KV cost, at most."""
    tiny = TinyModel("gemma3", quant_type, num_layers=6, sliding_window=40)
    path = write_tiny_model(tmp_path / "tiny.gguf", tiny)
    model = load_model(path, CONFIG, "reference")
    expected = np.concatenate(list(logits_in_chunks(model.executor, IDS, NUM_TOKENS, BLOCK_TOKENS)))
    found = divergence(path, "cpu", replace(CONFIG, kv_type=kv_type), expected)
    assert found.mean_kl <= (0.02 if kv_type == KVType.INT8 else 0.01)
    assert found.top1_agreement >= 0.9

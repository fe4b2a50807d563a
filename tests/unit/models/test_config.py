"""Specs from metadata: what the families' files say, and what odd or hostile ones must not get away with."""

import math

import numpy as np
import pytest

from realm.core.errors import ModelFileError
from realm.models.config import SUPPORTED_ARCHITECTURES, read_spec
from realm.testing.tiny import TinyModel, tiny_metadata


def metadata(architecture: str = "llama", **changes: object) -> dict[str, object]:
    """Tiny metadata with `changes` to the architecture's keys (dots as __); None removes a key."""
    keys = tiny_metadata(TinyModel(architecture=architecture))
    for name, value in changes.items():
        key = f"{architecture}.{name.replace('__', '.')}"
        keys[key] = value
        if value is None:
            del keys[key]
    return keys


def test_llama_defaults() -> None:
    spec = read_spec(
        metadata(
            attention__key_length=None,
            attention__value_length=None,
            attention__head_count_kv=None,
            rope__freq_base=None,
        )
    )
    assert spec.head_dim == 16  # C / H
    assert spec.num_kv_heads == spec.num_heads
    assert spec.layers[0].rope.interleaved
    assert spec.layers[0].rope.inv_freq[1] == pytest.approx(10_000 ** (-2 / 16))
    assert spec.embedding_scale == 1.0
    assert not spec.qk_norms
    assert spec.kv_values_per_token == 2 * 2 * 4 * 16


def test_gemma3_layers_and_scales() -> None:
    spec = read_spec(metadata("gemma3", block_count=13, attention__sliding_window=512, rope__freq_base=1e6))
    assert [layer.window for layer in spec.layers] == ([512] * 5 + [None]) * 2 + [512]
    assert spec.layers[0].rope.inv_freq[1] == pytest.approx(10_000 ** (-1 / 8))
    assert spec.layers[5].rope.inv_freq[1] == pytest.approx(1e6 ** (-1 / 8))
    assert spec.embedding_scale == 8.0
    assert spec.attention_scale == 0.25
    assert spec.activation == "gelu_tanh"


def test_gemma3_linear_scaling_is_for_global_layers_only() -> None:
    scaling = {"rope__scaling__type": "linear", "rope__scaling__factor": 8.0}
    spec = read_spec(metadata("gemma3", block_count=6, attention__sliding_window=512, **scaling))
    assert spec.layers[0].rope.inv_freq[0] == 1.0
    assert spec.layers[5].rope.inv_freq[0] == 0.125


def test_gemma3_27b_scales_queries_by_width_over_heads() -> None:
    sizes = {"embedding_length": 5376, "attention__head_count": 32, "attention__head_count_kv": 16}
    lengths = {"attention__key_length": 128, "attention__value_length": 128}
    spec = read_spec(metadata("gemma3", block_count=62, **sizes, **lengths))
    assert spec.attention_scale == pytest.approx(1 / math.sqrt(168))


def test_sliding_window_pattern_from_the_file() -> None:
    window = {"attention__sliding_window": 32, "block_count": 4}
    spec = read_spec(metadata("gemma3", **window, attention__sliding_window_pattern=2))
    assert [layer.window for layer in spec.layers] == [32, None, 32, None]
    flags = [False, True, True, False]
    spec = read_spec(metadata("gemma3", **window, attention__sliding_window_pattern=flags))
    assert [layer.window for layer in spec.layers] == [None, 32, 32, None]
    with pytest.raises(ModelFileError, match=r"gemma3.attention.sliding_window_pattern must have 4 items"):
        read_spec(metadata("gemma3", **window, attention__sliding_window_pattern=[True]))


def test_mistral_slides_in_every_layer_with_its_own_base() -> None:
    spec = read_spec(metadata(attention__sliding_window=4096, rope__freq_base=5e5))
    assert [layer.window for layer in spec.layers] == [4096, 4096]
    assert spec.layers[0].rope.inv_freq[1] == pytest.approx(5e5 ** (-1 / 8))
    assert read_spec(metadata(attention__sliding_window=0)).layers[0].window is None


def test_per_layer_lists_count_when_uniform() -> None:
    assert read_spec(metadata(attention__head_count_kv=[2, 2])).num_kv_heads == 2
    with pytest.raises(ModelFileError, match=r"attention.head_count_kv differs between layers"):
        read_spec(metadata(attention__head_count_kv=[2, 4]))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"block_count": None}, "llama.block_count is missing"),
        ({"block_count": 0}, "llama.block_count must be between 1 and 1024, got 0"),
        ({"block_count": 2**40}, "llama.block_count"),
        ({"block_count": "2"}, "llama.block_count must be an integer"),
        ({"block_count": True}, "llama.block_count must be an integer"),
        ({"embedding_length": 2**31}, "llama.embedding_length"),
        ({"embedding_length": 65}, "llama.embedding_length must be a multiple of 32"),
        ({"feed_forward_length": 100}, "llama.feed_forward_length must be a multiple of 32"),
        ({"attention.head_count": 0}, "llama.attention.head_count "),
        ({"attention.head_count": -4}, "llama.attention.head_count "),
        ({"attention.head_count_kv": 0}, "llama.attention.head_count_kv"),
        ({"attention.head_count_kv": 3}, "llama.attention.head_count_kv must divide the 4 heads"),
        ({"attention.head_count_kv": 8}, "llama.attention.head_count_kv"),
        ({"attention.head_count_kv": []}, "llama.attention.head_count_kv"),
        ({"attention.key_length": 24, "attention.value_length": 24}, "llama.attention.key_length"),
        ({"attention.key_length": 32}, "llama.attention.value_length must equal"),
        ({"rope.dimension_count": 8}, "llama.rope.dimension_count must equal"),
        ({"attention.layer_norm_rms_epsilon": math.nan}, "llama.attention.layer_norm_rms_epsilon"),
        ({"attention.layer_norm_rms_epsilon": -1e-5}, "llama.attention.layer_norm_rms_epsilon"),
        ({"attention.layer_norm_rms_epsilon": None}, "llama.attention.layer_norm_rms_epsilon is missing"),
        ({"rope.freq_base": 0.0}, "llama.rope.freq_base"),
        ({"rope.freq_base": math.inf}, "llama.rope.freq_base"),
        ({"rope.freq_base": "big"}, "llama.rope.freq_base must be a number"),
        ({"rope.scaling.type": 3}, "llama.rope.scaling.type must be a string"),
        ({"rope.scaling.type": "longrope"}, "llama.rope.scaling.type 'longrope' is not supported"),
        ({"rope.scaling.factor": -1.0}, "llama.rope.scaling.factor"),
        ({"rope.scaling.type": "yarn", "rope.freq_base": 1.0}, "llama.rope.freq_base must be above 1"),
        ({"context_length": 0}, "llama.context_length"),
        ({"attention.sliding_window": -1}, "llama.attention.sliding_window"),
        ({"expert_count": 8}, "llama.expert_count = 8 is not supported"),
        ({"attn_logit_softcapping": 50.0}, "llama.attn_logit_softcapping"),
        ({"attention.causal": False}, "llama.attention.causal"),
    ],
)
def test_bad_values_are_named(changes: dict[str, object], named: str) -> None:
    changes = {key.replace(".", "__"): value for key, value in changes.items()}
    with pytest.raises(ModelFileError) as caught:
        read_spec(metadata(**changes))
    assert named in caught.value.message


@pytest.mark.parametrize("tokens", [[], "abc", 7])
def test_bad_vocabulary(tokens: object) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer.ggml.tokens"):
        read_spec(metadata() | {"tokenizer.ggml.tokens": tokens})


@pytest.mark.parametrize("factors", [[1.0] * 7, [1.0] * 7 + [0.0], [1.0] * 7 + [math.nan]])
def test_bad_rope_factors(factors: list[float]) -> None:
    with pytest.raises(ModelFileError, match=r"rope_freqs.weight"):
        read_spec(metadata(), np.array(factors, np.float32))


def test_unknown_architecture_lists_what_there_is() -> None:
    with pytest.raises(ModelFileError) as caught:
        read_spec(metadata() | {"general.architecture": "mamba"})
    assert caught.value.code == "unsupported_architecture"
    assert all(name in str(caught.value.hint) for name in SUPPORTED_ARCHITECTURES)
    with pytest.raises(ModelFileError, match=r"general.architecture must be a string"):
        read_spec({})

"""What a model is, read from GGUF metadata alone. Defaults are llama.cpp's (its per-architecture loaders).

A new family is one row of `_FAMILIES` and one of `gguf.names`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from realm.core.errors import ModelFileError
from realm.core.types import Float32Array
from realm.kernels.ops import Activation, Rope
from realm.models.metadata import Fields
from realm.models.rope import read_rope


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """How one layer's attention differs from the others'."""

    rope: Rope
    window: int | None  # sliding window in tokens, None: all of the past


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes and constants of a decoder-only transformer."""

    architecture: str
    name: str
    vocab_size: int  # V
    hidden_size: int  # C
    intermediate_size: int  # F
    num_heads: int  # H
    num_kv_heads: int  # G
    head_dim: int  # D
    context_length_tokens: int
    norm_eps: float
    attention_scale: float
    embedding_scale: float
    activation: Activation
    qk_norms: bool  # RMS norm of each query and key head
    post_norms: bool  # RMS norm of what attention and feed-forward give, before they are added
    layers: tuple[LayerSpec, ...]  # [L]

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one token keeps in the KV cache, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class _Family:
    activation: Activation = "silu"
    interleaved_rope: bool = False
    qk_norms: bool = False
    post_norms: bool = False
    scaled_embedding: bool = False  # by sqrt(C)
    window_period: int = 1  # of this many layers all but the last slide their window; 1: all do
    local_rope_base: float | None = None  # layers with a window rotate with this base, unscaled


_FAMILIES = {
    "llama": _Family(interleaved_rope=True),
    "qwen2": _Family(),
    "qwen3": _Family(qk_norms=True),
    "gemma3": _Family(
        activation="gelu_tanh",
        qk_norms=True,
        post_norms=True,
        scaled_embedding=True,
        window_period=6,
        local_rope_base=10_000.0,
    ),
}
SUPPORTED_ARCHITECTURES = tuple(_FAMILIES)

# Metadata that would change the result and that no supported family uses: (key, value that changes nothing).
_NEUTRAL = (
    ("expert_count", 0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 0.0),
    ("residual_scale", 0.0),
    ("embedding_scale", 0.0),
    ("attention.scale", 0.0),
    ("attention.causal", True),
    ("pooling_type", 0),
)
_GEMMA3_27B_LAYERS = 62


def read_spec(metadata: Mapping[str, Any], rope_factors: Float32Array | None = None) -> ModelSpec:
    """The spec of the model that `metadata` describes.

    Args:
        metadata: GGUF key-value pairs.
        rope_factors: the `rope_freqs.weight` tensor [D/2], which divides the rotary frequencies, if the file has one.

    Raises:
        ModelFileError: a key is missing, of the wrong type, out of range or at odds with another; the message names it.
            Code `unsupported_architecture` or `unsupported_model` if the file is sound but nothing here can run it.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelFileError(f"general.architecture must be a string, got {architecture!r:.80}")
    if architecture not in _FAMILIES:
        raise ModelFileError(
            f"architecture {architecture[:80]!r} is not supported",
            code="unsupported_architecture",
            hint=f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}",
        )
    family, fields = _FAMILIES[architecture], Fields(metadata, architecture)
    for key, neutral in _NEUTRAL:
        fields.require_neutral(key, neutral)
    hidden_size = _multiple_of_32(fields, "embedding_length", 2**17)
    num_layers = fields.integer("block_count", 1, 1024)
    num_heads = fields.integer("attention.head_count", 1, 1024)
    head_dim = _head_dim(fields, hidden_size, num_heads)
    return ModelSpec(
        architecture=architecture,
        name=str(metadata.get("general.name", "")),
        vocab_size=_vocab_size(fields),
        hidden_size=hidden_size,
        intermediate_size=_multiple_of_32(fields, "feed_forward_length", 2**21),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, num_heads),
        head_dim=head_dim,
        context_length_tokens=fields.integer("context_length", 1, 2**28),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon", 0.0, 0.1),
        attention_scale=_attention_scale(architecture, num_layers, hidden_size, num_heads, head_dim),
        embedding_scale=math.sqrt(hidden_size) if family.scaled_embedding else 1.0,
        activation=family.activation,
        qk_norms=family.qk_norms,
        post_norms=family.post_norms,
        layers=_layers(fields, family, num_layers, head_dim, rope_factors),
    )


def _layers(
    fields: Fields, family: _Family, num_layers: int, head_dim: int, factors: Float32Array | None
) -> tuple[LayerSpec, ...]:
    rope = read_rope(fields, head_dim, interleaved=family.interleaved_rope, factors=factors)
    window = fields.integer("attention.sliding_window", 0, 2**28, default=0) or None
    if window is None:
        return (LayerSpec(rope, None),) * num_layers
    local_rope = rope
    if family.local_rope_base is not None:
        base = fields.number("rope.freq_base_swa", 1.0, 1e12, default=family.local_rope_base)
        local_rope = Rope(tuple(base ** (-2.0 * i / head_dim) for i in range(head_dim // 2)), family.interleaved_rope)
    local = fields.layer_pattern("attention.sliding_window_pattern", num_layers, family.window_period)
    return tuple(LayerSpec(local_rope, window) if is_local else LayerSpec(rope, None) for is_local in local)


def _multiple_of_32(fields: Fields, key: str, limit: int) -> int:
    value = fields.integer(key, 32, limit)
    if value % 32:
        raise fields.error(key, f"must be a multiple of 32, got {value}")
    return value


def _num_kv_heads(fields: Fields, num_heads: int) -> int:
    num_kv_heads = fields.integer("attention.head_count_kv", 1, num_heads, default=num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("attention.head_count_kv", f"must divide the {num_heads} heads, got {num_kv_heads}")
    return num_kv_heads


def _head_dim(fields: Fields, hidden_size: int, num_heads: int) -> int:
    default = hidden_size // num_heads
    key_length = fields.integer("attention.key_length", 1, 1024, default=default)
    if fields.integer("attention.value_length", 1, 1024, default=default) != key_length:
        raise fields.error("attention.value_length", f"must equal attention.key_length, {key_length}")
    if not key_length or key_length % 16 or num_heads * key_length % 32:
        raise fields.error("attention.key_length", f"(head size) must be a multiple of 16, got {key_length}")
    if fields.integer("rope.dimension_count", 1, 1024, default=key_length) != key_length:
        raise fields.error("rope.dimension_count", f"must equal the head size, {key_length}")
    return key_length


def _vocab_size(fields: Fields) -> int:
    tokens = fields.metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return fields.integer("vocab_size", 1, 2**22)
    if isinstance(tokens, str) or not hasattr(tokens, "__len__") or not 1 <= len(tokens) <= 2**22:
        raise ModelFileError(f"tokenizer.ggml.tokens must be a list of 1 to {2**22} strings")
    return len(tokens)


def _attention_scale(architecture: str, num_layers: int, hidden_size: int, num_heads: int, head_dim: int) -> float:
    # Gemma 3 27B is told from its siblings by depth only: the metadata carries no scale.
    if architecture == "gemma3" and num_layers == _GEMMA3_27B_LAYERS:
        return 1.0 / math.sqrt(hidden_size // num_heads)
    return 1.0 / math.sqrt(head_dim)

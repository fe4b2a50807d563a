"""Tensor names of each architecture, as llama.cpp writes them."""

from __future__ import annotations

from dataclasses import dataclass

EMBEDDING = "token_embd"
OUTPUT_NORM = "output_norm"
OUTPUT = "output"  # absent: the embedding is the output head, too
ROPE_FACTORS = "rope_freqs"


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Names of one layer's tensors without `.weight` or `.bias`; None where the family has no such tensor."""

    attn_norm: str
    attn_q: str
    attn_k: str
    attn_v: str
    attn_output: str
    ffn_norm: str
    ffn_gate: str
    ffn_up: str
    ffn_down: str
    attn_q_norm: str | None = None
    attn_k_norm: str | None = None
    post_attention_norm: str | None = None
    post_ffw_norm: str | None = None


_COMMON = (
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)
_MORE: dict[str, tuple[str, ...]] = {
    "llama": (),
    "qwen2": (),
    "qwen3": ("attn_q_norm", "attn_k_norm"),
    "gemma3": ("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"),
}
# Written by old converters; holds what the metadata says anyway.
IGNORED_LAYER_TENSORS = ("attn_rot_embd",)


def layer_names(architecture: str, layer: int) -> LayerNames:
    """Names of the tensors of `layer`, counted from 0."""
    return LayerNames(**{part: f"blk.{layer}.{part}" for part in (*_COMMON, *_MORE[architecture])})

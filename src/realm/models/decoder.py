"""The one decoder: every family is this function with other fields in its spec."""

from __future__ import annotations

from typing import TypeVar

from realm.kernels.ops import AttentionSpec, Ops
from realm.models.config import ModelSpec
from realm.models.weights import LayerWeights, Weights

V = TypeVar("V")


def decode(ops: Ops[V], weights: Weights, spec: ModelSpec) -> V:
    """One step: token ids to logits [S, V]. A device may run each op at once or record it for later steps."""
    x = ops.embed(weights.embedding, spec.embedding_scale)  # [T, C]
    for layer, layer_weights in enumerate(weights.layers):
        x = _attend(ops, x, layer_weights, spec, layer)
        x = _feed_forward(ops, x, layer_weights, spec)
    return ops.logits(x, weights.output_norm, spec.norm_eps, weights.head)


def _attend(ops: Ops[V], x: V, weights: LayerWeights, spec: ModelSpec, layer: int) -> V:
    h = ops.rms_norm(x, weights.attn_norm, spec.norm_eps)
    h = ops.linear(h, weights.qkv)  # [T, (H + 2G)*D]
    h = ops.attention(h, attention_spec(weights, spec, layer))  # [T, H*D]
    if layer == spec.num_layers - 1:  # the other rows were needed for their keys and values
        x, h = ops.keep_judged(x, h)  # T is S from here on
    h = ops.linear(h, weights.attn_output)  # [T, C]
    if weights.post_attention_norm is not None:
        h = ops.rms_norm(h, weights.post_attention_norm, spec.norm_eps)
    return ops.add(x, h)


def _feed_forward(ops: Ops[V], x: V, weights: LayerWeights, spec: ModelSpec) -> V:
    h = ops.rms_norm(x, weights.ffn_norm, spec.norm_eps)
    h = ops.gated(ops.linear(h, weights.gate_up), spec.activation)  # [T, F]
    h = ops.linear(h, weights.ffn_down)  # [T, C]
    if weights.post_ffn_norm is not None:
        h = ops.rms_norm(h, weights.post_ffn_norm, spec.norm_eps)
    return ops.add(x, h)


def attention_spec(weights: LayerWeights, spec: ModelSpec, layer: int) -> AttentionSpec:
    """What a device must know to attend in `layer`."""
    return AttentionSpec(
        layer=layer,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        scale=spec.attention_scale,
        rope=spec.layers[layer].rope,
        q_norm=weights.q_norm,
        k_norm=weights.k_norm,
        norm_eps=spec.norm_eps,
        window=spec.layers[layer].window,
    )

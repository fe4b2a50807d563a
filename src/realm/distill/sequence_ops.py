"""The decoder's ops over dense batches of equally long sequences, in torch, with gradients and an optional KV cache.

Used to train drafts and to let the target write their training text, on any torch device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from realm.core.types import Float32Array
from realm.distill.fused import fused
from realm.kernels.ops import Activation, AttentionSpec, Linear, QuantTensor, Rope


@dataclass
class DenseCache:
    """Keys and values of every layer, [B, G, max_tokens, D] each, allocated as layers first write."""

    batch_size: int
    max_tokens: int
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    num_seen: int | None = None
    """Tokens to attend over, from the first; None for all there is room for."""

    def write(self, layer: int, positions: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, G, T, D] at `positions` [T] and give what the layer attends over."""
        if layer not in self.keys:
            shape = (self.batch_size, key.shape[1], self.max_tokens, key.shape[3])
            self.keys[layer], self.values[layer] = key.new_zeros(shape), value.new_zeros(shape)
        self.keys[layer].index_copy_(2, positions, key)
        self.values[layer].index_copy_(2, positions, value)
        return self.keys[layer][:, :, : self.num_seen], self.values[layer][:, :, : self.num_seen]


class SequenceOps:
    """`Ops[Tensor]` on activations [B, T, C].

    Args:
        parameters: tensors by GGUF name, on one device; matrices are [N, K].
        token_ids: [B, T].
        positions: [T], the same for every sequence.
        cache: attend over a dense cache; without one, over the T tokens given.
        exact_logits: compute logits in float32, whatever the rest is in.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        token_ids: Tensor,
        positions: Tensor,
        cache: DenseCache | None = None,
        exact_logits: bool = False,
    ) -> None:
        self.parameters = parameters
        self.token_ids = token_ids
        self.positions = positions
        self.cache = cache
        self.exact_logits = exact_logits
        self._angles: dict[Rope, tuple[Tensor, Tensor]] = {}
        self._masks: dict[int | None, Tensor] = {}

    def embed(self, table: QuantTensor, scale: float) -> Tensor:
        """[B, T, C]."""
        return F.embedding(self.token_ids, self.parameters[table.name]) * scale

    def rms_norm(self, x: Tensor, weight: Float32Array, eps: float) -> Tensor:
        """RMS norm, result in x's type."""
        return _rms_norm(x, self._vector(weight), eps)

    def linear(self, x: Tensor, weight: Linear) -> Tensor:
        """[B, T, N]: parts side by side."""
        matrices = [self.parameters[part.name].to(x.dtype) for part in weight.parts]
        if all(bias is None for bias in weight.biases):
            return F.linear(x, _joined(matrices))
        biases = [
            x.new_zeros(part.num_rows) if bias is None else self._vector(bias).to(x.dtype)
            for part, bias in zip(weight.parts, weight.biases, strict=True)
        ]
        return F.linear(x, _joined(matrices), _joined(biases))

    def attention(self, qkv: Tensor, spec: AttentionSpec) -> Tensor:
        """[B, T, H*D]."""
        batch, length, _ = qkv.shape
        heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        qkv = qkv.view(batch, length, heads + 2 * kv_heads, dim).transpose(1, 2)
        q, k, v = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)
        if spec.q_norm is not None and spec.k_norm is not None:
            q = _rms_norm(q, self._vector(spec.q_norm), spec.norm_eps)
            k = _rms_norm(k, self._vector(spec.k_norm), spec.norm_eps)
        q, k = self._rotate(q, spec.rope), self._rotate(k, spec.rope)
        shared = heads // kv_heads  # heads that share keys become more queries, so that keys are not copied for each
        if self.cache is not None:
            k, v = self.cache.write(spec.layer, self.positions, k, v)
            unseen = ~self._mask(k.shape[2], spec.window).repeat(shared, 1)
            q = q.reshape(batch, kv_heads, shared * length, dim) * spec.scale
            # Two products: for few queries of many sequences that takes half as long as fused attention.
            out = (q @ k.mT).masked_fill_(unseen, -torch.inf).softmax(dim=-1) @ v
            out = out.view(batch, heads, length, dim)
        elif spec.window is None or spec.window >= length:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=spec.scale, enable_gqa=True)
        else:
            mask = self._mask(length, spec.window).repeat(shared, 1)
            q = q.reshape(batch, kv_heads, shared * length, dim)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=spec.scale)
            out = out.view(batch, heads, length, dim)
        return out.transpose(1, 2).reshape(batch, length, heads * dim)

    def keep_judged(self, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, C] and [B, T, H*D]: all of them."""
        return x, attended

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """[B, T, F]."""
        return _gated(gate_up, activation == "silu")

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum."""
        return x + y

    def logits(self, x: Tensor, norm_weight: Float32Array, eps: float, head: Linear) -> Tensor:
        """[B, T, V]."""
        h = self.rms_norm(x, norm_weight, eps)
        return self.linear(h.float() if self.exact_logits else h, head)

    def _vector(self, weight: Float32Array) -> Tensor:
        # Norm weights are handed over as arrays; trained copies are found by identity.
        known = self.parameters.get(vector_key(weight))
        return known if known is not None else torch.from_numpy(weight).to(self.positions.device)

    def _mask(self, num_keys: int, window: int | None) -> Tensor:
        if window not in self._masks:
            key_positions = torch.arange(num_keys, device=self.positions.device)
            distance = self.positions[:, None] - key_positions[None, :]
            mask = distance >= 0
            self._masks[window] = mask if window is None else mask & (distance < window)
        return self._masks[window]

    def _rotate(self, x: Tensor, rope: Rope) -> Tensor:
        if rope not in self._angles:
            angles = self.positions.double()[:, None] * _inv_freq(rope, x.device)
            self._angles[rope] = ((angles.cos() * rope.mscale).to(x.dtype), (angles.sin() * rope.mscale).to(x.dtype))
        return _rotated(x, *self._angles[rope], rope.interleaved)


@fused
def _gated(gate_up: Tensor, is_silu: bool) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gate) if is_silu else F.gelu(gate, approximate="tanh")) * up


@fused
def _rotated(x: Tensor, cos: Tensor, sin: Tensor, is_interleaved: bool) -> Tensor:
    rotary = 2 * cos.shape[-1]
    r, rest = x[..., :rotary], x[..., rotary:]
    if is_interleaved:
        a, b = r[..., 0::2], r[..., 1::2]
        r = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    else:
        a, b = r.chunk(2, dim=-1)
        r = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return torch.cat([r, rest], dim=-1) if rotary < x.shape[-1] else r


def vector_key(weight: Float32Array) -> str:
    """Name under which a norm or bias vector's trainable copy is kept in `parameters`."""
    return f"vector:{weight.__array_interface__['data'][0]}"


@lru_cache
def _inv_freq(rope: Rope, device: torch.device) -> Tensor:
    # Kept: a copy from the host is not allowed while a CUDA graph is captured.
    return torch.tensor(rope.inv_freq, dtype=torch.float64, device=device)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)

"""The seam between a model and a device.

A decoder is written once, over `Ops`. The reference device runs each op as it is called; the native CPU device
records the calls once into a program and replays it every step. `V` is whatever the device hands around: a tensor,
or the handle of a recorded buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from realm.core.quant import QuantType
from realm.core.types import Batch, Float32Array

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class QuantTensor:
    """A matrix as it lies in the GGUF file (no copy): `num_rows` output features of `num_cols` inputs each."""

    name: str
    quant_type: QuantType
    num_rows: int  # N
    num_cols: int  # K
    data: NDArray[np.uint8]  # [N * row_bytes], read-only view of the file mapping


@dataclass(frozen=True, slots=True)
class Linear:
    """One or more matrices over the same input, outputs side by side (q, k, v; gate, up)."""

    parts: tuple[QuantTensor, ...]
    biases: tuple[Float32Array | None, ...]  # one for each part: [N_part]

    @property
    def num_rows(self) -> int:
        """Output features over all parts."""
        return sum(p.num_rows for p in self.parts)


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding, precomputed: the angle of pair i at position p is `p * inv_freq[i]`.

    `inv_freq` already holds every scaling (linear, llama3, yarn, factors tensor); cos and sin are multiplied by
    `mscale`. `interleaved`: pairs are (2i, 2i+1), as GGUF stores llama; otherwise (i, i + rot_dim/2), as GGUF stores
    qwen and gemma.
    """

    inv_freq: tuple[float, ...]  # [rot_dim / 2]
    interleaved: bool
    mscale: float = 1.0


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention of one layer, over the paged KV cache."""

    layer: int
    num_heads: int  # H
    num_kv_heads: int  # G
    head_dim: int  # D, a multiple of 16
    scale: float
    rope: Rope
    q_norm: Float32Array | None = None  # [D], RMS norm of each head before rope
    k_norm: Float32Array | None = None
    norm_eps: float = 1e-6
    window: int | None = None  # sliding window: position p sees p - window + 1 .. p


@dataclass(frozen=True, slots=True)
class LoRALayer:
    """An adapter's change of one matrix: ``y += scale * B (A x)``."""

    a: Float32Array  # [r, K]
    b: Float32Array  # [N, r]
    scale: float

    @property
    def rank(self) -> int:
        """r."""
        return len(self.a)


V = TypeVar("V")


class Ops(Protocol[V]):
    """What a decoder may ask of a device.

    Every op works on all rows of the step, and after `keep_judged` on those judged only. It treats each row alone.
    """

    def embed(self, table: QuantTensor, scale: float) -> V:
        """Rows of `table` for the step's token ids, times `scale`: [T, C]."""

    def rms_norm(self, x: V, weight: Float32Array, eps: float) -> V:
        """x / rms(x) * weight over the last dimension: [T, C]. (Gemma's 1 + w is folded into the GGUF weight.)"""

    def linear(self, x: V, weight: Linear) -> V:
        """x @ W^T + b, plus the adapter's side path where a row has one: [T, N]."""

    def attention(self, qkv: V, spec: AttentionSpec) -> V:
        """Norm and rotate q and k, write k and v to the cache, attend causally: [T, H*D] from [T, (H + 2G)*D]."""

    def keep_judged(self, x: V, attended: V) -> tuple[V, V]:
        """Of both the rows in `logit_rows` only: [S, C] and [S, H*D]. No later op may read a value made before."""

    def gated(self, gate_up: V, activation: Activation) -> V:
        """activation(gate) * up: [T, F] from [T, 2F]."""

    def add(self, x: V, y: V) -> V:
        """x + y: [T, C]."""

    def logits(self, x: V, norm_weight: Float32Array, eps: float, head: Linear) -> V:
        """Norm and output head: [S, V] from [S, C]."""


class Executor(Protocol):
    """A model ready to step on one device.

    Rows may have adapters: `Batch.adapter_slots` names what `set_adapter` has put there. Layers of an adapter are by
    module name as in GGUF, without ``.weight``: ``blk.3.attn_q``, ``output``.
    """

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def num_kv_blocks(self) -> int:
        """Blocks in the KV pool."""

    @property
    def weights_bytes(self) -> int:
        """Memory that holds weights, as the device keeps them."""

    @property
    def kv_bytes(self) -> int:
        """Memory of the KV pool."""

    def step(self, batch: Batch) -> Float32Array:
        """Run one step, writing KV, and give logits [S, V]: a view, valid until the next step."""

    def adapter_bytes(self, layers: Mapping[str, LoRALayer]) -> int:
        """Memory that `pack_adapter` would take."""

    def pack_adapter(self, layers: Mapping[str, LoRALayer]) -> Any:
        """An adapter as this device computes with it. From any thread, also during a step."""

    def set_adapter(self, slot: int, packed: Any | None) -> None:
        """What rows with this slot compute with from the next step on; None: the slot is empty."""

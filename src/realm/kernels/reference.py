"""The slow truth: every op in plain torch, float32, one request at a time. Fast kernels are tested against this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from realm.core.config import KVType
from realm.core.types import Batch, Float32Array
from realm.kernels.ops import Activation, AttentionSpec, Linear, LoRALayer, QuantTensor, Rope

KV_DTYPES = {KVType.F16: torch.float16, KVType.F32: torch.float32}
Dequantize = Callable[[QuantTensor], Float32Array]
PackedLayers = Mapping[str, tuple[Tensor, Tensor, float]]
"""A [r, K], B [N, r] and scale of an adapter, by module."""


@dataclass
class DeviceState:
    """What outlives a step: dequantised weights, the KV pool and the resident adapters."""

    dequantize: Dequantize
    num_kv_slots: int
    kv_dtype: torch.dtype
    adapters: dict[int, PackedLayers] = field(default_factory=dict)
    matrices: dict[str, Tensor] = field(default_factory=dict)  # by tensor name, [N, K]
    keys: dict[int, Tensor] = field(default_factory=dict)  # by layer, [slots, G, D], rotated
    values: dict[int, Tensor] = field(default_factory=dict)

    def matrix(self, tensor: QuantTensor) -> Tensor:
        """The float32 values of `tensor` [N, K], kept for later steps."""
        if tensor.name not in self.matrices:
            self.matrices[tensor.name] = torch.from_numpy(self.dequantize(tensor))
        return self.matrices[tensor.name]


class ReferenceOps:
    """`Ops[Tensor]` for one batch."""

    def __init__(self, state: DeviceState, batch: Batch, block_tokens: int) -> None:
        self._state = state
        self._token_ids = torch.from_numpy(batch.token_ids).long()
        self._logit_rows = torch.from_numpy(batch.logit_rows).long()
        starts, contexts = batch.query_starts.tolist(), batch.context_lens.tolist()
        self._adapter_slots = batch.adapter_slots.tolist()  # [R]
        self._rows = [slice(a, b) for a, b in pairwise(starts)]  # [R], of T, later of S
        self._contexts = contexts
        positions = [torch.arange(c, c + r.stop - r.start) for c, r in zip(contexts, self._rows, strict=True)]
        self._positions = torch.cat(positions)  # [T]
        self._slots = [  # [R] of KV slots of positions 0 .. context + rows
            _kv_slots(table, c + r.stop - r.start, block_tokens)
            for table, c, r in zip(torch.from_numpy(batch.block_tables).long(), contexts, self._rows, strict=True)
        ]

    def embed(self, table: QuantTensor, scale: float) -> Tensor:
        """[T, C]: rows of the table, plus s * B(A[:, token]) in the rows of requests whose adapter changes it."""
        x = self._state.matrix(table)[self._token_ids]
        for slot, rows in zip(self._adapter_slots, self._rows, strict=True):
            layers = self._state.adapters[slot] if slot >= 0 else {}
            if "token_embd" in layers:
                a, b, factor = layers["token_embd"]
                x[rows] += factor * F.linear(a[:, self._token_ids[rows]].T, b)
        return x * scale

    def rms_norm(self, x: Tensor, weight: Float32Array, eps: float) -> Tensor:
        """[T, C]."""
        return _rms_norm(x, weight, eps)

    def linear(self, x: Tensor, weight: Linear) -> Tensor:
        """[T, N]: the parts side by side."""
        names = [part.name.removesuffix(".weight") for part in weight.parts]
        return self._adapt(self._project(x, weight), x, weight, names)

    def attention(self, qkv: Tensor, spec: AttentionSpec) -> Tensor:
        """[T, H*D]; writes K and V of all rows first, as a row may attend to any row of its own request."""
        heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        q, k, v = torch.split(qkv.view(-1, heads + 2 * kv_heads, dim), [heads, kv_heads, kv_heads], 1)
        if spec.q_norm is not None:
            q = _rms_norm(q, spec.q_norm, spec.norm_eps)
        if spec.k_norm is not None:
            k = _rms_norm(k, spec.k_norm, spec.norm_eps)
        q, k = rotate(q, self._positions, spec.rope), rotate(k, self._positions, spec.rope)
        keys, values = self._write(spec, k, v)
        out = [self._attend(q[rows], keys, values, r, spec) for r, rows in enumerate(self._rows)]
        return torch.cat(out).reshape(-1, heads * dim)

    def keep_judged(self, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """[S, C] and [S, H*D]; from here on a request's rows are counted among those judged."""
        bounds = [int((self._logit_rows < row.stop).sum()) for row in self._rows]
        self._rows = [slice(a, b) for a, b in pairwise([0, *bounds])]
        return x[self._logit_rows], attended[self._logit_rows]

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """[T, F]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """[T, C]."""
        return x + y

    def logits(self, x: Tensor, norm_weight: Float32Array, eps: float, head: Linear) -> Tensor:
        """[S, V]."""
        h = _rms_norm(x, norm_weight, eps)
        return self._adapt(self._project(h, head), h, head, ["output"])

    def _adapt(self, y: Tensor, x: Tensor, weight: Linear, names: list[str]) -> Tensor:
        """y plus scale * B(A x) of each part (module `names`) in the rows of requests whose adapter changes it."""
        sizes = [part.num_rows for part in weight.parts]
        for slot, rows in zip(self._adapter_slots, self._rows, strict=True):
            layers = self._state.adapters[slot] if slot >= 0 else {}
            for name, out in zip(names, torch.split(y[rows], sizes, -1), strict=True):
                if name in layers:
                    a, b, scale = layers[name]
                    out += scale * F.linear(F.linear(x[rows], a), b)
        return y

    def _project(self, x: Tensor, weight: Linear) -> Tensor:
        parts = zip(weight.parts, weight.biases, strict=True)
        return torch.cat(
            [F.linear(x, self._state.matrix(p), None if b is None else torch.from_numpy(b)) for p, b in parts], -1
        )

    def _write(self, spec: AttentionSpec, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store [T, G, D] and give the layer's whole pool."""
        state = self._state
        if spec.layer not in state.keys:
            shape = (state.num_kv_slots, spec.num_kv_heads, spec.head_dim)
            # NaN: a slot that is read before it is written must show.
            for pool in (state.keys, state.values):
                pool[spec.layer] = torch.full(shape, torch.nan, dtype=state.kv_dtype)
        keys, values = state.keys[spec.layer], state.values[spec.layer]
        new = torch.cat([slots[c:] for slots, c in zip(self._slots, self._contexts, strict=True)])
        keys[new], values[new] = k.to(state.kv_dtype), v.to(state.kv_dtype)
        return keys, values

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, request: int, spec: AttentionSpec) -> Tensor:
        """Request's rows [n, H, D] over its own past: [n, H, D]."""
        slots = self._slots[request]
        group = spec.num_heads // spec.num_kv_heads
        k = keys[slots].float().repeat_interleave(group, dim=1)  # [past, H, D]
        v = values[slots].float().repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * spec.scale
        distance = self._positions[self._rows[request]][:, None] - torch.arange(len(slots))[None, :]  # [n, past]
        visible = distance >= 0
        if spec.window is not None:
            visible &= distance < spec.window
        weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        return torch.einsum("hqk,khd->qhd", weights, v)


class ReferenceExecutor:
    """`Executor` over `ReferenceOps`: runs the whole decoder anew each step.

    Args:
        program: the decoder, given the step's ops.
        dequantize: float32 values of a matrix, [N, K].
        vocab_size: V.
        num_kv_blocks: blocks in the KV pool.
        block_tokens: tokens in one block.
        kv_type: f16 or f32; what is computed with them is float32 either way.
        kv_values_per_token: for `kv_bytes`.
    """

    def __init__(
        self,
        program: Callable[[ReferenceOps], Tensor],
        dequantize: Dequantize,
        *,
        vocab_size: int,
        num_kv_blocks: int,
        block_tokens: int,
        kv_type: KVType = KVType.F32,
        kv_values_per_token: int = 0,
    ) -> None:
        kv_dtype = KV_DTYPES[kv_type]
        self.vocab_size = vocab_size
        self.num_kv_blocks = num_kv_blocks
        self.kv_bytes = num_kv_blocks * block_tokens * kv_values_per_token * kv_dtype.itemsize
        self._program = program
        self._block_tokens = block_tokens
        self._state = DeviceState(dequantize, num_kv_blocks * block_tokens, kv_dtype)

    def adapter_bytes(self, layers: Mapping[str, LoRALayer]) -> int:
        """Those of A and B."""
        return sum(layer.a.nbytes + layer.b.nbytes for layer in layers.values())

    def pack_adapter(self, layers: Mapping[str, LoRALayer]) -> PackedLayers:
        """The same values, as tensors."""
        return {name: (torch.tensor(y.a), torch.tensor(y.b), y.scale) for name, y in layers.items()}

    def set_adapter(self, slot: int, packed: PackedLayers | None) -> None:
        """What rows with this slot compute with; None: the slot is empty."""
        self._state.adapters.pop(slot, None)
        if packed is not None:
            self._state.adapters[slot] = packed

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights dequantised so far."""
        return sum(matrix.nbytes for matrix in self._state.matrices.values())

    def step(self, batch: Batch) -> Float32Array:
        """Logits [S, V]."""
        with torch.inference_mode():
            logits: Float32Array = self._program(ReferenceOps(self._state, batch, self._block_tokens)).numpy()
        return logits


def rotate(x: Tensor, positions: Tensor, rope: Rope) -> Tensor:
    """Rotary embedding of [T, heads, D] at `positions` [T]."""
    angles = positions.double()[:, None] * torch.tensor(rope.inv_freq, dtype=torch.float64)  # [T, rot/2]
    cos, sin = ((f(angles) * rope.mscale).float()[:, None, :] for f in (torch.cos, torch.sin))
    turned, rest = torch.tensor_split(x, [2 * len(rope.inv_freq)], -1)
    if rope.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    else:
        a, b = turned.chunk(2, dim=-1)
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return torch.cat([turned, rest], dim=-1)


def _rms_norm(x: Tensor, weight: Float32Array, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * torch.from_numpy(weight)


def _kv_slots(table: Tensor, num_tokens: int, block_tokens: int) -> Tensor:
    """Slots of positions 0 .. num_tokens through one block table [M]."""
    positions = torch.arange(num_tokens)
    return table[positions // block_tokens] * block_tokens + positions % block_tokens

"""Native CPU kernels; use through realm.kernels.cpu."""

from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

Q8_0_PLANES: int
"""Type id of Q8_0 packed in two planes: see csrc/layout.h."""

def default_isa() -> str:
    """Instruction set that is used unless another is asked for: the fastest, or `REALM_CPU_ISA`."""

def available_isas() -> list[str]:
    """Instruction sets that this CPU runs, slowest first."""

def can_pack(type_id: int, num_inputs: int) -> bool:
    """Whether there are kernels for rows of `num_inputs` values of a GGUF type."""

def packed_bytes(type_id: int, num_outputs: int, num_inputs: int) -> int:
    """Bytes of a packed matrix."""

def pack(type_id: int, src: NDArray[np.uint8], num_outputs: int, num_inputs: int) -> NDArray[np.uint8]:
    """Pack a GGUF matrix into weight tiles: uint8 [packed_bytes]."""

def unpack(type_id: int, packed: NDArray[np.uint8], num_outputs: int, num_inputs: int) -> NDArray[np.float32]:
    """Dequantise a packed matrix: float32 [N, K]."""

def quantize_rows(x: NDArray[np.float32], isa: str, outlier: float = ...) -> NDArray[np.uint8]:
    """Activations [M, K] as int8 panels: uint8 [bytes]."""

def matmul(
    type_id: int,
    packed: NDArray[np.uint8],
    x: NDArray[np.float32],
    num_outputs: int,
    isa: str,
    num_threads: int = 1,
    initial: float = 0.0,
    outlier: float = ...,
) -> NDArray[np.float32]:
    """x W^T, added to `initial` where that is not 0: float32 [M, N]."""

def reference_matmul(
    type_id: int, src: NDArray[np.uint8], x: NDArray[np.float32], num_outputs: int, outlier: float = ...
) -> NDArray[np.float32]:
    """x W^T by the scalar reference, straight from GGUF bytes: float32 [M, N]."""

def time_matmul(
    type_id: int,
    weights: list[NDArray[np.uint8]],
    x: NDArray[np.float32],
    num_outputs: int,
    isa: str,
    num_threads: int,
    repeats: int,
) -> list[float]:
    """Seconds of each call, over packed copies taken in turn."""

LoRAChange: TypeAlias = tuple[int, int, NDArray[np.float32], NDArray[np.float32], float]
"""Site and part of a matrix, A [rank, K], B [N, rank], scale."""

class PackedAdapter:
    """An adapter as a program computes with it."""

    @property
    def num_bytes(self) -> int: ...

class Program:
    """A model's step as a list of ops, recorded once and replayed by `step`. Ids are ints; -1 stands for "none"."""

    def __init__(
        self,
        *,
        num_threads: int,
        max_tokens: int,
        max_logit_rows: int,
        max_positions: int,
        vocab_size: int,
        num_blocks: int,
        block_tokens: int,
        kv_type: str,
        isa: str | None = None,
        pin_threads: bool = False,
        beside: Program | None = None,
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def weights_bytes(self) -> int: ...
    @property
    def skipped_bytes(self) -> int: ...
    @property
    def kv_bytes(self) -> int: ...
    def reserve_weights(self, num_bytes: int) -> None: ...
    def add_matrix(self, type_id: int, data: NDArray[np.uint8], num_rows: int, num_inputs: int) -> int: ...
    def share_matrix(self, owner: Program, id: int) -> int: ...
    def add_vector(self, values: NDArray[np.float32]) -> int: ...
    def add_rope(self, inverse_frequencies: list[float], interleaved: bool, scale: float) -> int: ...
    def add_value(self, width: int, rows: bool, panels: bool, judged: bool) -> int: ...
    def embed(self, table: int, scale: float, out: int) -> int: ...
    def rms_norm(self, x: int, weight: int, eps: float, residual: int, out: int) -> None: ...
    def keep_judged(self, x: int) -> int: ...
    def cast(self, x: int, out: int) -> None: ...
    def matmul(self, x: int, matrices: list[int], biases: list[int], out: int, accumulate: bool) -> int: ...
    def gated_matmul(
        self, x: int, gate: int, up: int, gate_bias: int, up_bias: int, activation: str, out: int
    ) -> int: ...
    def gated(self, gate_up: int, activation: str, out: int) -> None: ...
    def add(self, x: int, y: int, out: int) -> None: ...
    def attention(
        self,
        qkv: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        window: int,
        scale: float,
        norm_eps: float,
        q_norm: int,
        k_norm: int,
        rope: int,
        out: int,
    ) -> None: ...
    def logits(self, x: int, matrices: list[int], biases: list[int]) -> int: ...
    def pack_adapter(self, changes: list[LoRAChange]) -> PackedAdapter: ...
    def adapter_bytes(self, changes: list[LoRAChange]) -> int: ...
    def set_adapter(self, slot: int, adapter: PackedAdapter | None) -> None: ...
    def step(
        self,
        token_ids: NDArray[np.int32],
        query_starts: NDArray[np.int32],
        context_lens: NDArray[np.int32],
        block_tables: NDArray[np.int32],
        logit_rows: NDArray[np.int32],
        adapter_slots: NDArray[np.int32],
        likeliest_only: bool = ...,
    ) -> None: ...
    def draft(
        self,
        token_ids: NDArray[np.int32],
        query_starts: NDArray[np.int32],
        context_lens: NDArray[np.int32],
        block_tables: NDArray[np.int32],
        logit_rows: NDArray[np.int32],
        adapter_slots: NDArray[np.int32],
        limits: NDArray[np.int32],
        rates: NDArray[np.float32],
        means: NDArray[np.float32],
        bounds: NDArray[np.float32],
        worth_verifying: float,
        worth_drafting: float,
        names: NDArray[np.int32] | None,
        tokens: NDArray[np.int32],
        classes: NDArray[np.int32],
        num_guesses: NDArray[np.int32],
        num_drafts: NDArray[np.int32],
        step_rows: NDArray[np.int32],
        step_seconds: NDArray[np.float64],
    ) -> int: ...
    def logits_buffer(self) -> NDArray[np.float32]: ...
    def set_profiling(self, on: bool) -> None: ...
    def profile(self) -> list[tuple[str, float]]: ...

class Sampler:
    """Draws tokens; see kernels.sampling_reference for what it computes."""

    @overload
    def __init__(self, program: Program) -> None: ...
    @overload
    def __init__(self, isa: str) -> None: ...
    def sample(
        self,
        logits: NDArray[np.float32],
        temperature: NDArray[np.float32],
        top_k: NDArray[np.int32],
        top_p: NDArray[np.float32],
        min_p: NDArray[np.float32],
        repetition_penalty: NDArray[np.float32],
        presence_penalty: NDArray[np.float32],
        frequency_penalty: NDArray[np.float32],
        seeds: NDArray[np.int64],
        positions: NDArray[np.int64],
        num_logprobs: NDArray[np.int32],
        bias_starts: NDArray[np.int32],
        bias_ids: NDArray[np.int32],
        bias_values: NDArray[np.float32],
        history_starts: NDArray[np.int32],
        history_ids: NDArray[np.int32],
        history_counts: NDArray[np.int32],
        token_ids: NDArray[np.int32],
        logprobs: NDArray[np.float32],
        top_ids: NDArray[np.int32],
        top_logprobs: NDArray[np.float32],
    ) -> None: ...
    def argmax(self, logits: NDArray[np.float32], token_ids: NDArray[np.int32]) -> None: ...

"""The GGUF tensor types Realm reads: one table drives sizes, checks and packing.

Block layouts: ggml's `ggml-common.h`. Numbers are the on-disk type ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class QuantType(IntEnum):
    """Supported tensor types with their GGUF ids."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    BF16 = 30


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """`block_elements` values are stored in `block_bytes` bytes."""

    block_elements: int
    block_bytes: int


LAYOUTS: dict[QuantType, BlockLayout] = {
    QuantType.F32: BlockLayout(1, 4),
    QuantType.F16: BlockLayout(1, 2),
    QuantType.BF16: BlockLayout(1, 2),
    QuantType.Q4_0: BlockLayout(32, 18),
    QuantType.Q4_1: BlockLayout(32, 20),
    QuantType.Q5_0: BlockLayout(32, 22),
    QuantType.Q5_1: BlockLayout(32, 24),
    QuantType.Q8_0: BlockLayout(32, 34),
    QuantType.Q2_K: BlockLayout(256, 84),
    QuantType.Q3_K: BlockLayout(256, 110),
    QuantType.Q4_K: BlockLayout(256, 144),
    QuantType.Q5_K: BlockLayout(256, 176),
    QuantType.Q6_K: BlockLayout(256, 210),
}


def row_bytes(quant_type: QuantType, num_elements: int) -> int:
    """Bytes of one row of `num_elements` values; `num_elements` must be a multiple of the block."""
    layout = LAYOUTS[quant_type]
    assert num_elements % layout.block_elements == 0
    return num_elements // layout.block_elements * layout.block_bytes

"""Random weights as stored blocks, for every tensor type: also for the ones that nobody here can quantise to."""

from __future__ import annotations

import numpy as np

from realm.core.quant import QuantType, row_bytes
from realm.gguf.dequant import BLOCK_DTYPES, Bytes, unpack
from realm.gguf.quantize import quantize

WEIGHT_STD = 0.03

_MINIMUM_PER_SCALE: dict[str, float] = {
    QuantType.Q4_1.name: -7.5,
    QuantType.Q5_1.name: -15.5,
    QuantType.Q2_K.name: 1.5,
    QuantType.Q4_K.name: 7.5,
    QuantType.Q5_K.name: 15.5,
}
"""Minimum over scale that makes the mean about zero."""


def random_blocks(quant_type: QuantType, num_rows: int, num_cols: int, rng: np.random.Generator) -> Bytes:
    """Valid, finite, random blocks whose weights have a standard deviation of about 0.03 and a mean of about 0.

    Every bit pattern of the integers and group scales may occur, also those that no quantiser produces (-128 in Q8_0).

    Returns:
        uint8 [num_rows, bytes per row].
    """
    if quant_type not in BLOCK_DTYPES:
        return quantize(rng.normal(0, WEIGHT_STD, (num_rows, num_cols)).astype(np.float32), quant_type)
    dtype = BLOCK_DTYPES[quant_type]
    num_bytes = num_rows * row_bytes(quant_type, num_cols)
    blocks = rng.integers(0, 256, num_bytes, np.uint8).view(dtype)
    _set_scales(blocks, quant_type, np.ones(len(blocks), np.float32))
    # The spread differs by type, so measure it with unit scales and correct.
    spread = float(unpack(blocks.view(np.uint8), quant_type).values().std())
    _set_scales(blocks, quant_type, rng.uniform(0.7, 1.3, len(blocks)).astype(np.float32) * (WEIGHT_STD / spread))
    return blocks.view(np.uint8).reshape(num_rows, -1)


def _set_scales(blocks: np.ndarray, quant_type: QuantType, scale: np.ndarray) -> None:
    blocks["d"] = scale
    for field in ("m", "dmin"):
        if field in (blocks.dtype.names or ()):
            blocks[field] = scale * _MINIMUM_PER_SCALE[quant_type.name]

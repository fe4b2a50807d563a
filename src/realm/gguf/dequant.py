"""Dequantise every supported tensor type with numpy, bit-equal to ggml's reference.

A block is stored as bit fields; `unpack` turns blocks into small integers, scales and minimums. Every type's value is
``scale * integer (+ minimum)``. Source: ggml `ggml-quants.c`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from realm.core.quant import LAYOUTS, QuantType, row_bytes
from realm.core.types import Float32Array

Bytes: TypeAlias = NDArray[np.uint8]
Blocks: TypeAlias = NDArray[np.void]

_VALUES_AT_ONCE = 1 << 18  # so that temporaries stay in cache

BLOCK_DTYPES: dict[QuantType, np.dtype[Any]] = {
    QuantType.Q4_0: np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    QuantType.Q4_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)]),
    QuantType.Q5_0: np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]),
    QuantType.Q5_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]),
    QuantType.Q8_0: np.dtype([("d", "<f2"), ("qs", "i1", 32)]),
    QuantType.Q2_K: np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")]),
    QuantType.Q3_K: np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")]),
    QuantType.Q4_K: np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)]),
    QuantType.Q5_K: np.dtype(
        [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)]
    ),
    QuantType.Q6_K: np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]),
}
"""Fields of one stored block, for the types that have blocks."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Blocks as integers [n, groups, group size], with scale and minimum per group [n, groups, 1]."""

    integers: NDArray[np.int8] | NDArray[np.uint8]
    scale: Float32Array
    minimum: Float32Array | None = None

    def values(self) -> Float32Array:
        """The weights, [n, groups, group size]."""
        values = self.integers.astype(np.float32)
        values *= self.scale
        if self.minimum is not None:
            values += self.minimum
        return values


def dequantize(data: Bytes, quant_type: QuantType, num_cols: int) -> Float32Array:
    """Weights as float32.

    Args:
        data: The stored bytes, contiguous; any shape.
        quant_type: How they are stored.
        num_cols: Values in a row (K).

    Returns:
        float32 [N, K], newly allocated.
    """
    rows = data.reshape(-1, row_bytes(quant_type, num_cols))
    if quant_type in (QuantType.F32, QuantType.F16, QuantType.BF16):
        return _FLOATS[quant_type](rows)
    out = np.empty((len(rows), num_cols), np.float32)
    step = max(1, _VALUES_AT_ONCE // num_cols)
    for start in range(0, len(rows), step):
        part = out[start : start + step]
        part[:] = unpack(rows[start : start + step], quant_type).values().reshape(part.shape)
    return out


def unpack(data: Bytes, quant_type: QuantType) -> Unpacked:
    """The integers and scales of whole blocks; `quant_type` must be one that has blocks."""
    return _UNPACK[quant_type](np.ascontiguousarray(data).reshape(-1).view(BLOCK_DTYPES[quant_type]))


def _float(field: NDArray[Any]) -> Float32Array:
    """One half-precision field per block, as float32 [n, 1, 1]."""
    return field.astype(np.float32).reshape(-1, 1, 1)


def _bits(field: NDArray[Any], width: int, bits: int, run: int) -> Bytes:
    """Split bytes [n, m] into `bits`-wide numbers; each `run` bytes hold `run` numbers in the low bits, then the next.

    Returns uint8 [n, groups, width].
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    parts: Bytes = (field.reshape(len(field), -1, 1, run) >> shifts) & np.uint8((1 << bits) - 1)
    return parts.reshape(len(field), -1, width)


def _fifth_bits(field: NDArray[Any]) -> Bytes:
    """The fifth bits of 32 values out of 4 bytes, moved to their place: uint8 [n, 1, 32]."""
    bits: Bytes = np.unpackbits(field, axis=-1, bitorder="little").reshape(-1, 1, 32)
    return bits << np.uint8(4)


def _signed(integers: Bytes, zero: int) -> NDArray[np.int8]:
    return integers.view(np.int8) - np.int8(zero)


def _q4_0(blocks: Blocks) -> Unpacked:
    return Unpacked(_signed(_bits(blocks["qs"], 32, 4, 16), 8), _float(blocks["d"]))


def _q4_1(blocks: Blocks) -> Unpacked:
    return Unpacked(_bits(blocks["qs"], 32, 4, 16), _float(blocks["d"]), _float(blocks["m"]))


def _q5_0(blocks: Blocks) -> Unpacked:
    integers = _bits(blocks["qs"], 32, 4, 16) | _fifth_bits(blocks["qh"])
    return Unpacked(_signed(integers, 16), _float(blocks["d"]))


def _q5_1(blocks: Blocks) -> Unpacked:
    integers = _bits(blocks["qs"], 32, 4, 16) | _fifth_bits(blocks["qh"])
    return Unpacked(integers, _float(blocks["d"]), _float(blocks["m"]))


def _q8_0(blocks: Blocks) -> Unpacked:
    return Unpacked(blocks["qs"].reshape(-1, 1, 32), _float(blocks["d"]))


def _q2_k(blocks: Blocks) -> Unpacked:
    scales = blocks["scales"].reshape(-1, 16, 1)
    scale = _float(blocks["d"]) * (scales & np.uint8(15)).astype(np.float32)
    minimum = _float(blocks["dmin"]) * (scales >> np.uint8(4)).astype(np.float32)
    return Unpacked(_bits(blocks["qs"], 16, 2, 32), scale, -minimum)


def _q3_k(blocks: Blocks) -> Unpacked:
    packed = blocks["scales"]
    low = _bits(packed[:, :8], 16, 4, 8)
    high = _bits(packed[:, 8:], 16, 2, 4)
    scales = _signed(low | (high << np.uint8(4)), 32).reshape(-1, 16, 1)
    integers = _bits(blocks["qs"], 16, 2, 32) | (_bits(blocks["hmask"], 16, 1, 32) << np.uint8(2))
    return Unpacked(_signed(integers, 4), _float(blocks["d"]) * scales.astype(np.float32))


def _six_bit_scales(blocks: Blocks) -> tuple[Float32Array, Float32Array]:
    """Scale and minimum of the eight groups of a Q4_K or Q5_K block: the first four whole, the others in pieces."""
    low, minimum, rest = (blocks["scales"][:, i : i + 4] for i in (0, 4, 8))
    six, four, two = np.uint8(0x3F), np.uint8(0x0F), np.uint8(0x30)
    scales = np.concatenate([low & six, (rest & four) | ((low >> np.uint8(2)) & two)], axis=1)
    minimums = np.concatenate([minimum & six, (rest >> np.uint8(4)) | ((minimum >> np.uint8(2)) & two)], axis=1)
    return (
        _float(blocks["d"]) * scales.reshape(-1, 8, 1).astype(np.float32),
        _float(blocks["dmin"]) * minimums.reshape(-1, 8, 1).astype(np.float32),
    )


def _q4_k(blocks: Blocks) -> Unpacked:
    scale, minimum = _six_bit_scales(blocks)
    return Unpacked(_bits(blocks["qs"], 32, 4, 32), scale, -minimum)


def _q5_k(blocks: Blocks) -> Unpacked:
    scale, minimum = _six_bit_scales(blocks)
    integers = _bits(blocks["qs"], 32, 4, 32) | (_bits(blocks["qh"], 32, 1, 32) << np.uint8(4))
    return Unpacked(integers, scale, -minimum)


def _q6_k(blocks: Blocks) -> Unpacked:
    integers = _bits(blocks["ql"], 16, 4, 64) | (_bits(blocks["qh"], 16, 2, 32) << np.uint8(4))
    scale = _float(blocks["d"]) * blocks["scales"].reshape(-1, 16, 1).astype(np.float32)
    return Unpacked(_signed(integers, 32), scale)


_UNPACK: dict[QuantType, Callable[[Blocks], Unpacked]] = {
    QuantType.Q4_0: _q4_0,
    QuantType.Q4_1: _q4_1,
    QuantType.Q5_0: _q5_0,
    QuantType.Q5_1: _q5_1,
    QuantType.Q8_0: _q8_0,
    QuantType.Q2_K: _q2_k,
    QuantType.Q3_K: _q3_k,
    QuantType.Q4_K: _q4_k,
    QuantType.Q5_K: _q5_k,
    QuantType.Q6_K: _q6_k,
}


def _from_bf16(rows: Bytes) -> Float32Array:
    return (np.ascontiguousarray(rows).view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


_FLOATS: dict[QuantType, Callable[[Bytes], Float32Array]] = {
    QuantType.F32: lambda rows: np.ascontiguousarray(rows).view("<f4").astype(np.float32),
    QuantType.F16: lambda rows: np.ascontiguousarray(rows).view("<f2").astype(np.float32),
    QuantType.BF16: _from_bf16,
}
assert all(dtype.itemsize == LAYOUTS[quant_type].block_bytes for quant_type, dtype in BLOCK_DTYPES.items())

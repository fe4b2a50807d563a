"""Matrices kept in 16 bits where that loses nothing: adapters trained or saved in half precision."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realm.core.types import Float32Array

_SAMPLE = 64
_UPPER_HALF = 1 if sys.byteorder == "little" else 0


@dataclass(frozen=True, slots=True)
class CompactMatrix:
    """A float32 matrix as it is, as float16, or as the upper halves of its values (bfloat16)."""

    values: NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return self.values.nbytes

    def expand(self) -> Float32Array:
        """The matrix, bit for bit, read-only."""
        if self.values.dtype == np.uint16:
            matrix = (self.values.astype(np.uint32) << 16).view(np.float32)
        else:
            matrix = self.values.astype(np.float32, copy=False)
        matrix.flags.writeable = False
        return matrix


def compact(matrix: Float32Array) -> CompactMatrix:
    """Keep a contiguous matrix in 16 bits if `expand` then gives the same bits."""
    bits = matrix.view(np.uint32)
    if not matrix.view(np.uint16)[:, 1 - _UPPER_HALF :: 2].any():
        return CompactMatrix((bits >> 16).astype(np.uint16))
    # The first values tell nearly always, at a small part of the work.
    if _as_half(matrix.reshape(-1)[:_SAMPLE]) is not None and (half := _as_half(matrix)) is not None:
        return CompactMatrix(half)
    return CompactMatrix(matrix)


def _as_half(values: Float32Array) -> NDArray[np.float16] | None:
    with np.errstate(over="ignore", under="ignore"):
        half = values.astype(np.float16)
    is_exact = np.array_equal(half.astype(np.float32).view(np.uint32), values.view(np.uint32))
    return half if is_exact else None

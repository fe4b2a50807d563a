"""Quantise with numpy: the types that need no search for good scales, bit-equal to ggml's reference quantisers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from realm.core.errors import InvalidRequest
from realm.core.quant import LAYOUTS, QuantType
from realm.core.types import Float32Array
from realm.gguf.dequant import BLOCK_DTYPES, Blocks, Bytes


def quantize(weights: Float32Array, quant_type: QuantType) -> Bytes:
    """Store `weights` [N, K] as `quant_type`.

    Returns:
        uint8 [N, bytes per row].

    Raises:
        InvalidRequest: a K-quant, or K is not a multiple of the type's block.
    """
    layout = LAYOUTS[quant_type]
    num_cols = weights.shape[-1]
    check_quantizable(quant_type, num_cols)
    weights = np.ascontiguousarray(weights, np.float32)
    if quant_type in _FLOATS:
        stored = _FLOATS[quant_type](weights)
    else:
        stored = _quantize_blocks(weights.reshape(-1, layout.block_elements), quant_type)
    return stored.view(np.uint8).reshape(-1, num_cols // layout.block_elements * layout.block_bytes)


def check_quantizable(quant_type: QuantType, num_cols: int) -> None:
    """Raise InvalidRequest if `quantize` cannot store rows of `num_cols` values as `quant_type`."""
    if quant_type not in QUANTIZABLE:
        names = ", ".join(t.name for t in QUANTIZABLE)
        raise InvalidRequest(f"cannot quantise to {quant_type.name}, only to {names}", code="unsupported_quantization")
    if num_cols % LAYOUTS[quant_type].block_elements:
        raise InvalidRequest(
            f"rows of {num_cols} values cannot be {quant_type.name}, "
            f"which needs a multiple of {LAYOUTS[quant_type].block_elements}",
            code="unsupported_quantization",
        )


def _quantize_blocks(values: Float32Array, quant_type: QuantType) -> Blocks:
    blocks: Blocks = np.zeros(len(values), BLOCK_DTYPES[quant_type])
    _QUANTIZERS[quant_type](values, blocks)
    return blocks


def _inverse(scale: Float32Array) -> Float32Array:
    with np.errstate(divide="ignore"):
        inverse: Float32Array = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    return inverse


def _store_nibbles(integers: Bytes, blocks: Blocks) -> None:
    blocks["qs"] = (integers[:, :16] & np.uint8(15)) | (integers[:, 16:] << np.uint8(4))


def _store_fifth_bits(integers: Bytes, blocks: Blocks) -> None:
    blocks["qh"] = np.packbits(integers >> np.uint8(4), axis=-1, bitorder="little")


def _symmetric(values: Float32Array, blocks: Blocks, zero: int) -> Bytes:
    """Integers 0 .. 2 * zero - 1 around `zero`; the value of largest magnitude becomes 0."""
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=1, keepdims=True), axis=1)
    scale = largest / np.float32(-zero)
    blocks["d"] = scale[:, 0]
    integers = values * _inverse(scale) + np.float32(zero + 0.5)
    return integers.clip(0, 2 * zero - 1).astype(np.uint8)


def _affine(values: Float32Array, blocks: Blocks, top: int) -> Bytes:
    """Integers 0 .. top between the smallest and the largest value."""
    low = values.min(axis=1, keepdims=True)
    scale = (values.max(axis=1, keepdims=True) - low) / np.float32(top)
    blocks["d"], blocks["m"] = scale[:, 0], low[:, 0]
    integers: Float32Array = (values - low) * _inverse(scale) + np.float32(0.5)
    return integers.clip(0, top).astype(np.uint8)


def _q4_0(values: Float32Array, blocks: Blocks) -> None:
    _store_nibbles(_symmetric(values, blocks, 8), blocks)


def _q4_1(values: Float32Array, blocks: Blocks) -> None:
    _store_nibbles(_affine(values, blocks, 15), blocks)


def _q5_0(values: Float32Array, blocks: Blocks) -> None:
    integers = _symmetric(values, blocks, 16)
    _store_nibbles(integers, blocks)
    _store_fifth_bits(integers, blocks)


def _q5_1(values: Float32Array, blocks: Blocks) -> None:
    integers = _affine(values, blocks, 31)
    _store_nibbles(integers, blocks)
    _store_fifth_bits(integers, blocks)


def _q8_0(values: Float32Array, blocks: Blocks) -> None:
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    blocks["d"] = scale[:, 0]
    scaled = values * _inverse(scale)
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    # Round half away from zero, as C's roundf does.
    blocks["qs"] = np.sign(scaled) * (whole + np.floor(2 * (magnitude - whole)))


_QUANTIZERS: dict[QuantType, Callable[[Float32Array, Blocks], None]] = {
    QuantType.Q4_0: _q4_0,
    QuantType.Q4_1: _q4_1,
    QuantType.Q5_0: _q5_0,
    QuantType.Q5_1: _q5_1,
    QuantType.Q8_0: _q8_0,
}


def _to_bf16(weights: Float32Array) -> NDArray[np.uint16]:
    bits = weights.view(np.uint32)
    quiet_nan = (bits & np.uint32(0xFFFF0000)) | np.uint32(0x00400000)
    # Round to nearest, ties to even; in 64 bits, for the largest values carry.
    rounded = bits.astype(np.uint64) + np.uint64(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (np.where(np.isnan(weights), quiet_nan, rounded) >> np.uint64(16)).astype(np.uint16)


def _to_f16(weights: Float32Array) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return weights.astype(np.float16)


_FLOATS: dict[QuantType, Callable[[Float32Array], NDArray[np.generic]]] = {
    QuantType.F32: lambda weights: weights,
    QuantType.F16: _to_f16,
    QuantType.BF16: _to_bf16,
}

QUANTIZABLE: tuple[QuantType, ...] = (*_FLOATS, *_QUANTIZERS)
"""The types `quantize` can write."""

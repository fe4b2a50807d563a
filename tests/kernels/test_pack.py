"""Packing loses nothing: what comes out of the tiles is what the gguf package makes of the file's bytes."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from realm import _cpu
from realm.core.quant import LAYOUTS, QuantType
from realm.gguf.reader import GGUFFile
from realm.testing.quants import random_blocks

ALL_TYPES = list(QuantType)


def oracle(data: np.ndarray, quant_type: QuantType) -> np.ndarray:
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType(int(quant_type)))


@pytest.mark.parametrize("quant_type", ALL_TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("num_rows", [1, 16, 37])
def test_unpack_equals_gguf_dequantize(quant_type: QuantType, num_rows: int) -> None:
    num_cols = 2 * max(32, LAYOUTS[quant_type].block_elements)
    data = random_blocks(quant_type, num_rows, num_cols, np.random.default_rng(num_rows))
    packed = _cpu.pack(quant_type, data.ravel(), num_rows, num_cols)
    np.testing.assert_array_equal(_cpu.unpack(quant_type, packed, num_rows, num_cols), oracle(data, quant_type))


@pytest.mark.parametrize("quant_type", [t for t in ALL_TYPES if LAYOUTS[t].block_elements > 1], ids=lambda t: t.name)
def test_every_bit_pattern_but_infinite_scales_survives(quant_type: QuantType) -> None:
    num_rows, num_cols = 32, 512
    size = num_rows * num_cols // LAYOUTS[quant_type].block_elements * LAYOUTS[quant_type].block_bytes
    data = np.random.default_rng(7).integers(0, 256, size, np.uint8).reshape(num_rows, -1)
    with np.errstate(invalid="ignore", over="ignore"):  # a random f16 scale may be infinite or NaN
        expected = oracle(data, quant_type)
    packed = _cpu.pack(quant_type, data.ravel(), num_rows, num_cols)
    got = _cpu.unpack(quant_type, packed, num_rows, num_cols)
    finite = np.isfinite(expected)
    assert finite.mean() > 0.8
    np.testing.assert_array_equal(got[finite], expected[finite])


@pytest.mark.parametrize("quant_type", ALL_TYPES, ids=lambda t: t.name)
def test_packed_size_is_about_the_gguf_size(quant_type: QuantType) -> None:
    layout = LAYOUTS[quant_type]
    gguf_bytes = 4096 * 4096 // layout.block_elements * layout.block_bytes
    assert _cpu.packed_bytes(quant_type, 4096, 4096) <= gguf_bytes * 1.04


def test_wrong_sizes_are_refused() -> None:
    data = np.zeros(16 * 20, np.uint8)
    with pytest.raises(ValueError, match="do not match"):
        _cpu.pack(QuantType.Q4_1, data[:-1], 16, 32)
    with pytest.raises(ValueError, match="cannot be packed"):
        _cpu.pack(QuantType.Q4_1, data, 16, 33)
    with pytest.raises(ValueError, match="cannot be packed"):
        _cpu.pack(9, data, 16, 32)
    with pytest.raises(ValueError, match="cannot be packed"):
        _cpu.pack(QuantType.Q6_K, data, 16, 128)


@pytest.mark.model
def test_real_tensors(gguf_models: list[Path]) -> None:
    seen = set()
    for path in gguf_models:
        with GGUFFile.open(path) as model:
            for tensor in model.tensors.values():
                if len(tensor.shape) == 2 and tensor.type_id not in seen:
                    seen.add(tensor.type_id)
                    data = np.ascontiguousarray(tensor.data[:48])
                    packed = _cpu.pack(tensor.type_id, data.ravel(), len(data), tensor.shape[1])
                    got = _cpu.unpack(tensor.type_id, packed, len(data), tensor.shape[1])
                    np.testing.assert_array_equal(got, oracle(data, tensor.quant_type))
    assert {QuantType.Q4_1, QuantType.Q8_0, QuantType.Q5_0, QuantType.Q4_K, QuantType.Q6_K} <= seen

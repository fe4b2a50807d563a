"""The matrix kernels: bit-equal to the scalar reference, on every instruction set, under every batching."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from realm import _cpu
from realm.core.quant import LAYOUTS, QuantType
from realm.gguf.dequant import BLOCK_DTYPES
from realm.gguf.reader import GGUFFile
from realm.testing.quants import random_blocks

ALL_TYPES = list(QuantType)
FLOAT_TYPES = {QuantType.F32, QuantType.F16, QuantType.BF16}
INTEGER_TYPES = [t for t in ALL_TYPES if t not in FLOAT_TYPES]
ISAS = _cpu.available_isas()
MAX_ROWS = 37

by_type = pytest.mark.parametrize("quant_type", ALL_TYPES, ids=lambda t: t.name)


def shapes(quant_type: QuantType) -> list[tuple[int, int]]:
    """(N, K): N off and on the tile size, K of one block and of several."""
    if LAYOUTS[quant_type].block_elements == 256:
        return [(17, 256), (40, 768), (1, 512)]
    return [(16, 32), (17, 64), (50, 288), (3, 576)]


def activations(num_rows: int, num_cols: int, seed: int = 0) -> np.ndarray:
    """Rows like those in a model, and rows that are zero, tiny, huge, or zero but for one value."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (num_rows, num_cols)) * rng.lognormal(0, 1, (1, num_cols))
    special = {1: 0.0, 3: 1e-12, 5: 1e-36, 7: 1e6}
    for row, factor in special.items():
        if row < num_rows:
            x[row] *= factor
    if num_rows > 9:
        x[9, : num_cols - 1] = 0
    return x.astype(np.float32)


def dequantize(data: np.ndarray, quant_type: QuantType) -> np.ndarray:
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType(int(quant_type)))


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@by_type
def test_bit_equal_to_the_scalar_reference_for_every_batch_size_and_isa(quant_type: QuantType) -> None:
    for num_outputs, num_inputs in shapes(quant_type):
        data = random_blocks(quant_type, num_outputs, num_inputs, np.random.default_rng(num_inputs)).ravel()
        x = activations(MAX_ROWS, num_inputs)
        expected = _cpu.reference_matmul(quant_type, data, x, num_outputs)
        packed = _cpu.pack(quant_type, data, num_outputs, num_inputs)
        for isa in ISAS:
            for num_rows in range(1, MAX_ROWS + 1):
                got = _cpu.matmul(quant_type, packed, x[:num_rows], num_outputs, isa)
                assert_same_bits(got, expected[:num_rows])


@by_type
@pytest.mark.parametrize("isa", ISAS)
def test_residuals_of_outlier_blocks_are_bit_equal_to_the_scalar_reference(quant_type: QuantType, isa: str) -> None:
    """Most panels then mix rows with a residual and rows without."""
    num_outputs, num_inputs = shapes(quant_type)[1]
    data = random_blocks(quant_type, num_outputs, num_inputs, np.random.default_rng(6)).ravel()
    packed = _cpu.pack(quant_type, data, num_outputs, num_inputs)
    x = np.random.default_rng(7).normal(size=(MAX_ROWS, num_inputs)).astype(np.float32)
    outlier = 2.5  # that a block of 32 normal values has one is a matter of chance: 1 - 0.9876^32 = 0.33
    share = (np.abs(x).reshape(MAX_ROWS, -1, 32).max(axis=2) > outlier).mean()
    assert 0.2 < share < 0.5
    expected = _cpu.reference_matmul(quant_type, data, x, num_outputs, outlier)
    if quant_type not in FLOAT_TYPES:
        assert (expected != _cpu.reference_matmul(quant_type, data, x, num_outputs)).any()
    for num_rows in range(1, MAX_ROWS + 1):
        for rows in (slice(0, num_rows), slice(MAX_ROWS - num_rows, MAX_ROWS)):
            got = _cpu.matmul(quant_type, packed, x[rows], num_outputs, isa, outlier=outlier)
            assert_same_bits(got, expected[rows])


@by_type
@pytest.mark.parametrize("isa", ISAS)
def test_a_row_depends_neither_on_its_place_nor_on_the_others(quant_type: QuantType, isa: str) -> None:
    num_outputs, num_inputs = shapes(quant_type)[1]
    rng = np.random.default_rng(5)
    data = random_blocks(quant_type, num_outputs, num_inputs, rng).ravel()
    packed = _cpu.pack(quant_type, data, num_outputs, num_inputs)
    x = activations(MAX_ROWS, num_inputs)
    alone = np.concatenate([_cpu.matmul(quant_type, packed, x[i : i + 1], num_outputs, isa) for i in range(MAX_ROWS)])
    for _ in range(20):
        chosen = rng.permutation(MAX_ROWS)[: rng.integers(1, MAX_ROWS + 1)]
        threads = int(rng.integers(1, 5))
        got = _cpu.matmul(quant_type, packed, x[chosen], num_outputs, isa, threads)
        assert_same_bits(got, alone[chosen])


@pytest.mark.parametrize("quant_type", [QuantType.Q4_1, QuantType.Q6_K, QuantType.F16], ids=lambda t: t.name)
def test_rows_beyond_one_cache_chunk(quant_type: QuantType) -> None:
    num_outputs, num_inputs, num_rows = 32, 2048, 333  # panels of 152 rows fill the share of the cache
    data = random_blocks(quant_type, num_outputs, num_inputs, np.random.default_rng(1)).ravel()
    packed = _cpu.pack(quant_type, data, num_outputs, num_inputs)
    x = activations(num_rows, num_inputs)
    whole = _cpu.matmul(quant_type, packed, x, num_outputs, ISAS[-1])
    parts = [_cpu.matmul(quant_type, packed, x[i : i + 5], num_outputs, ISAS[-1]) for i in range(0, num_rows, 5)]
    assert_same_bits(whole, np.concatenate(parts))


@by_type
@pytest.mark.parametrize("isa", ISAS)
def test_accumulate_adds_the_finished_sum(quant_type: QuantType, isa: str) -> None:
    num_outputs, num_inputs = shapes(quant_type)[1]
    data = random_blocks(quant_type, num_outputs, num_inputs, np.random.default_rng(2)).ravel()
    packed = _cpu.pack(quant_type, data, num_outputs, num_inputs)
    x = activations(9, num_inputs)
    plain = _cpu.matmul(quant_type, packed, x, num_outputs, isa)
    assert_same_bits(_cpu.matmul(quant_type, packed, x, num_outputs, isa, initial=2.5), plain + np.float32(2.5))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fill", [0x00, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("quant_type", INTEGER_TYPES, ids=lambda t: t.name)
def test_integer_sums_do_not_saturate(quant_type: QuantType, fill: int, isa: str) -> None:
    """All quants at one extreme and all activations at +-127: the largest sums that can occur."""
    data = random_blocks(quant_type, 16, 256, np.random.default_rng(3))
    blocks = data.view(BLOCK_DTYPES[quant_type])
    for field in set(blocks.dtype.names) - {"d", "m", "dmin"}:
        blocks[field] = np.uint8(fill).astype(blocks.dtype[field].base)
    for x in (np.ones((3, 256)), -np.ones((3, 256)), np.tile([1.0, -1.0], (3, 128))):
        x = x.astype(np.float32)
        packed = _cpu.pack(quant_type, data.ravel(), 16, 256)
        expected = _cpu.reference_matmul(quant_type, data.ravel(), x, 16)
        assert np.isfinite(expected).all()
        assert_same_bits(_cpu.matmul(quant_type, packed, x, 16, isa), expected)


def error_bound(x: np.ndarray, weights: np.ndarray, quant_type: QuantType) -> np.ndarray:
    """[M, N]. Rounding to int8 moves an activation by at most half a step of its half block: amax / 254. To that add
    float rounding: at most 2 roundings for each accumulation (of sums below sum |w||x|), with 2^-24 each."""
    steps = np.abs(x).reshape(len(x), -1, 16).max(axis=2) / 254
    terms = np.abs(x) @ np.abs(weights).T
    rounding = terms * x.shape[1] * 2.0**-23
    if quant_type in FLOAT_TYPES:
        return rounding
    return steps @ np.abs(weights).reshape(len(weights), -1, 16).sum(axis=2).T * 1.0001 + rounding


@pytest.mark.parametrize("quant_type", INTEGER_TYPES, ids=lambda t: t.name)
def test_with_residuals_everywhere_the_product_is_nearly_exact(quant_type: QuantType) -> None:
    num_outputs, num_inputs = 64, 1024
    data = random_blocks(quant_type, num_outputs, num_inputs, np.random.default_rng(4))
    weights = dequantize(data, quant_type).astype(np.float64)
    x = np.random.default_rng(8).normal(size=(10, num_inputs)).astype(np.float32)
    expected = x.astype(np.float64) @ weights.T
    packed = _cpu.pack(quant_type, data.ravel(), num_outputs, num_inputs)
    got = _cpu.matmul(quant_type, packed, x, num_outputs, ISAS[-1], outlier=0.0)
    assert np.linalg.norm(got - expected) < 5e-5 * np.linalg.norm(expected)


@by_type
def test_error_against_the_dequantised_product(quant_type: QuantType) -> None:
    num_outputs, num_inputs = 64, 1024
    data = random_blocks(quant_type, num_outputs, num_inputs, np.random.default_rng(4))
    weights = dequantize(data, quant_type).astype(np.float64)
    x = activations(32, num_inputs)
    packed = _cpu.pack(quant_type, data.ravel(), num_outputs, num_inputs)
    got = _cpu.matmul(quant_type, packed, x, num_outputs, ISAS[-1]).astype(np.float64)
    expected = x.astype(np.float64) @ weights.T
    usual = [row for row in range(len(x)) if row != 5]  # row 5 is below what the panels hold: zero
    assert (np.abs(got - expected) <= error_bound(x.astype(np.float64), weights, quant_type))[usual].all()
    assert np.abs(got[5]).max() <= np.abs(x[5]).max() * np.abs(weights).sum(axis=1).max()
    typical = np.linalg.norm(got[10:] - expected[10:]) / np.linalg.norm(expected[10:])
    assert typical < (1e-6 if quant_type in FLOAT_TYPES else 0.012)


@pytest.mark.model
def test_real_tensors_of_every_type(gguf_models: list[Path]) -> None:
    seen = set()
    for path in gguf_models:
        with GGUFFile.open(path) as model:
            for tensor in model.tensors.values():
                if len(tensor.shape) == 2 and tensor.type_id not in seen:
                    seen.add(tensor.type_id)
                    num_inputs = tensor.shape[1]
                    data = np.ascontiguousarray(tensor.data[:40]).ravel()
                    x = activations(11, num_inputs, seed=tensor.type_id)
                    packed = _cpu.pack(tensor.type_id, data, 40, num_inputs)
                    expected = _cpu.reference_matmul(tensor.type_id, data, x, 40)
                    for isa in ISAS:
                        assert_same_bits(_cpu.matmul(tensor.type_id, packed, x, 40, isa), expected)
    assert {QuantType.Q4_1, QuantType.Q8_0, QuantType.Q5_0, QuantType.Q4_K, QuantType.Q6_K} <= seen

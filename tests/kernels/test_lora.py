"""The adapters' side path: bit-equal to the scalar reference, whoever else is in the step, and close to float."""

import itertools

import numpy as np
import pytest

from realm import _cpu

ISAS = _cpu.available_isas()
INT8, F32 = 0, 1
STORES = pytest.mark.parametrize("store", [INT8, F32], ids=["int8", "f32"])
NUM_OUTPUTS = [48, 17, 32]  # like q, k, v; one that is not a multiple of the tile
NUM_INPUTS = 96


def random_parts(rng: np.random.Generator, ranks: list[int | None], num_inputs: int = NUM_INPUTS) -> list:
    """One (A, B, scale) for each matrix; None where the adapter leaves it alone."""
    return [
        rank
        and (
            rng.normal(0, 0.05, (rank, num_inputs)).astype(np.float32),
            rng.normal(0, 0.02, (n, rank)).astype(np.float32),
            float(rng.uniform(0.5, 4)),
        )
        for rank, n in zip(ranks, NUM_OUTPUTS, strict=True)
    ]


def lora_module(store: int, parts: list, num_outputs: list[int]) -> object:
    return _cpu.LoraModule(store, parts, num_outputs, _cpu.LoraArena(1 << 20))


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def inputs(num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (num_rows, NUM_INPUTS)).astype(np.float32)
    return x, rng.normal(0, 1, (num_rows, sum(NUM_OUTPUTS))).astype(np.float32)


@STORES
@pytest.mark.parametrize(
    "ranks", [[1, 1, 1], [4, 4, 4], [3, 5, 7], [16, 16, 16], [8, None, 64], [None, 33, None], [2, 16, 1]]
)
def test_bit_equal_to_the_scalar_reference(store: int, ranks: list[int | None]) -> None:
    module = lora_module(store, random_parts(np.random.default_rng(1), ranks), NUM_OUTPUTS)
    x, y = inputs(21)
    for begin, end in [(0, 1), (0, 21), (3, 4), (5, 18), (7, 9), (16, 21)]:
        expected = _cpu.reference_lora([(begin, end, module)], x, y, NUM_OUTPUTS)
        assert (expected[begin:end] != y[begin:end]).any()
        assert_same_bits(np.delete(expected, np.s_[begin:end], axis=0), np.delete(y, np.s_[begin:end], axis=0))
        for isa in ISAS:
            assert_same_bits(_cpu.lora([(begin, end, module)], x, y, NUM_OUTPUTS, isa), expected)


@STORES
@pytest.mark.parametrize("isa", ISAS)
def test_bit_equal_where_blocks_have_residuals(store: int, isa: str) -> None:
    module = lora_module(store, random_parts(np.random.default_rng(3), [16, 21, 2]), NUM_OUTPUTS)
    x, y = inputs(21)
    expected = _cpu.reference_lora([(0, 21, module)], x, y, NUM_OUTPUTS, outlier=2.5)
    assert (store == INT8) == (expected != _cpu.reference_lora([(0, 21, module)], x, y, NUM_OUTPUTS)).any()
    for begin, end in [(0, 21), (5, 18)]:
        got = _cpu.lora([(begin, end, module)], x, y, NUM_OUTPUTS, isa, outlier=2.5)
        assert_same_bits(got[begin:end], expected[begin:end])


@STORES
@pytest.mark.parametrize("isa", ISAS)
def test_a_row_depends_on_its_own_adapter_only(store: int, isa: str) -> None:
    rng = np.random.default_rng(2)
    modules = [
        None,
        *(
            lora_module(store, random_parts(rng, ranks), NUM_OUTPUTS)
            for ranks in ([16, 16, 16], [4, None, 8], [7, 1, 30])
        ),
    ]
    x, y = inputs(37)
    alone = [
        np.concatenate([_cpu.lora([(0, 1, m)], x[i : i + 1], y[i : i + 1], NUM_OUTPUTS, isa) for i in range(37)])
        for m in modules
    ]
    for _ in range(20):
        chosen = rng.permutation(37)[: rng.integers(1, 38)]
        which = rng.integers(0, len(modules), len(chosen))
        which = np.sort(which) if rng.random() < 0.5 else which
        cuts = [0, *(np.flatnonzero(np.diff(which)) + 1), len(which)]
        rows = [(int(a), int(b), modules[which[a]]) for a, b in itertools.pairwise(cuts)]
        got = _cpu.lora(rows, x[chosen], y[chosen], NUM_OUTPUTS, isa, int(rng.integers(1, 5)))
        assert_same_bits(got, np.stack([alone[m][i] for m, i in zip(which, chosen, strict=True)]))


def float_result(parts: list, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    out, column = y.astype(np.float64), 0
    for part, n in zip(parts, NUM_OUTPUTS, strict=True):
        if part is not None:
            a, b, scale = (np.asarray(p, np.float64) for p in part)
            out[:, column : column + n] += scale * (x.astype(np.float64) @ a.T @ b.T)
        column += n
    return out


@pytest.mark.parametrize("magnitude", [1.0, 1e-6, 1e4])
def test_error_against_float(magnitude: float) -> None:
    rng = np.random.default_rng(3)
    parts = [(a * np.float32(magnitude), b / np.float32(magnitude), s) for a, b, s in random_parts(rng, [16, 8, 32])]
    x, y = inputs(32)
    expected = float_result(parts, x, y)
    for store, tolerance in ((INT8, 0.02), (F32, 1e-6)):
        got = _cpu.lora([(0, 32, lora_module(store, parts, NUM_OUTPUTS))], x, y, NUM_OUTPUTS, ISAS[-1])
        assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected - y)


def test_zero_matrices_change_nothing() -> None:
    x, y = inputs(5)
    zeros = [(np.zeros((4, NUM_INPUTS), np.float32), np.zeros((n, 4), np.float32), 2.0) for n in NUM_OUTPUTS]
    for store in (INT8, F32):
        module = lora_module(store, zeros, NUM_OUTPUTS)
        assert_same_bits(_cpu.lora([(0, 5, module)], x, y, NUM_OUTPUTS, ISAS[-1]), y)


def test_small_ranks_are_not_padded_to_whole_tiles() -> None:
    rng = np.random.default_rng(4)
    sizes = {
        rank: lora_module(INT8, random_parts(rng, [None, rank, None], 576), NUM_OUTPUTS).num_bytes
        for rank in (4, 8, 16)
    }
    assert sizes[4] < 0.3 * sizes[16]
    assert sizes[8] < 0.55 * sizes[16]


def test_shapes_that_do_not_fit_are_refused() -> None:
    parts = random_parts(np.random.default_rng(5), [4, 4, 4])
    with pytest.raises(ValueError, match="do not fit"):
        lora_module(INT8, [(parts[0][0][:3], *parts[0][1:]), *parts[1:]], NUM_OUTPUTS)
    with pytest.raises(ValueError, match="one part"):
        lora_module(INT8, parts[:2], NUM_OUTPUTS)
    with pytest.raises(ValueError, match="nothing to add"):
        lora_module(INT8, [None, None, None], NUM_OUTPUTS)

"""A head read in part: the largest logits, with the bits that the whole head gives, on every instruction set."""

import numpy as np
import pytest

from realm import _cpu
from realm.core.quant import QuantType
from realm.core.types import Float32Array
from realm.testing.quants import random_blocks

NUM_INPUTS = 96
MAX_SCREENED_ROWS = 4
BLOCK = np.dtype([("d", "<f2"), ("q", "i1", 32)])

by_isa = pytest.mark.parametrize("isa", _cpu.available_isas())


class HeadOnly:
    """A model of a table of hidden states, a norm that leaves them as they are but for a factor, and a Q8_0 head."""

    def __init__(self, states: Float32Array, head: np.ndarray, isa: str, num_threads: int = 2) -> None:
        num_outputs, num_inputs = len(head), states.shape[1]
        table = np.zeros((max(num_outputs, len(states)), num_inputs), np.float32)
        table[: len(states)] = states
        program = _cpu.Program(
            num_threads=num_threads,
            max_tokens=16,
            max_logit_rows=16,
            max_positions=16,
            vocab_size=len(table),
            num_blocks=16,
            block_tokens=16,
            kv_type="f16",
            isa=isa,
        )
        kinds = {QuantType.F32: len(table), _cpu.Q8_0_PLANES: num_outputs}
        program.reserve_weights(64 * 2 + sum(_cpu.packed_bytes(kind, n, num_inputs) for kind, n in kinds.items()))
        embedding = program.add_matrix(QuantType.F32, table.view(np.uint8).ravel(), len(table), num_inputs)
        matrix = program.add_matrix(_cpu.Q8_0_PLANES, head.view(np.uint8).ravel(), num_outputs, num_inputs)
        x = program.add_value(num_inputs, True, False, False)
        program.embed(embedding, 1.0, x)
        normed = program.add_value(num_inputs, False, True, True)
        program.rms_norm(program.keep_judged(x), program.add_vector(np.ones(num_inputs, np.float32)), 1e-6, -1, normed)
        program.logits(normed, [matrix], [-1])
        self.program = program
        self._logits = program.logits_buffer()

    def logits(self, rows: list[int], likeliest_only: bool) -> Float32Array:
        count = len(rows)
        ids = np.array(rows, np.int32)
        starts = np.arange(count + 1, dtype=np.int32)
        tables = np.arange(count, dtype=np.int32)[:, None]
        nobody = np.full(count, -1, np.int32)
        self.program.step(ids, starts, np.zeros(count, np.int32), tables, starts[:-1], nobody, likeliest_only)
        return self._logits[:count].copy()

    def tokens(self, logits: Float32Array) -> list[int]:
        ids = np.empty(len(logits), np.int32)
        _cpu.Sampler(self.program).argmax(logits, ids)
        return ids.tolist()

    def check(self, rows: list[int]) -> float:
        """That a screened step gives the largest logits their bits and no other is above; the share left out."""
        whole, screened = self.logits(rows, False), self.logits(rows, True)
        left_out = np.isneginf(screened) & ~np.isneginf(whole)
        np.testing.assert_array_equal(np.where(left_out, whole, screened).view(np.uint32), whole.view(np.uint32))
        assert np.isfinite(whole[left_out]).all()
        for row, logits in enumerate(whole):
            numbers = logits[~np.isnan(logits)]
            assert not left_out[row][logits == numbers.max(initial=-np.inf)].any()
        assert self.tokens(whole) == self.tokens(screened)
        return float(left_out.mean())


def blocks(quants: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """A Q8_0 matrix of integers [N, K] and scales [N, K / 32]."""
    head = np.zeros((len(quants), quants.shape[1] // 32), BLOCK)
    head["q"] = quants.reshape(len(quants), -1, 32)
    head["d"] = scales
    return head


def random_head(num_outputs: int, rng: np.random.Generator, num_inputs: int = NUM_INPUTS) -> np.ndarray:
    return random_blocks(QuantType.Q8_0, num_outputs, num_inputs, rng).reshape(num_outputs, -1).view(BLOCK)


def hidden_states(rng: np.random.Generator, num_inputs: int = NUM_INPUTS) -> Float32Array:
    """Ordinary ones, one with outliers (which leave residuals), huge, tiny, and zero."""
    states = rng.normal(size=(8, num_inputs)).astype(np.float32)
    states[2, ::37] *= 60
    states[3] *= 1e15
    states[4] *= 1e-12
    states[5] = 0
    states[6, : num_inputs - 1] = 0
    return states


@by_isa
def test_planes_put_together_are_the_matrix(isa: str) -> None:
    """Bit for bit, for all numbers of rows and with residuals; wide rows are not put together in memory first."""
    rng = np.random.default_rng(0)
    for num_outputs, num_inputs in ((1, 32), (17, 64), (50, 288), (33, 4128)):
        data = random_blocks(QuantType.Q8_0, num_outputs, num_inputs, rng).ravel()
        planes = _cpu.pack(_cpu.Q8_0_PLANES, data, num_outputs, num_inputs)
        whole = _cpu.pack(QuantType.Q8_0, data, num_outputs, num_inputs)
        np.testing.assert_array_equal(
            _cpu.unpack(_cpu.Q8_0_PLANES, planes, num_outputs, num_inputs),
            _cpu.unpack(QuantType.Q8_0, whole, num_outputs, num_inputs),
        )
        x = rng.normal(size=(37, num_inputs)).astype(np.float32)
        for num_rows in (*range(1, 25), 37):
            expected = _cpu.matmul(QuantType.Q8_0, whole, x[:num_rows], num_outputs, isa, outlier=2.5)
            got = _cpu.matmul(_cpu.Q8_0_PLANES, planes, x[:num_rows], num_outputs, isa, outlier=2.5)
            np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@by_isa
@pytest.mark.parametrize("num_outputs", [1, 16, 33, 1000])
def test_the_largest_logits_are_those_of_the_whole_head(isa: str, num_outputs: int) -> None:
    rng = np.random.default_rng(num_outputs)
    states = hidden_states(rng)
    for num_threads in (1, 3):
        head = HeadOnly(states, random_head(num_outputs, rng), isa, num_threads)
        for row in range(len(states)):
            head.check([row])
        for count in range(2, MAX_SCREENED_ROWS + 1):
            for _ in range(3):
                head.check(rng.integers(0, len(states), count).tolist())


@by_isa
def test_most_is_left_out_where_one_logit_stands_out(isa: str) -> None:
    rng = np.random.default_rng(1)
    states = rng.normal(size=(4, 256)).astype(np.float32)
    quants = rng.integers(-127, 128, (4096, 256))
    for row, token in enumerate((7, 1000, 4095, 2000)):
        quants[token] = np.clip(np.round(states[row] * 50), -127, 127)
    head = HeadOnly(states, blocks(quants, np.full((4096, 8), 0.01)), isa)
    for row in range(4):
        assert head.check([row]) > 0.5
    assert head.program.skipped_bytes > 0
    before = head.program.skipped_bytes
    head.logits([0], False)
    assert head.program.skipped_bytes == before


@by_isa
def test_equal_largest_logits_are_all_computed(isa: str) -> None:
    rng = np.random.default_rng(2)
    rows = random_head(1, rng)
    head = np.repeat(rows, 200, axis=0)
    other = random_head(600, rng)
    mixed = np.concatenate([other[:300], head, other[300:]])[rng.permutation(800)]
    for matrix in (head, mixed):
        model = HeadOnly(hidden_states(rng), matrix, isa)
        for row in range(8):
            model.check([row])


@by_isa
def test_errors_as_large_as_the_bound_are_borne(isa: str) -> None:
    """Lower bits that all err in the direction of the activations: what is cut off is as much as it may be."""
    rng = np.random.default_rng(3)
    num_outputs = 640
    states = np.sign(rng.normal(size=(6, NUM_INPUTS))).astype(np.float32)
    states[3:] *= rng.lognormal(0, 1, (3, NUM_INPUTS))
    for row in range(len(states)):
        upper = 16 * rng.integers(-8, 8, (num_outputs, NUM_INPUTS))
        direction = rng.choice([-1.0, 1.0], (num_outputs, 1)) * np.sign(states[row])
        lower = np.where(direction > 0, 15, 0)
        # The upper bits all sum up to about the same, so that the lower ones decide.
        upper[:] = upper[0]
        flips = rng.integers(0, 2, upper.shape)
        lower = np.abs(lower - flips)
        head = HeadOnly(states, blocks(upper + lower, np.full((num_outputs, NUM_INPUTS // 32), 0.02)), isa)
        head.check([row])


@by_isa
def test_scales_that_are_negative_zero_infinite_or_no_numbers(isa: str) -> None:
    rng = np.random.default_rng(4)
    states = hidden_states(rng)
    states[7, 5] = np.nan
    head = random_head(500, rng).copy()
    head["d"][::3] *= -1
    head["d"][::5] = 0
    head["d"][rng.integers(0, 500, 40), 1] = np.float16(65504)
    for bad in (None, np.inf, -np.inf, np.nan):
        if bad is not None:
            head["d"][123, 2] = bad
        model = HeadOnly(states, head, isa)
        for row in range(len(states)):
            model.check([row])


@by_isa
def test_screening_pauses_where_nothing_can_be_left_out(isa: str) -> None:
    """The same bits all the time, and no more than one step in 64 that reads the upper bits in vain."""
    rng = np.random.default_rng(5)
    head = np.repeat(random_head(1, rng), 400, axis=0)
    model = HeadOnly(hidden_states(rng), head, isa)
    read_in_vain = 0
    for _ in range(200):
        before = model.program.skipped_bytes
        assert not np.isneginf(model.logits([0], True)).any()
        read_in_vain += model.program.skipped_bytes < before
    assert 2 <= read_in_vain <= 10


@by_isa
def test_more_rows_than_are_screened_get_all_logits(isa: str) -> None:
    rng = np.random.default_rng(6)
    model = HeadOnly(hidden_states(rng), random_head(300, rng), isa)
    rows = list(range(MAX_SCREENED_ROWS + 1))
    assert not np.isneginf(model.logits(rows, True)).any()
    np.testing.assert_array_equal(model.logits(rows, True), model.logits(rows, False))

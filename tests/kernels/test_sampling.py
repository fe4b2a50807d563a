"""The native sampler against its definition in numpy, on every instruction set of this machine."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from realm import _cpu
from realm.kernels.cpu import NativeSampler
from realm.kernels.sampling_reference import SampleInputs, adjusted_logits, kept_weights, sample_rows, uniform

ISAS = _cpu.available_isas()
NO_IDS = np.zeros(0, np.int32)


def inputs(num_rows: int, **given: object) -> SampleInputs:
    defaults = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seeds": 7,
        "num_logprobs": -1,
    }
    dtypes = {"top_k": np.int32, "num_logprobs": np.int32, "seeds": np.int64}
    values = {
        name: np.full(num_rows, given.get(name, default), dtypes.get(name, np.float32))
        for name, default in defaults.items()
    }
    starts = np.zeros(num_rows + 1, np.int32)
    return SampleInputs(
        positions=np.arange(num_rows, dtype=np.int64),
        bias_starts=starts,
        bias_ids=NO_IDS,
        bias_values=np.zeros(0, np.float32),
        history_starts=starts,
        history_ids=NO_IDS,
        history_counts=NO_IDS,
        **values,
    )


def peaked_logits(num_rows: int, vocab_size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((num_rows, vocab_size)) * 3).astype(np.float32)


def assert_explained(logits: np.ndarray, given: SampleInputs, tokens: np.ndarray) -> None:
    """Each token is the one whose share of the exact cumulative weight holds u, but for float rounding at its edges."""
    for s, token in enumerate(tokens):
        row = adjusted_logits(logits[s], given, s)
        weights = kept_weights(
            row, float(given.temperature[s]), int(given.top_k[s]), float(given.top_p[s]), float(given.min_p[s])
        )
        running = np.cumsum(weights) / weights.sum()
        u = uniform(int(given.seeds[s]), int(given.positions[s]))
        below = running[token - 1] if token else 0.0
        assert below - 1e-5 <= u <= running[token] + 1e-5, (s, token)


RULES = [
    {},
    {"temperature": 0.3},
    {"temperature": 1.7},
    {"temperature": 1e-6},
    {"top_k": 2},
    {"top_k": 40},
    {"top_k": 5000},
    {"top_p": 0.9},
    {"top_p": 0.999, "temperature": 1.5},
    {"top_p": 0.0},
    {"min_p": 0.05},
    {"top_k": 50, "top_p": 0.8, "min_p": 0.02, "temperature": 0.8},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 17, 300, 4099])
def test_draws_follow_the_definition(rule: dict[str, float], vocab_size: int) -> None:
    logits = peaked_logits(24, vocab_size)
    given = inputs(24, **rule)
    tokens = NativeSampler().sample_rows(logits, given).token_ids
    assert_explained(logits, given, tokens)
    assert (tokens == sample_rows(logits, given).token_ids).mean() > 0.9


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_isa_draws_the_same(rule: dict[str, float]) -> None:
    logits = peaked_logits(16, 1003, seed=3)
    given = inputs(16, num_logprobs=5, **rule)
    outputs = [NativeSampler(isa=isa).sample_rows(logits, given) for isa in ISAS]
    for other in outputs[1:]:
        np.testing.assert_array_equal(other.token_ids, outputs[0].token_ids)
        np.testing.assert_array_equal(other.logprobs, outputs[0].logprobs)
        np.testing.assert_array_equal(other.top_ids[:, :5], outputs[0].top_ids[:, :5])


def test_ties_go_to_the_lowest_id() -> None:
    logits = np.zeros((1, 333), np.float32)
    greedy = inputs(1, temperature=0.0)
    assert NativeSampler().sample_rows(logits, greedy).token_ids[0] == 0
    assert NativeSampler().argmax_rows(logits)[0] == 0
    many = np.zeros((64, 333), np.float32)
    for rule in ({"top_k": 5}, {"top_p": 5 / 333 - 1e-4}):
        assert set(NativeSampler().sample_rows(many, inputs(64, **rule)).token_ids) == set(range(5))


def test_bias_and_penalties() -> None:
    logits = peaked_logits(3, 500)
    given = replace(
        inputs(3, temperature=0.0, repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=0.4),
        bias_starts=np.array([0, 2, 2, 3], np.int32),
        bias_ids=np.array([4, 499, 7], np.int32),
        bias_values=np.array([3.0, -100.0, 100.0], np.float32),
        history_starts=np.array([0, 3, 5, 5], np.int32),
        history_ids=np.array([1, int(logits[0].argmax()), 9, int(logits[1].argmax()), 0], np.int32),
        history_counts=np.array([0, 2, 1, 5, 0], np.int32),
    )
    np.testing.assert_array_equal(
        NativeSampler().sample_rows(logits, given).token_ids, sample_rows(logits, given).token_ids
    )
    warm = replace(given, temperature=np.full(3, 0.9, np.float32))
    assert_explained(logits, warm, NativeSampler().sample_rows(logits, warm).token_ids)


def test_log_probabilities_are_the_models_own() -> None:
    logits = peaked_logits(8, 2000)
    given = inputs(8, temperature=0.0, num_logprobs=20, top_k=3)
    native, reference = NativeSampler().sample_rows(logits, given), sample_rows(logits, given)
    np.testing.assert_array_equal(native.top_ids, reference.top_ids)
    np.testing.assert_allclose(native.top_logprobs, reference.top_logprobs, atol=2e-6)
    np.testing.assert_allclose(native.logprobs, reference.logprobs, atol=2e-6)


def test_few_logits_are_finite() -> None:
    logits = np.full((4, 700), -np.inf, np.float32)
    logits[:, [5, 600]] = 1.0
    for rule in ({}, {"top_k": 10}, {"top_p": 0.99}, {"min_p": 0.5}):
        given = inputs(4, num_logprobs=5, **rule)
        outputs = NativeSampler().sample_rows(logits, given)
        assert set(outputs.token_ids) <= {5, 600}
        np.testing.assert_array_equal(outputs.top_ids[0, :2], [5, 600])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("isa", ISAS)
def test_rows_that_are_not_finite_draw_nothing(bad: float, isa: str) -> None:
    logits = peaked_logits(3, 100)
    logits[1, 99] = bad
    for temperature in (0.0, 1.0):
        tokens = NativeSampler(isa=isa).sample_rows(logits, inputs(3, temperature=temperature)).token_ids
        assert tokens[1] == -1
        assert (tokens[[0, 2]] >= 0).all()
    assert NativeSampler(isa=isa).argmax_rows(logits)[1] == -1
    assert NativeSampler(isa=isa).argmax_rows(np.full((1, 9), -np.inf, np.float32))[0] == -1


def test_a_row_draws_the_same_among_strangers() -> None:
    logits = peaked_logits(9, 1000)
    given = inputs(9, top_p=0.9)
    together = NativeSampler().sample_rows(logits, given).token_ids
    for s in range(9):
        alone = replace(
            given,
            **{f.name: getattr(given, f.name)[s : s + 1] for f in fields(given) if len(getattr(given, f.name)) == 9},
        )
        alone = replace(alone, bias_starts=given.bias_starts[:2], history_starts=given.history_starts[:2])
        assert NativeSampler().sample_rows(logits[s : s + 1], alone).token_ids[0] == together[s]


def test_drawn_frequencies_match_the_weights() -> None:
    logits = np.tile(np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32)), (4000, 1))
    tokens = NativeSampler().sample_rows(logits, inputs(4000)).token_ids
    counts = np.bincount(tokens, minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.1, 0.2, 0.3, 0.4], atol=0.03)


@pytest.mark.parametrize(
    "broken",
    [
        {"bias_starts": np.array([0, 1, 1], np.int32)},
        {
            "bias_starts": np.array([0, 1, 1], np.int32),
            "bias_ids": np.array([50], np.int32),
            "bias_values": np.zeros(1, np.float32),
        },
        {
            "history_starts": np.array([0, 2, 1], np.int32),
            "history_ids": np.array([1], np.int32),
            "history_counts": np.array([1], np.int32),
        },
        {"seeds": np.zeros(1, np.int64)},
    ],
)
def test_arrays_that_do_not_fit_are_refused(broken: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"."):
        NativeSampler().sample_rows(peaked_logits(2, 50), replace(inputs(2), **broken))

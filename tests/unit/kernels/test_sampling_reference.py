from __future__ import annotations

import numpy as np
import pytest
from tests.engine_harness import request_of

from realm.core.types import SamplingParams
from realm.engine.sampling import ReferenceSampling, Sampler
from realm.engine.sequence import Sequence
from realm.kernels.sampling_reference import kept_weights, philox, sample_rows, uniform

ALL_ONES = 0xFFFFFFFF


def sequences(*params: dict[str, object], prompt: tuple[int, ...] = (1, 2, 2, 5)) -> list[Sequence]:
    result = []
    for row, options in enumerate(params):
        request = request_of(f"r{row}", prompt, **({"temperature": 1.0} | options))
        seq = Sequence(request, row, 1000, frozenset(), b"")
        seq.row = row
        result.append(seq)
    return result


def draw(logits: np.ndarray, *params: dict[str, object], prompt: tuple[int, ...] = (1, 2, 2, 5)) -> list[int]:
    judged = sequences(*params, prompt=prompt)
    sampler = Sampler(len(judged), ReferenceSampling())
    for seq in judged:
        sampler.load(seq)
    return sampler.sample(judged, logits.astype(np.float32))[0]


# Random123's kat_vectors, philox4x32 with 10 rounds.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert philox(counter, key) == expected


def test_uniform_is_uniform_and_keyed_by_seed_and_position():
    values = np.array([uniform(seed, position) for seed in range(-50, 50) for position in range(100)])
    assert len(set(values)) == len(values)
    assert values.min() >= 0.0
    assert values.max() < 1.0
    counts, _ = np.histogram(values, 20, (0.0, 1.0))
    assert ((counts - 500.0) ** 2 / 500.0).sum() < 45.3  # chi-square, 19 degrees of freedom, p = 0.0006
    assert uniform(7, 3) == uniform(7, 3)
    assert uniform(7, 2**32) != uniform(7, 0)
    assert uniform(-1, 0) != uniform(1, 0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.15},
        {"top_k": 7, "top_p": 0.8, "min_p": 0.05, "logit_bias": {3: 1.5}},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 0.5, "frequency_penalty": 0.4},
    ],
    ids=str,
)
def test_draws_follow_the_exact_distribution(options: dict[str, object]):
    num_draws, vocab_size = 4000, 12
    row = np.random.default_rng(1).normal(0.0, 1.5, vocab_size).astype(np.float32)
    judged = sequences(*[options | {"seed": seed} for seed in range(num_draws)])
    for seq in judged:
        if seq.history is not None:
            for token in (4, 4, 9):
                seq.history.add(token)
        seq.tokens += [4, 4, 9]
    sampler = Sampler(num_draws, ReferenceSampling())
    for seq in judged:
        sampler.load(seq)
    drawn, _ = sampler.sample(judged, np.tile(row, (num_draws, 1)))
    expected = exact_distribution(row, judged[0].request.params, prompt=(1, 2, 2, 5), output=(4, 4, 9)) * num_draws
    counts = np.bincount(drawn, minlength=vocab_size)
    assert (counts[expected == 0.0] == 0).all()
    likely = expected > 5
    chi_square = ((counts[likely] - expected[likely]) ** 2 / expected[likely]).sum()
    assert chi_square < 35.0  # at most 11 degrees of freedom: p = 0.0002


def exact_distribution(row, params: SamplingParams, prompt: tuple[int, ...], output: tuple[int, ...]) -> np.ndarray:
    """The rules written once more, token by token, in float64."""
    values = row.astype(np.float64)
    for token, bias in params.logit_bias.items():
        values[token] += bias
    for token in set(prompt + output):
        values[token] *= params.repetition_penalty if values[token] <= 0 else 1.0 / params.repetition_penalty
        values[token] -= params.presence_penalty * (token in output)
        values[token] -= params.frequency_penalty * output.count(token)
    p = np.exp(values / params.temperature)
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    if params.top_k:
        p[order[params.top_k :]] = 0.0
        p /= p.sum()
    keep, total = [], 0.0
    for i in order:
        keep.append(i)
        total += p[i]
        if total >= params.top_p:
            break
    p[[i for i in order if i not in keep]] = 0.0
    p[p < params.min_p * p.max()] = 0.0
    return p / p.sum()


def test_greedy_takes_the_lowest_of_equals():
    logits = np.zeros((3, 10))
    logits[:, [4, 7]] = 3.0
    assert draw(logits, {"temperature": 0.0}, {"top_k": 1}, {"temperature": 0.0, "logprobs": 0}) == [4, 4, 4]


def test_top_k_and_top_p_break_ties_by_lower_id():
    row = np.array([1.0, 2.0, 2.0, 2.0, 1.0], np.float32)
    assert np.flatnonzero(kept_weights(row, 1.0, 2, 1.0, 0.0)).tolist() == [1, 2]
    assert np.flatnonzero(kept_weights(row, 1.0, 0, 0.4, 0.0)).tolist() == [1, 2]
    assert np.flatnonzero(kept_weights(row, 1.0, 0, 0.0, 0.0)).tolist() == [1]
    assert np.flatnonzero(kept_weights(row, 1.0, 0, 1.0, 1.0)).tolist() == [1, 2, 3]


def test_penalties_see_the_drafts_before_them():
    seq = sequences({"temperature": 0.0, "frequency_penalty": 1.0}, prompt=(1,))[0]
    sampler = Sampler(1, ReferenceSampling())
    sampler.load(seq)
    seq.drafts = [3, 3, 2]
    logits = np.tile(np.array([0.0, 0.0, 0.4, 1.5, 0.0], np.float32), (4, 1))
    assert sampler.sample([seq], logits)[0] == [3, 3, 2, 0]  # after 3, 3: 1.5 - 2 < 0.4
    assert seq.history.counts.tolist() == []
    for token in (3, 3, 2):
        seq.drafts = []
        assert sampler.sample([seq], logits[:1])[0] == [token]
        seq.history.add(token)


def test_a_row_draws_the_same_in_any_company():
    rng = np.random.default_rng(3)
    options = [
        {"seed": i, "top_p": 0.9, "logprobs": i % 3, "logit_bias": {i: 1.0}, "presence_penalty": 0.1 * i}
        for i in range(8)
    ]
    logits = rng.normal(0.0, 2.0, (8, 50))
    together = draw(logits, *options)
    assert together == [draw(logits[i : i + 1], options[i])[0] for i in range(8)]


def test_extreme_values():
    logits = np.zeros((4, 6))
    logits[0, 2] = 1e30
    logits[1, :] = -np.inf
    logits[1, 3] = 0.0
    logits[2, 1] = np.nan
    logits[3, :] = -np.inf
    for options in ({"temperature": 1e-45}, {"temperature": 100.0, "top_p": 0.9}, {"temperature": 0.0}):
        assert draw(logits, *[options] * 4) == [2, 3, -1, -1]


def test_logprobs_are_a_log_softmax_of_the_raw_logits():
    logits = np.random.default_rng(5).normal(0.0, 3.0, (1, 30)).astype(np.float32)
    judged = sequences({"temperature": 0.3, "logprobs": 4, "logit_bias": {2: 50.0}})
    sampler = Sampler(1, ReferenceSampling())
    sampler.load(judged[0])
    tokens, outputs = sampler.sample(judged, logits)
    exact = logits[0].astype(np.float64)
    exact -= np.log(np.exp(exact).sum())
    assert tokens == [2]
    assert outputs.logprobs[0] == pytest.approx(exact[2], abs=1e-6)
    likeliest = np.argsort(-exact)[:4]
    assert outputs.top_ids[0, :4].tolist() == likeliest.tolist()
    np.testing.assert_allclose(outputs.top_logprobs[0, :4], exact[likeliest], atol=1e-6)


def test_more_logprobs_than_vocabulary():
    inputs = sequences({"logprobs": 20})
    sampler = Sampler(1, ReferenceSampling())
    sampler.load(inputs[0])
    outputs = sample_rows(np.zeros((1, 5), np.float32), sampler._gather(inputs))
    assert outputs.top_ids[0, :5].tolist() == [0, 1, 2, 3, 4]

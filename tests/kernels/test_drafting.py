"""Rounds of drafting: the definition, and the native one beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from realm.core.config import EngineConfig
from realm.core.types import Batch
from realm.kernels.cpu import NativeExecutor
from realm.kernels.drafting import SURENESS_BOUNDS, DraftPlan, DraftRound, draft, likeliest
from realm.models.loader import load_model
from realm.testing.tiny import TinyModel, write_tiny_model

BLOCK = 16
PROMPTS = ([3, 40, 41, 42, 43], [7], [100, 101, 102])
CLASSES = len(SURENESS_BOUNDS) + 1


@pytest.fixture(scope="module", params=[1, 2])
def executor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NativeExecutor:
    path = write_tiny_model(tmp_path_factory.mktemp("drafting") / "tiny.gguf", TinyModel())
    config = EngineConfig(kv_block_tokens=BLOCK, kv_cache_tokens=64 * BLOCK, num_threads=request.param)
    executor = load_model(path, config).executor
    assert isinstance(executor, NativeExecutor)
    return executor


def first_of(is_judged: tuple[bool, ...] = (True, True, True)) -> Batch:
    ends = np.cumsum([0, *map(len, PROMPTS)]).astype(np.int32)
    return Batch(
        token_ids=np.concatenate(PROMPTS).astype(np.int32),
        query_starts=ends,
        context_lens=np.zeros(3, np.int32),
        block_tables=np.array([[5, 9, 2], [0, 1, 3], [60, 61, 62]], np.int32),
        logit_rows=(ends[1:] - 1)[list(is_judged)],
        adapter_slots=np.full(3, -1, np.int32),
    )


def plan_of(limits: tuple[int, ...] = (6, 6, 6), rate: float = 1.0, **fields: object) -> DraftPlan:
    size = len(limits)
    plan = DraftPlan(
        first=first_of(),
        limits=np.array(limits, np.int32),
        rates=np.full((size, CLASSES), rate, np.float32),
        means=np.full(size, rate, np.float32),
        worth_verifying=0.0,
        worth_drafting=0.0,
    )
    return replace(plan, **fields)  # type: ignore[arg-type]


class Plain:
    """An executor that only steps."""

    def __init__(self, executor: NativeExecutor) -> None:
        self._executor = executor

    def step(self, batch: Batch) -> np.ndarray:
        return self._executor.step(batch)


def both(executor: NativeExecutor, plan: DraftPlan, token_ids: np.ndarray | None = None) -> DraftRound:
    """The native round, which must be the defined one."""
    expected = draft(Plain(executor), plan, token_ids)  # type: ignore[arg-type]
    actual = executor.draft(plan, token_ids)
    for name in ("tokens", "classes", "num_guesses", "num_drafts", "step_rows"):
        assert getattr(actual, name).tolist() == getattr(expected, name).tolist(), name
    assert actual.num_steps == expected.num_steps
    assert (actual.step_seconds[: actual.num_steps] > 0).all()
    return actual


def greedy(executor: NativeExecutor, prompt: list[int], num_tokens: int) -> list[int]:
    """What a model goes on with, a step at a time, from nothing each time."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        size = len(tokens)
        batch = Batch(
            token_ids=np.array(tokens, np.int32),
            query_starts=np.array([0, size], np.int32),
            context_lens=np.zeros(1, np.int32),
            block_tables=np.array([[30, 31, 32]], np.int32),
            logit_rows=np.array([size - 1], np.int32),
            adapter_slots=np.array([-1], np.int32),
        )
        tokens.append(int(executor.step(batch)[0].argmax()))
    return tokens[len(prompt) :]


def test_each_request_goes_on_as_it_would_alone(executor: NativeExecutor) -> None:
    done = both(executor, plan_of((6, 1, 3)))
    assert done.num_drafts.tolist() == done.num_guesses.tolist() == [6, 1, 3]
    assert done.step_rows.tolist() == [9, 2, 2, 1, 1, 1]
    for row, prompt, count in zip(done.tokens.tolist(), PROMPTS, (6, 1, 3), strict=True):
        assert row[:count] == greedy(executor, prompt, count)


def test_those_who_still_read_their_prompt_do_not_draft(executor: NativeExecutor) -> None:
    plan = plan_of((2, 2), first=first_of((True, False, True)))
    done = both(executor, plan)
    assert done.tokens[1].tolist() == greedy(executor, PROMPTS[2], 2)


def test_a_limit_of_none_still_tells_what_it_would_have_been(executor: NativeExecutor) -> None:
    done = both(executor, plan_of((0, 0, 0)))
    assert done.num_steps == 1
    assert done.num_drafts.tolist() == [0, 0, 0]
    assert done.tokens[:, 0].tolist() == [greedy(executor, prompt, 1)[0] for prompt in PROMPTS]


def test_a_request_stops_when_going_on_is_not_worth_it(executor: NativeExecutor) -> None:
    """Chances are 0.5, 0.25, 0.125: verified above 0.2; the next is worked out if it will be above 0.2."""
    done = both(executor, plan_of(rate=0.5, worth_verifying=0.2, worth_drafting=0.2))
    assert done.num_drafts.tolist() == done.num_guesses.tolist() == [2, 2, 2]
    # A guess may turn out not to be worth verifying.
    done = both(executor, plan_of(rate=0.5, worth_verifying=0.3, worth_drafting=0.1))
    assert done.num_drafts.tolist() == [1, 1, 1]
    assert done.num_guesses.tolist() == [2, 2, 2]


def test_what_it_is_sure_of_counts(executor: NativeExecutor) -> None:
    """Only guesses of the surest half of the classes are worth verifying."""
    rates = np.tile(np.array([0.0] * 4 + [1.0] * 4, np.float32), (3, 1))
    done = both(executor, plan_of(rates=rates, worth_verifying=0.5))
    for s in range(3):
        classes = done.classes[s, : done.num_guesses[s]].tolist()
        assert [c >= 4 for c in classes[: done.num_drafts[s]]] == [True] * done.num_drafts[s]
        assert done.num_drafts[s] == 6 or classes[-1] < 4


def test_outputs_have_names_of_their_own(tmp_path: Path, executor: NativeExecutor) -> None:
    names = np.random.default_rng(0).permutation(executor.vocab_size).astype(np.int32)
    plain = both(executor, plan_of((1, 1, 1)))
    named = both(executor, plan_of((1, 1, 1)), names)
    assert named.tokens[:, 0].tolist() == names[plain.tokens[:, 0]].tolist()
    both(executor, plan_of(), names)


def test_logits_that_are_not_finite_end_a_draft() -> None:
    logits = np.array([[0.0, 1.0, 0.5], [0.0, np.nan, 1.0], [np.inf, 0.0, 0.0], [-np.inf, 0.0, 0.0]], np.float32)
    ids, probabilities = likeliest(logits)
    assert ids.tolist() == [1, -1, -1, 1]
    np.testing.assert_allclose(probabilities, [1 / (1 + np.exp(-1) + np.exp(-0.5)), 0, 0, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        {"limits": np.array([1, 1], np.int32)},
        {"rates": np.ones((3, CLASSES - 1), np.float32)},
        {"means": np.ones(2, np.float32)},
        {"first": replace(first_of(), logit_rows=np.array([3, 5, 8], np.int32))},
        {"limits": np.full(3, 100, np.int32)},  # more than the block tables hold
    ],
)
def test_a_plan_that_makes_no_sense(executor: NativeExecutor, bad: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        executor.draft(plan_of(**bad), None)  # type: ignore[arg-type]


def test_names_must_be_as_many_as_outputs(executor: NativeExecutor) -> None:
    with pytest.raises(ValueError, match="token id"):
        executor.draft(plan_of(), np.zeros(3, np.int32))

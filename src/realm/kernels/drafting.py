"""Drafting with a small model: step after step, each request goes on with its likeliest tokens while that is worth it.

This is the definition, over any executor; devices may do all steps of a round in one call.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from realm.core.types import Batch, Float32Array, Int32Array
from realm.kernels.ops import Executor

SURENESS_BOUNDS = np.array((0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95), np.float32)
"""[C - 1] between the classes of sureness: of a model's own probability of its likeliest token."""
NUM_CLASSES = len(SURENESS_BOUNDS) + 1
"""C."""


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """A round of drafting. S requests draft: those whose last token is judged in `first`."""

    first: Batch
    """Known tokens that the draft model has yet to see; nothing else of a request is judged than its last token."""
    limits: Int32Array  # [S] draft tokens at most
    rates: Float32Array  # [S, C] chance that a guess is right, by class of sureness
    means: Float32Array  # [S] the same before it is guessed
    worth_verifying: float
    """A guess is drafted if everything up to it is right with more than this chance..."""
    worth_drafting: float
    """...and the next one is worked out if it will be right with more than this chance."""

    @property
    def max_steps(self) -> int:
        """Steps of the draft model at most."""
        return max(1, int(self.limits.max(initial=1)))


@dataclass(slots=True)
class DraftRound:
    """What came of a round. The last guess of a request may not have been worth drafting; it tells all the same."""

    tokens: Int32Array  # [S, max_steps] guesses
    classes: Int32Array  # [S, max_steps] how sure the model was
    num_guesses: Int32Array  # [S]
    num_drafts: Int32Array  # [S]
    step_rows: Int32Array  # [max_steps]
    step_seconds: NDArray[np.float64]  # [max_steps]
    num_steps: int = 0

    @classmethod
    def empty(cls, num_requests: int, max_steps: int) -> DraftRound:
        """Room for results."""
        shape = (num_requests, max_steps)
        return cls(
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
            np.zeros(num_requests, np.int32),
            np.zeros(num_requests, np.int32),
            np.zeros(max_steps, np.int32),
            np.zeros(max_steps, np.float64),
        )


@runtime_checkable
class DraftingExecutor(Protocol):
    """An executor that does a round of drafting by itself, quicker than `draft` would."""

    def draft(self, plan: DraftPlan, token_ids: Int32Array | None) -> DraftRound:
        """See `draft`."""


def draft(
    executor: Executor,
    plan: DraftPlan,
    token_ids: Int32Array | None,
    clock: Callable[[], float] = time.perf_counter,
) -> DraftRound:
    """One round of drafting.

    Args:
        executor: The draft model.
        plan: Who drafts, and for how long.
        token_ids: [V_draft] what the model's outputs are called; None if they are token ids.
        clock: Seconds.
    """
    first = plan.first
    num_requests = len(first.logit_rows)
    round_ = DraftRound.empty(num_requests, plan.max_steps)
    requests = np.searchsorted(first.query_starts, first.logit_rows, side="right") - 1
    positions = (first.context_lens + np.diff(first.query_starts))[requests]
    chances = np.ones(num_requests)
    active = list(range(num_requests))
    batch = first
    while True:
        began = clock()
        guesses, probabilities = likeliest(executor.step(batch))
        going_on: list[int] = []
        for s, guess, probability in zip(active, guesses.tolist(), probabilities.tolist(), strict=True):
            if guess < 0:
                continue
            at = round_.num_guesses[s]
            sureness = bisect_right(SURENESS_BOUNDS, probability)
            round_.tokens[s, at] = guess if token_ids is None else token_ids[guess]
            round_.classes[s, at] = sureness
            round_.num_guesses[s] += 1
            chances[s] *= plan.rates[s, sureness]
            if round_.num_drafts[s] >= plan.limits[s] or chances[s] <= plan.worth_verifying:
                continue
            round_.num_drafts[s] += 1
            if round_.num_drafts[s] < plan.limits[s] and chances[s] * plan.means[s] > plan.worth_drafting:
                going_on.append(s)
        round_.step_rows[round_.num_steps] = len(batch.token_ids)
        round_.step_seconds[round_.num_steps] = clock() - began
        round_.num_steps += 1
        active = going_on
        if not active or round_.num_steps == plan.max_steps:
            return round_
        batch = _next_step(plan, round_, active, requests, positions)


def _next_step(
    plan: DraftPlan,
    round_: DraftRound,
    active: list[int],
    requests: NDArray[np.intp],
    positions: NDArray[np.int32],
) -> Batch:
    """The latest draft of each request that goes on."""
    size = len(active)
    return Batch(
        token_ids=round_.tokens[active, round_.num_drafts[active] - 1],
        query_starts=np.arange(size + 1, dtype=np.int32),
        context_lens=(positions[active] + round_.num_drafts[active] - 1).astype(np.int32),
        block_tables=plan.first.block_tables[requests[active]],
        logit_rows=np.arange(size, dtype=np.int32),
        adapter_slots=np.full(size, -1, np.int32),
    )


def likeliest(logits: Float32Array) -> tuple[Int32Array, Float32Array]:
    """(index, probability) of the largest logit of each row of [S, V]; (-1, 0) where logits aren't finite."""
    ids = logits.argmax(axis=1)
    largest = logits[np.arange(len(ids)), ids]
    with np.errstate(invalid="ignore"):
        probabilities = 1.0 / np.exp(logits - largest[:, None]).sum(axis=1)
    finite = np.isfinite(largest) & np.isfinite(probabilities)
    return np.where(finite, ids, -1).astype(np.int32), np.where(finite, probabilities, 0.0).astype(np.float32)

"""Drafts from a small model that runs beside the target: all requests that decode draft together, a token at a time.

Drafts are the draft model's likeliest tokens. How sure it is of each says how likely the target is to agree; that is
measured by tenant and request, and a request drafts on while one more token is expected to pay (`adaptive`). Tokens
that the draft could not settle are compared with what came all the same, so that nothing has to be verified to learn.
"""

from __future__ import annotations

import time
from bisect import bisect
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from realm.core.config import EngineConfig
from realm.core.types import Float32Array, Int32Array
from realm.engine.adaptive import AcceptanceRate, DraftLength, Probing, StepCost
from realm.engine.draft_kv import DraftContext, DraftKV, draft_batch
from realm.engine.sequence import Sequence
from realm.kernels.ops import Executor
from realm.models.draft import DraftModel

_SURE = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95)
"""Bounds between the classes of sureness: of the draft model's probability of its likeliest token."""
_PRIOR_RATES = (0.1, 0.25, 0.4, 0.55, 0.65, 0.8, 0.9, 0.97)
_PRIOR_MEAN = 0.65
_MAX_TENANTS = 1024
_CATCH_UP_PER_TOKEN = 32  # a prompt is worth computing for at least one output token in this many
_TRIED_LENGTHS = (1, 2, 4, 8)
_WINDOW_ROWS = 4  # over which the cost of a row is averaged: kernels work in tiles
_MIN_CATCH_UP_TOKENS = 64


class _Rates:
    """Acceptance of a tenant or a request: by sureness, and of whatever the draft model says."""

    __slots__ = ("classes", "mean")

    def __init__(self, parent: _Rates | None, memory: float) -> None:
        means = _PRIOR_RATES if parent is None else [rate.value for rate in parent.classes]
        self.mean: AcceptanceRate = AcceptanceRate(_PRIOR_MEAN if parent is None else parent.mean.value, memory=memory)
        self.classes: list[AcceptanceRate] = [AcceptanceRate(mean, memory=memory) for mean in means]

    def observe(self, classes: list[int], num_right: int, wrong: bool) -> None:
        """The first `num_right` guesses were right; if `wrong`, the next one was not."""
        self.mean.observe(num_right, int(wrong))
        for sureness in classes[:num_right]:
            self.classes[sureness].observe(1, 0)
        if wrong:
            self.classes[classes[num_right]].observe(0, 1)


@dataclass(slots=True)
class _State:
    """What is known of a request's drafts."""

    rates: _Rates
    num_known: int = 0
    guess: list[int] = field(default_factory=list)
    sureness: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Drafting:
    """A request in one round of drafting."""

    index: int
    seq: Sequence
    state: _State
    context: DraftContext
    limit: int
    chance: float = 1.0
    """That everything drafted so far is right."""
    drafts: list[int] = field(default_factory=list)


class DraftModelProposer:
    """Drafts for all requests of an engine from one draft model (`speculation.Proposer`).

    Args:
        executor: The draft model; its logits may cover fewer tokens than the target's vocabulary.
        kv: Its KV cache's blocks.
        length: Knows what the target's steps cost.
        token_ids: [V_draft] the target's ids of the draft's logits; None if they are the same.
        max_batch_tokens: Tokens in one step of the draft model.
        clock: Seconds, to time its steps.
    """

    source = "draft"
    """Name in statistics."""

    def __init__(
        self,
        executor: Executor,
        kv: DraftKV,
        length: DraftLength,
        token_ids: Int32Array | None = None,
        max_batch_tokens: int = 512,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.kv = kv
        self._executor = executor
        self._length = length
        self._token_ids = token_ids
        self._max_batch_tokens = max_batch_tokens
        self._clock = clock
        self._cost = StepCost()
        self._states: dict[str, _State] = {}
        self._tenants: OrderedDict[str, _Rates] = OrderedDict()
        self._probing = Probing()

    def propose(self, requests: list[tuple[Sequence, int]]) -> list[list[int]]:
        """Drafts for requests that decode, each with the most tokens that it may have; [] where none would pay."""
        drafts: list[list[int]] = [[] for _ in requests]
        if self._length.hopeful:
            for drafting in self._draft(self._choose(requests)):
                drafts[drafting.index] = drafting.drafts
        return drafts

    def observe(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        """A draft was verified: forget the KV of what was rejected."""
        self.kv.truncate(seq)

    def finish(self, seq: Sequence) -> None:
        """A request has ended."""
        self.kv.release(seq.request_id)
        self._states.pop(seq.request_id, None)

    def check_integrity(self, request_ids: set[str]) -> None:
        """Assert that nothing is kept of requests that have ended, and that blocks are whole."""
        assert set(self._states) <= request_ids, "the draft model remembers a request that has ended"
        self.kv.check_integrity(request_ids)

    def _choose(self, requests: list[tuple[Sequence, int]]) -> list[_Drafting]:
        """Those for whom drafting is expected to pay; otherwise, now and then, one to see whether that has changed."""
        able: list[_Drafting] = []
        for index, (seq, limit) in enumerate(requests):
            state = self._state(seq)
            self._learn(seq, state)
            if (seq.max_total_tokens - len(seq.tokens)) * _CATCH_UP_PER_TOKEN >= self.kv.lag(seq):
                able.append(_Drafting(index, seq, state, self.kv.get(seq), limit))
        if not able:
            return able
        if self._cost.measured and self._length.cost.measured:
            rates = [d.state.rates.mean.value for d in able]
            best = max(rates)
            promising = [d for d, rate in zip(able, rates, strict=True) if rate >= 0.9 * best]
            for some, rate in ((able, sum(rates) / len(rates)), (promising, best)):
                if self._pays(len(some), rate):
                    self._probing.reset()
                    return some
            if not self._probing.due():
                return []
        del able[1:]
        able[0].limit = 0  # one guess, not verified
        return able

    def _pays(self, num_requests: int, rate: float) -> bool:
        """Whether drafts of some length for so many requests make the step faster, at this acceptance."""
        length, draft_seconds = self._length, self._cost.seconds(num_requests)
        speed = length.speed(0.0)
        for tried in _TRIED_LENGTHS:
            gain = num_requests * sum(rate**i for i in range(1, tried + 1))
            if gain > speed * (num_requests * tried * length.row_seconds(num_requests * tried) + tried * draft_seconds):
                return True
        return False

    def _draft(self, drafting: list[_Drafting]) -> list[_Drafting]:
        """Draft for as long as it pays; gives all requests of the round."""
        drafting = [d for d in drafting if self._reserve(d, drafting)]
        active = self._catch_up(drafting)
        spent = 0.0
        while active:
            spent += self._cost.seconds(len(active))
            speed = self._length.speed(spent)
            verify_seconds = self._length.row_seconds(max(_WINDOW_ROWS, len(active)))
            draft_seconds = self._cost.seconds(len(active)) / len(active)
            going_on = []
            for d in active:
                guess, sureness = d.state.guess[-1], d.state.sureness[-1]
                chance = d.chance * d.state.rates.classes[sureness].value
                if len(d.drafts) >= d.limit or chance <= speed * verify_seconds:
                    continue
                d.drafts.append(guess)
                d.chance = chance
                self._length.add(1, chance)
                next_chance = chance * d.state.rates.mean.value
                if len(d.drafts) < d.limit and next_chance > speed * (verify_seconds + draft_seconds):
                    going_on.append(d)
            active = going_on
            if active:
                self._step_on(active)
        return drafting

    def _reserve(self, d: _Drafting, all_drafting: list[_Drafting]) -> bool:
        busy = {other.seq.request_id for other in all_drafting}
        return self.kv.reserve(d.seq, len(d.seq.tokens) + max(0, d.limit - 1), busy)

    def _catch_up(self, drafting: list[_Drafting]) -> list[_Drafting]:
        """Compute known tokens, and guess the next one of the requests that had no more of them than fit.

        Others draft once they have caught up.
        """
        spare = self._max_batch_tokens if len(drafting) == 1 else max(_MIN_CATCH_UP_TOKENS, self._max_batch_tokens // 4)
        fed: list[_Drafting] = []
        tokens: list[list[int]] = []
        contexts: list[int] = []
        for d in drafting:
            begin = d.context.num_computed
            new = d.seq.tokens[begin : begin + spare]
            if not new:
                continue
            spare -= len(new)
            fed.append(d)
            tokens.append(new)
            contexts.append(begin)
        if not fed:
            return []
        is_judged = [d.context.num_computed + len(new) == len(d.seq.tokens) for d, new in zip(fed, tokens, strict=True)]
        judged = [d for d, ready in zip(fed, is_judged, strict=True) if ready]
        self._run(fed, tokens, contexts, judged, is_judged)
        for d, new in zip(fed, tokens, strict=True):
            d.context.num_computed += len(new)
        return judged

    def _step_on(self, active: list[_Drafting]) -> None:
        """Compute each one's latest draft and guess the next token."""
        tokens = [[d.drafts[-1]] for d in active]
        contexts = [len(d.seq.tokens) + len(d.drafts) - 1 for d in active]
        self._run(active, tokens, contexts, active, None)
        for d in active:
            d.context.unverified.append(d.drafts[-1])

    def _run(
        self,
        fed: list[_Drafting],
        tokens: list[list[int]],
        contexts: list[int],
        judged: list[_Drafting],
        is_judged: list[bool] | None,
    ) -> None:
        """One timed step of the draft model; the guesses of those judged go to their states."""
        began = self._clock()
        batch = draft_batch(tokens, contexts, self.kv.tables([d.seq.row for d in fed]), is_judged)
        logits = self._executor.step(batch)
        if judged:
            ids, probabilities = _likeliest(logits)
            if self._token_ids is not None:
                ids = self._token_ids[ids]
            for d, token, probability in zip(judged, ids.tolist(), probabilities.tolist(), strict=True):
                d.state.guess.append(token)
                d.state.sureness.append(bisect(_SURE, probability))
        self._cost.observe(len(batch.token_ids), self._clock() - began)

    def _state(self, seq: Sequence) -> _State:
        state = self._states.get(seq.request_id)
        if state is None:
            rates = _Rates(self._tenant(seq), memory=50.0)
            state = self._states[seq.request_id] = _State(rates, len(seq.tokens))
        return state

    def _tenant(self, seq: Sequence) -> _Rates:
        tenant = self._tenants.get(seq.request.tenant_id)
        if tenant is None:
            tenant = self._tenants[seq.request.tenant_id] = _Rates(None, memory=500.0)
            if len(self._tenants) > _MAX_TENANTS:
                self._tenants.popitem(last=False)
        return tenant

    def _learn(self, seq: Sequence, state: _State) -> None:
        """Compare the last guesses with what came."""
        if state.guess:
            new = seq.tokens[state.num_known :]
            num_right = 0
            for guessed, token in zip(state.guess, new, strict=False):
                if guessed != token:
                    break
                num_right += 1
            wrong = num_right < min(len(new), len(state.guess))
            for rates in (state.rates, self._tenant(seq)):
                rates.observe(state.sureness, num_right, wrong)
            state.guess, state.sureness = [], []
        state.num_known = len(seq.tokens)


def draft_proposer(
    draft: DraftModel, config: EngineConfig, max_seq_len: int, length: DraftLength
) -> DraftModelProposer:
    """The proposer for `draft` in an engine with this configuration and longest request."""
    executor = draft.executor
    max_blocks = -(-max_seq_len // config.kv_block_tokens)
    kv = DraftKV(executor.num_kv_blocks, config.kv_block_tokens, config.max_batch_size, max_blocks)
    return DraftModelProposer(executor, kv, length, draft.token_ids, config.max_batch_tokens)


def _likeliest(logits: Float32Array) -> tuple[Int32Array, Float32Array]:
    """(index, probability) of the largest logit of each row of [S, V]; probability 0 where logits aren't finite."""
    ids = logits.argmax(axis=1)
    largest = logits[np.arange(len(ids)), ids]
    with np.errstate(invalid="ignore"):
        probabilities = 1.0 / np.exp(logits - largest[:, None]).sum(axis=1)
    return ids.astype(np.int32), np.where(np.isfinite(probabilities), probabilities, 0.0).astype(np.float32)

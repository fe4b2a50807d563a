"""Drafts from a small model that runs beside the target: all requests that decode draft together, a token at a time.

Drafts are the draft model's likeliest tokens. How sure it is of each says how likely the target is to agree; that is
measured by tenant and request, and a request drafts on while one more token is expected to pay (`adaptive`). Tokens
that the draft could not settle are compared with what came all the same, so that nothing has to be verified to learn.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from realm.core.config import EngineConfig
from realm.core.types import Int32Array
from realm.engine.adaptive import DraftLength
from realm.engine.draft_estimates import DraftCosts, DraftRates
from realm.engine.draft_kv import DraftContext, DraftKV, draft_batch
from realm.engine.rates import count_right
from realm.engine.sequence import Sequence
from realm.engine.worth import Probing, Rest
from realm.kernels.drafting import NUM_CLASSES, DraftingExecutor, DraftPlan, DraftRound, draft
from realm.kernels.ops import Executor
from realm.models.draft import DraftModel

_VAIN_MIN_GAIN = 1.15
_MAX_TENANTS = 1024
_CATCH_UP_PER_TOKEN = 32  # a prompt is worth computing for at least one output token in this many
_TRIED_LENGTHS = (1, 2, 3, 4, 6, 8, 12)
_LOOKUP_ADVANTAGE = 0.8  # guesses that cost nothing to make may be right less often
_WINDOW_ROWS = 4  # over which the cost of a row is averaged: kernels work in tiles
_MIN_CATCH_UP_TOKENS = 64
_EXPECTED_STEPS = 64  # over which it should pay to have caught up
_REST_STEPS, _VAIN_REST_STEPS = 4, 64  # while drafts gain more than they cost, or less
_REQUESTS_PER_REST_STEP = 2  # the more requests, the longer a look takes, and the less one of them gains
_PROBE_TOKENS = 2  # tells what both the first step and a later one cost


@dataclass(slots=True)
class _State:
    """What is known of a request's drafts."""

    rates: DraftRates
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


class DraftModelProposer:
    """Drafts for all requests of an engine from one draft model (`speculation.BatchProposer`).

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
        self._native = executor if isinstance(executor, DraftingExecutor) else None
        self._length = length
        self._token_ids = token_ids
        self._max_batch_tokens = max_batch_tokens
        self._clock = clock
        self._costs = DraftCosts()
        self._states: dict[str, _State] = {}
        self._tenants: OrderedDict[str, DraftRates] = OrderedDict()
        self._probing = Probing()
        self._rest = Rest()
        self._pays = True

    @property
    def rest_steps(self) -> int:
        """Steps that should pass before it is asked again: more and more after looks in vain."""
        return self._rest.num_steps

    def propose(self, requests: list[tuple[Sequence, int]], pays: bool) -> list[list[int]]:
        """Drafts for requests that decode, each with the most tokens that it may have; [] where none would pay.

        `pays` is false while drafting takes longer than drafts gain.
        """
        drafts: list[list[int]] = [[] for _ in requests]
        began = self._clock()
        self._pays = pays
        self._length.rival = 0.0
        if not self._length.hopeful:
            self._rest.after(False, _VAIN_REST_STEPS)
            return drafts
        drafting, speed = self._choose(requests)
        longest = max(_REST_STEPS, len(requests) // _REQUESTS_PER_REST_STEP) if pays else _VAIN_REST_STEPS
        self._rest.after(speed > 0.0 or not self._costs.measured, longest)
        drafting = [d for d in drafting if self._reserve(d, drafting)]
        if drafting:
            done = self._draft(drafting, speed, drafts)
            self._costs.observe(done, len(drafting), self._clock() - began)
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

    def _choose(self, requests: list[tuple[Sequence, int]]) -> tuple[list[_Drafting], float]:
        """Those for whom drafting pays, and the tokens per second that it gives; 0 if it is only to see how it goes.

        Where it doesn't pay, one request drafts a few tokens now and then.
        """
        able: list[_Drafting] = []
        for index, (seq, limit) in enumerate(requests):
            state = self._state(seq)
            self._learn(seq, state)
            if (seq.max_total_tokens - len(seq.tokens)) * _CATCH_UP_PER_TOKEN >= self.kv.lag(seq):
                able.append(_Drafting(index, seq, state, self.kv.get(seq), limit))
        if not able or not self._length.cost.measured:
            return [], 0.0
        if self._costs.measured:
            # Estimates that have proved too good are neither stretched by hope nor believed to the last percent.
            rates = [d.state.rates.hope if self._pays else d.state.rates.mean for d in able]
            threshold = self._length.speed() * (1.0 if self._pays else _VAIN_MIN_GAIN)
            best = max(rates)
            everyone = (able, sum(rates) / len(rates))
            promising = ([d for d, rate in zip(able, rates, strict=True) if rate >= 0.9 * best], best)
            for some, rate in (everyone, promising) if len(promising[0]) < len(able) else (everyone,):
                speed = self._best_speed(some, rate, self._catch_up_seconds(some) / _EXPECTED_STEPS)
                if speed > threshold:
                    self._length.rival = _LOOKUP_ADVANTAGE * rate
                    return some, speed
            one = min(able, key=lambda d: self.kv.lag(d.seq))
            if not self._probing.due((1 + self._rest.num_steps) * self._length.step_seconds, self._probe_seconds(one)):
                return [], 0.0
        else:
            one = able[0]
        one.limit = min(one.limit, _PROBE_TOKENS)
        return [one], 0.0

    def _probe_seconds(self, d: _Drafting) -> float:
        num_drafts = min(d.limit, _PROBE_TOKENS)
        later = (num_drafts - 1) * self._costs.later_seconds(1) + num_drafts * self._length.row_seconds(num_drafts)
        return self._catch_up_seconds([d]) + self._costs.first_seconds(1) + later

    def _catch_up_seconds(self, drafting: list[_Drafting]) -> float:
        return self._costs.catch_up_seconds([self.kv.lag(d.seq) for d in drafting])

    def _best_speed(self, drafting: list[_Drafting], rate: float, extra_seconds: float) -> float:
        """Tokens per second of the step with drafts of the best length, if each token is right at this `rate`."""
        size = len(drafting)
        first, later = self._costs.first_seconds(2 * size) + extra_seconds, self._costs.later_seconds(size)
        limit = max(d.limit for d in drafting)
        best, right, power, tried = 0.0, 0.0, 1.0, 0
        for length in _TRIED_LENGTHS:
            if length > limit:
                break
            while tried < length:
                power *= rate
                right += power
                tried += 1
            speed = self._length.speed(size * length, size * right, first + (length - 1) * later)
            best = max(best, speed)
        return best

    def _draft(self, drafting: list[_Drafting], speed: float, drafts: list[list[int]]) -> DraftRound:
        """One round: guesses go to the requests' states, and those worth verifying to `drafts`."""
        plan, fed, judged = self._plan(drafting, speed)
        if self._native is not None:
            done = self._native.draft(plan, self._token_ids)
        else:
            done = draft(self._executor, plan, self._token_ids, self._clock)
        for d, num_computed in fed:
            d.context.num_computed = num_computed
        guesses, sureness = done.tokens.tolist(), done.classes.tolist()
        for s, d in enumerate(judged):
            num_guesses = int(done.num_guesses[s])
            d.state.guess = guesses[s][:num_guesses]
            d.state.sureness = sureness[s][:num_guesses]
            d.context.unverified = guesses[s][: max(0, num_guesses - 1)]
            drafts[d.index] = guesses[s][: int(done.num_drafts[s])]
        return done

    def _plan(
        self, drafting: list[_Drafting], speed: float
    ) -> tuple[DraftPlan, list[tuple[_Drafting, int]], list[_Drafting]]:
        """A round; who is fed known tokens first, up to where; and those who draft: who had no more than fit."""
        spare = self._max_batch_tokens
        if len(drafting) > 1:
            spare = min(spare, max(_MIN_CATCH_UP_TOKENS, spare // 4))
        fed: list[tuple[_Drafting, int]] = []
        tokens: list[list[int]] = []
        contexts: list[int] = []
        is_judged: list[bool] = []
        for d in drafting:
            # After a step that failed nothing may be new: then its last token is fed again.
            begin = min(d.context.num_computed, len(d.seq.tokens) - 1)
            new = d.seq.tokens[begin : begin + spare]
            if not new:
                continue
            spare -= len(new)
            fed.append((d, begin + len(new)))
            tokens.append(new)
            contexts.append(begin)
            is_judged.append(begin + len(new) == len(d.seq.tokens))
        judged = [d for (d, _), ready in zip(fed, is_judged, strict=True) if ready]
        size = max(1, len(judged))
        verify_seconds = self._length.row_seconds(max(_WINDOW_ROWS, size))
        draft_seconds = self._costs.later_seconds(size) / size
        rates = np.array([d.state.rates.values() for d in judged], np.float32).reshape(len(judged), NUM_CLASSES + 1)
        plan = DraftPlan(
            first=draft_batch(tokens, contexts, self.kv.tables([d.seq.row for d, _ in fed]), is_judged),
            limits=np.array([d.limit for d in judged], np.int32),
            rates=np.ascontiguousarray(rates[:, :NUM_CLASSES]),
            means=np.ascontiguousarray(rates[:, NUM_CLASSES]),
            worth_verifying=speed * verify_seconds,
            worth_drafting=speed * (verify_seconds + draft_seconds),
        )
        return plan, fed, judged

    def _reserve(self, d: _Drafting, all_drafting: list[_Drafting]) -> bool:
        busy = {other.seq.request_id for other in all_drafting}
        return self.kv.reserve(d.seq, len(d.seq.tokens) + max(0, d.limit - 1), busy)

    def _state(self, seq: Sequence) -> _State:
        state = self._states.get(seq.request_id)
        if state is None:
            rates = DraftRates(self._tenant(seq), memory=50.0)
            state = self._states[seq.request_id] = _State(rates, len(seq.tokens))
        return state

    def _tenant(self, seq: Sequence) -> DraftRates:
        tenant = self._tenants.get(seq.request.tenant_id)
        if tenant is None:
            tenant = self._tenants[seq.request.tenant_id] = DraftRates(None, memory=200.0)
            if len(self._tenants) > _MAX_TENANTS:
                self._tenants.popitem(last=False)
        return tenant

    def _learn(self, seq: Sequence, state: _State) -> None:
        """Compare the last guesses with what came."""
        if state.guess:
            num_right, wrong = count_right(state.guess, seq.tokens[state.num_known :])
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

"""Where drafts come from. Verification is by sample-and-match, so a proposer may say anything: it can only be slow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from itertools import takewhile
from typing import Protocol

from realm.core.config import SpeculativeConfig
from realm.engine.adaptive import DraftLength
from realm.engine.lookup import LookupProposer
from realm.engine.ngrams import LookupHistory
from realm.engine.sequence import Sequence
from realm.engine.worth import Ledger

_log = logging.getLogger(__name__)
_NUM_SIZES = 8  # of batches, in powers of two; the last one is for all larger ones
_SETTLE_STEPS = 8  # that may pass without a look, before one of them is timed


class Proposer(Protocol):
    """Guesses the tokens that come next. Per-request state may be kept in `seq.draft_state`."""

    @property
    def source(self) -> str:
        """Name of this source in statistics."""

    def propose(self, seq: Sequence, max_tokens: int) -> list[int]:
        """Up to `max_tokens` tokens (at least 1 is asked for) that may follow `seq.tokens`; [] for no guess."""

    def observe(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Told after each verification; `seq.tokens` already holds what was emitted."""

    def finish(self, seq: Sequence) -> None:
        """Told when a request ends, however it does; `seq.tokens` is all it was."""


class BatchProposer(Protocol):
    """Guesses for all requests of a step together."""

    @property
    def source(self) -> str:
        """Name of this source in statistics."""

    @property
    def rest_steps(self) -> int:
        """Steps that should pass before it is asked again."""

    def propose(self, requests: list[tuple[Sequence, int]], pays: bool) -> list[list[int]]:
        """For each request and the most tokens it may have (at least 1) a draft as `Proposer.propose` gives it.

        `pays` is false while its drafts gain less than it takes to look for them.
        """

    def observe(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Told after each verification of its drafts; `seq.tokens` already holds what was emitted."""

    def finish(self, seq: Sequence) -> None:
        """Told when a request ends, however it does."""

    def check_integrity(self, request_ids: set[str]) -> None:
        """Assert that nothing is held but for the requests with these ids."""


class OneByOne:
    """Asks a `Proposer` for one request after another (`BatchProposer`)."""

    def __init__(self, proposer: Proposer) -> None:
        self._proposer = proposer
        self.source = proposer.source
        self.rest_steps = 0
        self.observe = proposer.observe
        self.finish = proposer.finish

    def propose(self, requests: list[tuple[Sequence, int]], pays: bool) -> list[list[int]]:
        """As `BatchProposer`; a failure costs one request's draft."""
        return [self._propose_one(seq, limit) for seq, limit in requests]

    def _propose_one(self, seq: Sequence, limit: int) -> list[int]:
        try:
            return self._proposer.propose(seq, limit)
        except Exception:
            _log.exception("the proposer failed; request %s goes on without a draft", seq.request_id)
            return []

    def check_integrity(self, request_ids: set[str]) -> None:
        """Proposers keep what they have in `Sequence.draft_state`."""


class Drafter:
    """Guards the engine against its proposers, and tells whoever chooses draft lengths what steps cost.

    Args:
        proposers: Each is asked for the requests that those before it have no draft for.
        config: The longest drafts for one request and step.
        vocab_size: V; a token outside ends the draft.
        length: Chooses lengths for the proposers, if something does.
        clock: Seconds, to time the proposers.
    """

    __slots__ = (
        "_clock",
        "_config",
        "_is_timed",
        "_ledgers",
        "_ledgers_by_size",
        "_length",
        "_next_look",
        "_next_looks",
        "_num_steps",
        "_num_unsettled",
        "_settling_seconds",
        "_vocab_size",
        "proposers",
    )

    def __init__(
        self,
        proposers: list[BatchProposer],
        config: SpeculativeConfig,
        vocab_size: int,
        length: DraftLength,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.proposers = {proposer.source: proposer for proposer in proposers}
        # What pays for one request may not pay for eight: there are ledgers for batch sizes of each power of two.
        self._ledgers_by_size = [self._new_ledgers() for _ in range(_NUM_SIZES)]
        self._ledgers = self._ledgers_by_size[0]
        self._clock = clock
        self._is_timed = False
        self._num_steps = self._next_look = 0
        self._next_looks = dict.fromkeys(self.proposers, 0)
        self._num_unsettled = 0
        self._settling_seconds = 0.0  # what it took to note the last results, which looking for drafts costs, too
        self._config = config
        self._vocab_size = vocab_size
        self._length = length

    def _new_ledgers(self) -> dict[str, Ledger]:
        return {source: Ledger() for source in self.proposers}

    def propose(self, decoding: list[Sequence], num_rows: int, spare: int) -> dict[int, list[int]]:
        """Drafts by place in `decoding`, at most `spare` tokens together, each within its request's output limit.

        The step has `num_rows` rows without them.
        """
        drafts: dict[int, list[int]] = {}
        self._num_steps += 1
        if self._num_steps < self._next_look:
            return drafts
        began = self._clock() - self._settling_seconds
        self._settling_seconds = 0.0
        num_requests = len(decoding)
        self._is_timed = True
        if num_rows == num_requests and self._length.cost.is_stale(num_rows):
            return drafts  # what drafts gain can be told only by knowing what a step without them takes
        ledgers = self._ledgers = self._ledgers_by_size[min(num_requests.bit_length(), _NUM_SIZES) - 1]
        self._length.begin_step(num_rows, num_requests)
        for source, proposer in self.proposers.items():
            ledger = ledgers[source]
            ledger.num_drafted = ledger.num_accepted = 0  # of a step that held prompts, and was not settled
            if spare > 0 and self._num_steps >= self._next_looks[source]:
                spare -= self._ask(proposer, decoding, drafts, spare, ledger.pays)
                ended = self._clock()
                ledger.spend(ended - began)
                began = ended
                self._next_looks[source] = self._num_steps + 1 + proposer.rest_steps
        self._next_look = min(self._next_looks.values())
        return drafts

    def end_step(self, num_rows: int, seconds: float) -> None:
        """A step of `num_rows` rows, all judged, took `seconds`."""
        self._num_unsettled += 1
        if not self._is_timed and self._num_unsettled < _SETTLE_STEPS:
            return  # nothing was looked for
        num_steps, self._num_unsettled, self._is_timed = self._num_unsettled, 0, False
        began = self._clock()
        ledgers = self._ledgers.values()
        num_drafted = sum([ledger.num_drafted for ledger in ledgers])
        added = self._length.end_step(num_rows, seconds)
        for ledger in ledgers:
            gained = 0.0
            if ledger.num_drafted:
                gained = ledger.num_accepted * self._length.token_seconds - added * ledger.num_drafted / num_drafted
            ledger.settle(gained, seconds, num_steps)
        self._settling_seconds = self._clock() - began

    def observe(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Pass the result of one verification on to the draft's source."""
        ledger = self._ledgers[seq.draft_source]
        ledger.num_drafted += num_drafted
        ledger.num_accepted += num_accepted
        try:
            self.proposers[seq.draft_source].observe(seq, num_drafted, num_accepted)
        except Exception:
            _log.exception("the proposer failed to note a result of request %s", seq.request_id)

    def finish(self, seq: Sequence) -> None:
        """Pass the end of a request on."""
        if not seq.request.speculate:
            return
        for proposer in self.proposers.values():
            try:
                proposer.finish(seq)
            except Exception:
                _log.exception("the proposer failed to note the end of request %s", seq.request_id)

    def check_integrity(self, request_ids: set[str]) -> None:
        """Assert that no proposer holds anything but for the requests with these ids."""
        for proposer in self.proposers.values():
            proposer.check_integrity(request_ids)

    def _limit(self, seq: Sequence, share: int) -> int:
        """Draft tokens that `seq` may have: a draft is always followed by one drawn token."""
        request, config = seq.request, self._config
        if not request.speculate:
            return 0
        limit = config.max_draft_tokens if seq.num_drafted else min(config.draft_k, config.max_draft_tokens)
        if request.max_draft_tokens is not None:
            limit = min(limit, request.max_draft_tokens)
        return min(share, limit, seq.max_total_tokens - len(seq.tokens) - 1)

    def _ask(
        self, proposer: BatchProposer, decoding: list[Sequence], drafts: dict[int, list[int]], spare: int, pays: bool
    ) -> int:
        """Add drafts for those that have none. Returns the number of tokens."""
        missing = [i for i in range(len(decoding)) if i not in drafts][:spare]
        share = spare // max(1, len(missing))
        asked = [(i, limit) for i in missing if (limit := self._limit(decoding[i], share)) > 0]
        if not asked:
            return 0
        try:
            proposed = proposer.propose([(decoding[i], limit) for i, limit in asked], pays)
        except Exception:
            _log.exception("the source %r failed; the step goes on without its drafts", proposer.source)
            return 0
        num_tokens = 0
        for (i, limit), tokens in zip(asked, proposed, strict=True):
            if tokens and (draft := self._checked(tokens, limit)):
                decoding[i].draft_source = proposer.source
                drafts[i] = draft
                num_tokens += len(draft)
        return num_tokens

    def _checked(self, draft: list[int], limit: int) -> list[int]:
        draft = draft[:limit]
        if min(draft) >= 0 and max(draft) < self._vocab_size:
            return draft
        return list(takewhile(lambda token: 0 <= token < self._vocab_size, draft))


def make_drafter(
    config: SpeculativeConfig | None,
    proposer: Proposer | None,
    vocab_size: int,
    make_draft_model: Callable[[DraftLength], BatchProposer] | None = None,
) -> Drafter | None:
    """The drafter for an engine, or None.

    Args:
        config: Limits, and whether there are lookup drafts; no drafts at all if None and no proposer is given.
        proposer: Used instead of lookup drafts.
        vocab_size: V.
        make_draft_model: Makes the proposer for a draft model, given what knows the cost of steps.
    """
    limits = config or SpeculativeConfig()
    length = DraftLength(limits.max_draft_tokens)
    proposers: list[BatchProposer] = []
    if proposer is not None:
        proposers.append(OneByOne(proposer))
    elif config is not None and config.lookup:
        proposers.append(LookupProposer(length, LookupHistory() if config.lookup_history else None))
    if make_draft_model is not None and config is not None:
        proposers.append(make_draft_model(length))
    return Drafter(proposers, limits, vocab_size, length) if proposers else None

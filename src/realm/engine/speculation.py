"""Where drafts come from. Verification is by sample-and-match, so a proposer may say anything: it can only be slow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from realm.core.config import SpeculativeConfig
from realm.engine.adaptive import DraftLength
from realm.engine.lookup import LookupHistory, LookupProposer
from realm.engine.sequence import Sequence

_log = logging.getLogger(__name__)


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

    def propose(self, requests: list[tuple[Sequence, int]]) -> list[list[int]]:
        """For each request and the most tokens it may have (at least 1) a draft as `Proposer.propose` gives it."""

    def observe(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Told after each verification of its drafts; `seq.tokens` already holds what was emitted."""

    def finish(self, seq: Sequence) -> None:
        """Told when a request ends, however it does."""

    def check_integrity(self, request_ids: set[str]) -> None:
        """Assert that nothing is held but for the requests with these ids."""


class Drafter:
    """Guards the engine against its proposers, and tells whoever chooses draft lengths what steps cost.

    Args:
        proposer: Asked for each request first.
        config: The longest drafts for one request and step.
        vocab_size: V; a token outside ends the draft.
        length: Chooses lengths for the proposers, if something does.
        batch_proposer: Asked for those that `proposer` has no draft for.
    """

    __slots__ = ("_batch_proposer", "_config", "_length", "_proposer", "_vocab_size")

    def __init__(
        self,
        proposer: Proposer | None,
        config: SpeculativeConfig,
        vocab_size: int,
        length: DraftLength | None = None,
        batch_proposer: BatchProposer | None = None,
    ) -> None:
        self._proposer = proposer
        self._batch_proposer = batch_proposer
        self._config = config
        self._vocab_size = vocab_size
        self._length = length

    def begin_step(self, num_rows: int, num_tokens: int) -> None:
        """A step holds `num_rows` rows so far, which will give `num_tokens` tokens."""
        if self._length is not None:
            self._length.begin_step(num_rows, num_tokens)

    def end_step(self, num_rows: int, seconds: float) -> None:
        """A step of `num_rows` rows, all judged, took `seconds`."""
        if self._length is not None:
            self._length.end_step(num_rows, seconds)

    def propose(self, decoding: list[Sequence], spare: int) -> list[list[int]]:
        """Drafts for `decoding`, at most `spare` tokens together, each within its request's own output limit."""
        drafts: list[list[int]] = []
        for index, seq in enumerate(decoding):
            limit = self._limit(seq, -(-spare // (len(decoding) - index)))
            draft = self._propose_one(seq, limit) if limit > 0 and self._proposer is not None else []
            spare -= len(draft)
            drafts.append(draft)
        if self._batch_proposer is not None and spare:
            self._propose_together(self._batch_proposer, decoding, drafts, spare)
        return drafts

    def observe(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Pass the result of one verification on to the draft's source."""
        for proposer in (self._proposer, self._batch_proposer):
            if proposer is not None and proposer.source == seq.draft_source:
                try:
                    proposer.observe(seq, num_drafted, num_accepted)
                except Exception:
                    _log.exception("the proposer failed to note a result of request %s", seq.request_id)

    def finish(self, seq: Sequence) -> None:
        """Pass the end of a request on."""
        for proposer in (self._proposer, self._batch_proposer):
            if proposer is not None and seq.request.speculate:
                try:
                    proposer.finish(seq)
                except Exception:
                    _log.exception("the proposer failed to note the end of request %s", seq.request_id)

    def check_integrity(self, request_ids: set[str]) -> None:
        """Assert that no proposer holds anything but for the requests with these ids."""
        if self._batch_proposer is not None:
            self._batch_proposer.check_integrity(request_ids)

    def _limit(self, seq: Sequence, share: int) -> int:
        """Draft tokens that `seq` may have: a draft is always followed by one drawn token."""
        request, config = seq.request, self._config
        if not request.speculate:
            return 0
        limit = config.max_draft_tokens if seq.num_drafted else min(config.draft_k, config.max_draft_tokens)
        if request.max_draft_tokens is not None:
            limit = min(limit, request.max_draft_tokens)
        return min(share, limit, seq.max_total_tokens - len(seq.tokens) - 1)

    def _propose_one(self, seq: Sequence, limit: int) -> list[int]:
        assert self._proposer is not None
        try:
            draft = self._proposer.propose(seq, limit)
        except Exception:
            _log.exception("the proposer failed; request %s goes on without a draft", seq.request_id)
            return []
        seq.draft_source = self._proposer.source
        return self._checked(draft, limit)

    def _propose_together(
        self, proposer: BatchProposer, decoding: list[Sequence], drafts: list[list[int]], spare: int
    ) -> None:
        """Fill in drafts where `drafts` has none."""
        missing = [i for i, draft in enumerate(drafts) if not draft]
        share = max(1, spare // max(1, len(missing)))
        limits = [(i, self._limit(decoding[i], share)) for i in missing[:spare]]
        asked = [(i, limit) for i, limit in limits if limit > 0]
        if not asked:
            return
        try:
            proposed = proposer.propose([(decoding[i], limit) for i, limit in asked])
        except Exception:
            _log.exception("the draft model failed; the step goes on without its drafts")
            return
        for (i, limit), draft in zip(asked, proposed, strict=True):
            decoding[i].draft_source = proposer.source
            drafts[i] = self._checked(draft, limit)

    def _checked(self, draft: list[int], limit: int) -> list[int]:
        for i, token in enumerate(draft[:limit]):
            if not 0 <= token < self._vocab_size:
                return draft[:i]
        return draft[:limit]


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
    together = make_draft_model(length) if make_draft_model is not None and config is not None else None
    if proposer is None and config is not None and config.lookup:
        history = LookupHistory() if config.lookup_history else None
        proposer = LookupProposer(length, history)
    elif together is None:
        return None if proposer is None else Drafter(proposer, limits, vocab_size)
    return Drafter(proposer, limits, vocab_size, length, together)

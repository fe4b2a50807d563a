"""Where drafts come from. Verification is by sample-and-match, so a proposer may say anything: it can only be slow."""

from __future__ import annotations

import logging
from typing import Protocol

from realm.core.config import SpeculativeConfig
from realm.engine.adaptive import DraftLength
from realm.engine.lookup import LookupProposer
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


class Drafter:
    """Guards the engine against its proposer, and tells whoever chooses draft lengths what steps cost.

    Args:
        proposer: Source of drafts.
        max_draft_tokens: Longest draft for one request and step.
        vocab_size: V; a token outside ends the draft.
        length: Chooses lengths for the proposer, if something does.
    """

    __slots__ = ("_length", "_max_draft_tokens", "_proposer", "_vocab_size", "source")

    def __init__(
        self, proposer: Proposer, max_draft_tokens: int, vocab_size: int, length: DraftLength | None = None
    ) -> None:
        self._proposer = proposer
        self._max_draft_tokens = max_draft_tokens
        self._vocab_size = vocab_size
        self._length = length
        self.source = proposer.source

    def begin_step(self, num_rows: int, num_tokens: int) -> None:
        """A step holds `num_rows` rows so far, which will give `num_tokens` tokens."""
        if self._length is not None:
            self._length.begin_step(num_rows, num_tokens)

    def end_step(self, num_rows: int, seconds: float) -> None:
        """A step of `num_rows` rows, all judged, took `seconds`."""
        if self._length is not None:
            self._length.end_step(num_rows, seconds)

    def propose(self, seq: Sequence, max_tokens: int) -> list[int]:
        """A draft for `seq` that fits `max_tokens` and its own output limit."""
        room = seq.max_total_tokens - len(seq.tokens) - 1  # a draft is always followed by one drawn token
        limit = min(max_tokens, self._max_draft_tokens, room)
        if limit < 1 or not seq.request.speculate:
            return []
        try:
            drafts = self._proposer.propose(seq, limit)[:limit]
        except Exception:
            _log.exception("the proposer failed; request %s goes on without a draft", seq.request_id)
            return []
        for i, token in enumerate(drafts):
            if not 0 <= token < self._vocab_size:
                return drafts[:i]
        return drafts

    def observe(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Pass the result of one verification on."""
        try:
            self._proposer.observe(seq, num_drafted, num_accepted)
        except Exception:
            _log.exception("the proposer failed to note a result of request %s", seq.request_id)

    def finish(self, seq: Sequence) -> None:
        """Pass the end of a request on."""
        if seq.request.speculate:
            try:
                self._proposer.finish(seq)
            except Exception:
                _log.exception("the proposer failed to note the end of request %s", seq.request_id)


def make_drafter(config: SpeculativeConfig | None, proposer: Proposer | None, vocab_size: int) -> Drafter | None:
    """The drafter for an engine: for `proposer` if one is given, for lookup if `config` asks for it, or none."""
    limits = config or SpeculativeConfig()
    if proposer is not None:
        return Drafter(proposer, limits.max_draft_tokens, vocab_size)
    if config is None or not config.lookup:
        return None
    length = DraftLength(config.max_draft_tokens)
    return Drafter(LookupProposer(length), config.max_draft_tokens, vocab_size, length)

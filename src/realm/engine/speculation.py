"""Where drafts come from. Verification is by sample-and-match, so a proposer may say anything: it can only be slow."""

from __future__ import annotations

import logging
from typing import Protocol

from realm.engine.sequence import Sequence

_log = logging.getLogger(__name__)


class Proposer(Protocol):
    """Guesses the tokens that come next. Per-request state may be kept in `seq.draft_state`."""

    def propose(self, seq: Sequence, max_tokens: int) -> list[int]:
        """Up to `max_tokens` tokens (at least 1 is asked for) that may follow `seq.tokens`; [] for no guess."""

    def observe(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Told after each verification; `seq.tokens` already holds what was emitted, unless it ended."""


class Drafter:
    """Guards the engine against its proposer.

    Args:
        proposer: Source of drafts.
        max_draft_tokens: Longest draft for one request and step.
        vocab_size: V; a token outside ends the draft.
    """

    __slots__ = ("_max_draft_tokens", "_proposer", "_vocab_size")

    def __init__(self, proposer: Proposer, max_draft_tokens: int, vocab_size: int) -> None:
        self._proposer = proposer
        self._max_draft_tokens = max_draft_tokens
        self._vocab_size = vocab_size

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

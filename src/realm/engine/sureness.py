"""How sure a copied token is: classes of guesses, by how long the match is and what speaks for it.

Each token of a guess has a class of its own, for it is only reached if those before it were right, and these have made
the match longer.
"""

from __future__ import annotations

from bisect import bisect_right

from realm.core.config import MAX_DRAFT_TOKENS

SINGLE, DISPUTED, AGREED, RESUMED, INSERTED = range(5)
"""Kinds of matches: the only one of its length; others as long go on differently; they go on in the same way; it
is near the place where a long copy ended, so probably the same copy after an edit; or it is at that very place, after
one token that was inserted."""

MAX_MATCH = 48
"""Longest match that is told apart from longer ones."""
LONG_MATCH = 8
"""From here on kinds don't matter any more."""

_SHORT = (1, 2, 3, 4, 6)  # the least lengths of classes; a match of one token is always a resumed one
_LONG = (LONG_MATCH, 12, 16, 24, 32, MAX_MATCH)
# As often were guesses right in the copies, edits and chats of `benchmarks/speculation/replay.py`.
_SHORT_PRIORS = {
    SINGLE: (0.2, 0.5, 0.65, 0.75, 0.8),
    DISPUTED: (0.1, 0.25, 0.5, 0.7, 0.75),
    AGREED: (0.4, 0.7, 0.75, 0.8, 0.85),
    RESUMED: (0.7, 0.85, 0.9, 0.9, 0.9),
}
_LONG_PRIORS = (0.9, 0.93, 0.95, 0.95, 0.97, 0.98)
_INSERTED_PRIOR = 0.85
PRIORS = (*(rate for kind in sorted(_SHORT_PRIORS) for rate in _SHORT_PRIORS[kind]), *_LONG_PRIORS, _INSERTED_PRIOR)
"""Rates of right guesses to start from, by class."""


def _class_of(kind: int, length: int) -> int:
    if kind == INSERTED:
        if length <= 1:
            return len(PRIORS) - 1
        kind = RESUMED
    if length >= LONG_MATCH:
        return len(_SHORT_PRIORS) * len(_SHORT) + bisect_right(_LONG, length) - 1
    return kind * len(_SHORT) + max(0, bisect_right(_SHORT, length) - 1)


_NUM_LENGTHS = MAX_MATCH + MAX_DRAFT_TOKENS + 1
_CHAINS = [[_class_of(kind, length) for length in range(_NUM_LENGTHS)] for kind in (*_SHORT_PRIORS, INSERTED)]


def classes_of(kind: int, length: int, num_tokens: int) -> list[int]:
    """Classes of up to `num_tokens` guesses in a row after a match of this kind and length."""
    first = min(length, MAX_MATCH)
    return _CHAINS[kind][first : first + num_tokens]

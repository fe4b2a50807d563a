"""Drafts without a model: what followed the last time the request's latest tokens occurred.

Prompt lookup decoding, with the longest of the recent matches instead of a fixed n-gram. A copy that was left for an
edit is taken up again near the place where it was left.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul

from realm.engine.adaptive import DraftLength
from realm.engine.ngrams import LookupHistory, Match, NgramIndex
from realm.engine.rates import ClassRates, count_right
from realm.engine.sequence import Sequence
from realm.engine.sureness import INSERTED, LONG_MATCH, PRIORS, RESUMED, classes_of
from realm.engine.worth import Rest

_MAX_TENANTS = 1024
_VAIN_REST_STEPS, _MAX_REST_STEPS = 4, 64  # for each request, and in all, while guesses cost more than they gain
_REQUESTS_PER_REST_STEP = 4  # else: the more requests, the more time guesses take, and the less one of them gains
# After an edit a copy is taken up again by this many tokens, this far back or ahead of where it was left.
_EDIT_TOKENS, _EDIT_BACK, _EDIT_AHEAD = 12, 4, 16
_MAX_DOUBTED_MATCH = 2  # elsewhere: a copy that goes on where it was left is likelier


@dataclass(slots=True)
class _State:
    """A request's lookup state, in `Sequence.draft_state`."""

    index: NgramIndex
    rates: ClassRates
    """Its tenant's."""
    num_known: int
    match: Match | None = None
    left: Match | None = None
    """The last long match, at the place where something else came."""
    num_known_left: int = 0
    guess: list[int] = field(default_factory=list)
    """What was thought to follow, drafted or not."""
    classes: list[int] = field(default_factory=list)


class LookupProposer:
    """Lookup drafts for all requests of an engine (`speculation.BatchProposer`).

    Every guess is compared with what came, also when it wasn't drafted: a length of 0 costs nothing to leave again.

    Args:
        length: Decides how much of a guess is worth a draft; all of it if None.
        history: Finished requests to look into as well.
    """

    source = "lookup"
    """Name in statistics."""

    def __init__(
        self,
        length: DraftLength | None = None,
        history: LookupHistory | None = None,
    ) -> None:
        self._length = length
        self._history = history
        self._rates: OrderedDict[str, ClassRates] = OrderedDict()  # by tenant
        self._rest = Rest()

    @property
    def rest_steps(self) -> int:
        """Steps that should pass before it is asked again: more and more after looks in vain."""
        return self._rest.num_steps

    def propose(self, requests: list[tuple[Sequence, int]], pays: bool = True) -> list[list[int]]:
        """For each request, up to so many tokens that may follow `seq.tokens`; [] for no guess.

        `pays` is false while looking takes longer than drafts gain.
        """
        if self._length is None:
            return [self._guess(seq, limit).guess.copy() for seq, limit in requests]
        if not self._length.hopeful:
            self._rest.after(False, _MAX_REST_STEPS)
            return [[] for _ in requests]
        states = [self._guess(seq, limit) for seq, limit in requests]
        values: dict[int, list[float]] = {}
        chances: list[list[float]] = []
        for state in states:
            chance: list[float] = []
            if state.guess:
                rates = values.get(id(state.rates))
                if rates is None:
                    rates = values[id(state.rates)] = state.rates.values()
                if rates[state.classes[0]] >= self._length.rival:
                    chance = list(accumulate([rates[which] for which in state.classes], mul))
            chances.append(chance)
        lengths = self._length.choose(chances)
        longest = max(0, len(requests) // _REQUESTS_PER_REST_STEP - 1)
        if not pays:
            longest = min(_VAIN_REST_STEPS * len(requests), _MAX_REST_STEPS)
        self._rest.after(any(lengths), longest)
        return [state.guess[:num_tokens] for state, num_tokens in zip(states, lengths, strict=True)]

    def observe(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        """How right guesses were, drafted or not, the next `propose` sees in `seq.tokens`."""

    def check_integrity(self, request_ids: set[str]) -> None:
        """State is kept in `Sequence.draft_state`, and nothing else of requests but rates."""

    def finish(self, seq: Sequence) -> None:
        """A request ended: remember its tokens for others of its cache domain, if there is a history."""
        if self._history is not None:
            self._history.add(seq.request.cache_domain, seq.tokens)
        seq.draft_state = None

    def _guess(self, seq: Sequence, limit: int) -> _State:
        """The request's state, with up to `limit` tokens guessed."""
        state = seq.draft_state
        if not isinstance(state, _State):
            state = seq.draft_state = _State(NgramIndex(seq.tokens), self._tenant_rates(seq), len(seq.tokens))
        self._learn(seq, state)
        match = state.match = self._find(seq, state)
        guess: list[int] = []
        if match is not None:
            guess = match.following(limit, repeat=match.index is state.index)
            if not seq.stop_ids.isdisjoint(guess):
                # The end of a request is drawn, never accepted: neither it nor what follows is worth a row.
                guess = guess[: next(i for i, token in enumerate(guess) if token in seq.stop_ids)]
            state.classes = classes_of(match.kind, match.length, len(guess))
        state.guess = guess
        return state

    def _learn(self, seq: Sequence, state: _State) -> None:
        """Compare the last guess with what followed, and move the match on as far as it held."""
        new = seq.tokens[state.num_known :]
        if new and state.guess:
            state.rates.observe(state.classes, *count_right(state.guess, new))
        match = state.match
        if match is not None and not match.follow(new):
            state.match = None
            if match.length >= LONG_MATCH:
                state.left, state.num_known_left = match, len(seq.tokens)
        state.num_known = len(seq.tokens)

    def _find(self, seq: Sequence, state: _State) -> Match | None:
        best = state.match
        if best is not None and best.length >= LONG_MATCH:
            return best
        state.index.update()
        others = self._history.index(seq.request.cache_domain) if self._history is not None else None
        for index in (state.index, others):
            found = None if index is None else index.find(seq.tokens)
            if found is None or (best is not None and found.length < best.length):
                continue
            if best is not None and best.kind in (RESUMED, INSERTED) and found.length == best.length:
                continue
            best = found
        left = state.left
        num_since = len(seq.tokens) - state.num_known_left
        if left is None or num_since > _EDIT_TOKENS:
            return best
        if num_since == 1 and (best is None or best.length <= _MAX_DOUBTED_MATCH):
            # One token was inserted, if the one that should have come in its place came after it.
            after = left.after(seq.tokens[-1])
            if after is not None:
                return Match(left.index, after, 1, INSERTED)
        begin, end = left.position - _EDIT_BACK, left.position + _EDIT_AHEAD
        if best is None:
            return left.index.find_near(seq.tokens[-1], begin, end, left.position)
        if best.index is left.index and begin <= best.position < end:
            best.kind = RESUMED
        return best

    def _tenant_rates(self, seq: Sequence) -> ClassRates:
        tenant_id = seq.request.tenant_id
        rates = self._rates.get(tenant_id)
        if rates is None:
            rates = self._rates[tenant_id] = ClassRates(PRIORS, weight=8.0, memory=1000.0)
            if len(self._rates) > _MAX_TENANTS:
                self._rates.popitem(last=False)
        return rates

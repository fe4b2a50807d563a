"""Drafts without a model: what followed the last time the request's latest tokens occurred.

Prompt lookup decoding, with the longest of the recent matches instead of a fixed n-gram, found through LZ77's hash
chains: one dictionary entry and one link per token.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass, field

from realm.engine.adaptive import AcceptanceRate, Bias, DraftLength
from realm.engine.sequence import Sequence
from realm.engine.worth import Rest

MIN_MATCH = 2
"""Tokens that must agree before a draft is made."""
_MAX_MATCH = 16
_MAX_CANDIDATES = 8
_BREAK = -1  # between the documents of a history; no token
_MAX_TENANTS = 1024
_VAIN_REST_STEPS, _MAX_REST_STEPS = 4, 64  # for each request, and in all, while guesses cost more than they gain
_REQUESTS_PER_REST_STEP = 4  # else: the more requests, the more time guesses take, and the less one of them gains


class NgramIndex:
    """Where each pair of tokens occurred in `tokens`, latest first; `tokens` only ever gets longer."""

    __slots__ = ("_heads", "_links", "tokens")

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self._heads: dict[int, int] = {}  # pair -> position after its latest occurrence
        self._links: list[int] = []  # [position] -> that after the occurrence before, or -1

    def update(self) -> None:
        """Index the tokens that are new. A pair counts once something follows it. Constant time per token."""
        tokens, heads, links = self.tokens, self._heads, self._links
        for position in range(len(links), len(tokens)):
            if position < MIN_MATCH:
                links.append(-1)
                continue
            pair = _pair(tokens[position - 2], tokens[position - 1])
            links.append(heads.get(pair, -1))
            heads[pair] = position

    def find(self, context: TokenIds[int]) -> tuple[int, int]:
        """(position, length) of the longest match among the latest: `tokens` before position end as `context` does.

        (-1, 0) if there is none. Lengths are counted up to 16.
        """
        best, best_length = -1, 0
        if len(context) < MIN_MATCH:
            return best, best_length
        position = self._heads.get(_pair(context[-2], context[-1]), -1)
        for _ in range(_MAX_CANDIDATES):
            if position < 0:
                break
            length = self._match_length(context, position)
            if length > best_length:
                best, best_length = position, length
                if length == _MAX_MATCH:
                    break
            position = self._links[position]
        return best, best_length

    def _match_length(self, context: TokenIds[int], position: int) -> int:
        tokens, end = self.tokens, len(context)
        limit = min(_MAX_MATCH, position, end)
        length = MIN_MATCH
        while length < limit and tokens[position - length - 1] == context[end - length - 1]:
            length += 1
        return length

    def following(self, position: int, num_tokens: int, repeat: bool) -> list[int]:
        """Up to `num_tokens` tokens from `position` on; with `repeat` the end is followed by the same again."""
        found = self.tokens[position : position + num_tokens]
        if _BREAK in found:
            return found[: found.index(_BREAK)]
        if repeat:
            period = len(found)
            for index in range(period, num_tokens):
                found.append(found[index - period])
        return found


def _pair(first: int, second: int) -> int:
    return first << 32 | second  # negative with a break in it, which no context has


class LookupHistory:
    """Tokens of finished requests, kept apart by cache domain: a domain never sees another's. Opt-in.

    Args:
        max_domains: Domains kept; the one not used for longest goes first.
        max_tokens: Tokens kept per domain, prompts and outputs together; the oldest half goes when it is full.
    """

    def __init__(self, max_domains: int = 64, max_tokens: int = 32_768) -> None:
        self._max_domains = max_domains
        self._max_tokens = max_tokens
        self._indexes: OrderedDict[bytes, NgramIndex] = OrderedDict()

    def add(self, domain: bytes, token_ids: TokenIds[int]) -> None:
        """Remember a finished request of `domain`, at most half of `max_tokens` from its end."""
        index = self._indexes.setdefault(domain, NgramIndex([]))
        self._indexes.move_to_end(domain)
        if len(self._indexes) > self._max_domains:
            self._indexes.popitem(last=False)
        added = list(token_ids[-(self._max_tokens // 2 - 1) :])
        if len(index.tokens) + len(added) + 1 > self._max_tokens:
            # A new index: requests may still be drafting from the old one.
            index = self._indexes[domain] = NgramIndex(index.tokens[-(self._max_tokens // 2) :])
        index.tokens.extend(added)
        index.tokens.append(_BREAK)
        index.update()

    def index(self, domain: bytes) -> NgramIndex | None:
        """What `domain` has, if anything."""
        index = self._indexes.get(domain)
        if index is not None:
            self._indexes.move_to_end(domain)
        return index

    @property
    def num_tokens(self) -> int:
        """Tokens kept, over all domains."""
        return sum(len(index.tokens) for index in self._indexes.values())


@dataclass(slots=True)
class _Match:
    """Where a request currently copies from."""

    index: NgramIndex
    position: int
    length: int

    def follow(self, new: list[int]) -> bool:
        """Move on over `new`; False if they aren't what was copied, or nothing follows them."""
        tokens, end = self.index.tokens, self.position + len(new)
        held = tokens[self.position : end] == new and end < len(tokens) and tokens[end] != _BREAK
        self.position, self.length = end, min(self.length + len(new), _MAX_MATCH)
        return held


@dataclass(slots=True)
class _State:
    """A request's lookup state, in `Sequence.draft_state`."""

    index: NgramIndex
    num_known: int
    match: _Match | None = None
    guess: list[int] = field(default_factory=list)
    """What was thought to follow, drafted or not."""
    rate_key: int = 0
    rates: dict[int, AcceptanceRate] = field(default_factory=dict)


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
        self._rates: OrderedDict[tuple[str, int], AcceptanceRate] = OrderedDict()  # by tenant and match length
        self._rest = Rest()
        self._longest_rest = 0
        self._bias = Bias(prior=20.0, memory=200.0)  # of the tokens that drafts were thought to gain
        self._num_expected, self._num_accepted = 0.0, 0  # in the last step

    def is_due(self, num_requests: int, pays: bool) -> bool:
        """Whether to be asked in this step: less often after looks in vain."""
        if self._length is None:
            return True
        if not pays:
            self._longest_rest = min(_VAIN_REST_STEPS * num_requests, _MAX_REST_STEPS)
        else:
            self._longest_rest = max(0, num_requests // _REQUESTS_PER_REST_STEP - 1)
        return self._rest.is_over()

    def propose(self, requests: list[tuple[Sequence, int]]) -> list[list[int]]:
        """For each request, up to so many tokens that may follow `seq.tokens`; [] for no guess."""
        if self._length is not None and not self._length.hopeful:
            self._rest.after(False, _MAX_REST_STEPS)
            return [[] for _ in requests]
        drafts: list[list[int]] = []
        guessing: list[int] = []
        rates: list[float] = []
        limits: list[int] = []
        rival = 0.0 if self._length is None else self._length.rival
        for index, (seq, limit) in enumerate(requests):
            state = self._guess(seq, limit)
            drafts.append(state.guess)
            if state.guess and (rate := self._rate(seq, state).value) >= rival:
                guessing.append(index)
                rates.append(rate)
                limits.append(len(state.guess))
        if self._length is None:
            return [draft.copy() for draft in drafts]
        lengths = self._choose(self._length, guessing, rates, limits)
        self._rest.after(any(lengths.values()), self._longest_rest)
        return [draft[: lengths.get(index, 0)] for index, draft in enumerate(drafts)]

    def _choose(
        self, length: DraftLength, guessing: list[int], rates: list[float], limits: list[int]
    ) -> dict[int, int]:
        """Lengths of the drafts of those who are `guessing`."""
        if self._num_expected:
            self._bias.observe(self._num_accepted, self._num_expected)
        else:
            self._bias.forgive()
        self._num_expected, self._num_accepted = 0.0, 0
        if not guessing:
            return {}
        lengths, self._num_expected = length.choose(rates, limits, min(1.0, self._bias.value))
        return dict(zip(guessing, lengths, strict=True))

    def _guess(self, seq: Sequence, limit: int) -> _State:
        """The request's state, with up to `limit` tokens guessed."""
        state = seq.draft_state
        if not isinstance(state, _State):
            state = seq.draft_state = _State(NgramIndex(seq.tokens), len(seq.tokens))
        self._learn(seq, state)
        match = state.match = self._find(seq, state)
        if match is None:
            state.guess = []
        else:
            state.guess = match.index.following(match.position, limit, repeat=match.index is state.index)
            state.rate_key = match.length
        return state

    def observe(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Count what was right of the drafts; how right guesses were, the next `propose` sees in `seq.tokens`."""
        self._num_accepted += num_accepted

    def check_integrity(self, request_ids: set[str]) -> None:
        """State is kept in `Sequence.draft_state`, and nothing else of requests but rates."""

    def finish(self, seq: Sequence) -> None:
        """A request ended: remember its tokens for others of its cache domain, if there is a history."""
        if self._history is not None:
            self._history.add(seq.request.cache_domain, seq.tokens)
        seq.draft_state = None

    def _learn(self, seq: Sequence, state: _State) -> None:
        """Compare the last guess with what followed, and move the match on if it held."""
        new = seq.tokens[state.num_known :]
        state.num_known = len(seq.tokens)
        num_right = 0
        for guessed, token in zip(state.guess, new, strict=False):
            if guessed != token:
                break
            num_right += 1
        if new and state.guess:
            wrong = num_right < min(len(new), len(state.guess))
            for rate in (self._rate(seq, state), self._tenant_rate(seq, state.rate_key)):
                rate.observe(num_right, int(wrong))
        if state.match is not None and not state.match.follow(new):
            state.match = None
        state.index.update()

    def _find(self, seq: Sequence, state: _State) -> _Match | None:
        if state.match is not None and state.match.length == _MAX_MATCH:
            return state.match
        best = state.match
        others = self._history.index(seq.request.cache_domain) if self._history is not None else None
        for index in (state.index, others):
            if index is None:
                continue
            position, length = index.find(seq.tokens)
            if length > (best.length if best is not None else 0):
                best = _Match(index, position, length)
        return best

    def _rate(self, seq: Sequence, state: _State) -> AcceptanceRate:
        rate = state.rates.get(state.rate_key)
        if rate is None:
            rate = AcceptanceRate(self._tenant_rate(seq, state.rate_key).value)
            state.rates[state.rate_key] = rate
        return rate

    def _tenant_rate(self, seq: Sequence, length: int) -> AcceptanceRate:
        key = (seq.request.tenant_id, length)
        rate = self._rates.get(key)
        if rate is None:
            # Longer matches are right more often.
            rate = self._rates[key] = AcceptanceRate(1.0 - 1.0 / length, memory=500.0)
            if len(self._rates) > _MAX_TENANTS * _MAX_MATCH:
                self._rates.popitem(last=False)
        return rate

"""Where tokens occurred before: an index over a text that grows, and the texts of finished requests.

Matches are found through LZ77's hash chains: one dictionary entry and one link per token.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass
from itertools import pairwise

from realm.engine.rates import count_right
from realm.engine.sureness import AGREED, DISPUTED, MAX_MATCH, RESUMED, SINGLE

MIN_MATCH = 2
"""Tokens that must agree."""
_MAX_CANDIDATES = 8
_BREAK = -1  # between the documents of a history; no token


@dataclass(slots=True)
class Match:
    """An earlier occurrence of a request's latest tokens, and what is known about it."""

    index: NgramIndex
    position: int
    """Of the token after the occurrence, which may follow the request's latest, too."""
    length: int
    """Tokens that agree."""
    kind: int
    """What others say (`sureness`)."""

    def follow(self, new: list[int]) -> bool:
        """Move on over `new`, up to the first token that isn't what came here; False if there is one."""
        tokens = self.index.tokens
        here = tokens[self.position : self.position + len(new)]
        num_right = len(new) if here == new else count_right(here, new)[0]
        self.position += num_right
        self.length += num_right
        return num_right == len(new) and self.position < len(tokens) and tokens[self.position] != _BREAK

    def after(self, token: int) -> int | None:
        """The next position, if `token` is what comes here and something follows it."""
        tokens = self.index.tokens
        if self.position + 1 < len(tokens) and tokens[self.position] == token:
            return self.position + 1
        return None

    def following(self, num_tokens: int, repeat: bool) -> list[int]:
        """Up to `num_tokens` tokens from here on; with `repeat` the end is followed by the same again."""
        found = self.index.tokens[self.position : self.position + num_tokens]
        if _BREAK in found:
            return found[: found.index(_BREAK)]
        if repeat:
            period = len(found)
            for index in range(period, num_tokens):
                found.append(found[index - period])
        return found


class NgramIndex:
    """Where each pair of tokens occurred in `tokens`, latest first; `tokens` only ever gets longer."""

    __slots__ = ("_heads", "_links", "tokens")

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self._heads: dict[int, int] = {}  # pair -> position after its latest occurrence
        self._links = [-1] * MIN_MATCH  # [position] -> that after the occurrence before, or -1

    def update(self) -> None:
        """Index the tokens that are new. A pair counts once something follows it. Constant time per token."""
        heads, links = self._heads, self._links
        known = len(links)
        for position, (first, second) in enumerate(pairwise(self.tokens[known - MIN_MATCH : -1]), known):
            pair = first << 32 | second  # as `_pair`, which takes as long to call
            links.append(heads.get(pair, -1))
            heads[pair] = position

    def find(self, context: TokenIds[int]) -> Match | None:
        """The longest match among the latest: `tokens` before its position end as `context` does.

        Others as long say whether the same followed them, too. Lengths are counted up to `MAX_MATCH`.
        """
        if len(context) < MIN_MATCH:
            return None
        best: Match | None = None
        position = self._heads.get(_pair(context[-2], context[-1]), -1)
        for _ in range(_MAX_CANDIDATES):
            if position < 0:
                break
            length = self._match_length(context, position)
            if best is None or length > best.length:
                best = Match(self, position, length, SINGLE)
            elif length == best.length and best.kind != DISPUTED:
                best.kind = AGREED if self.tokens[position] == self.tokens[best.position] else DISPUTED
            position = self._links[position]
        return best

    def find_near(self, token: int, begin: int, end: int, center: int) -> Match | None:
        """The occurrence of `token` after which comes the position nearest to `center`, from `begin` to `end`."""
        tokens = self.tokens
        after = [i for i in range(max(1, begin), min(end, len(tokens))) if tokens[i - 1] == token]
        if not after:
            return None
        return Match(self, min(after, key=lambda position: abs(position - center)), 1, RESUMED)

    def _match_length(self, context: TokenIds[int], position: int) -> int:
        tokens, end = self.tokens, len(context)
        limit = min(MAX_MATCH, position, end)
        length = MIN_MATCH
        while length < limit and tokens[position - length - 1] == context[end - length - 1]:
            length += 1
        return length


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

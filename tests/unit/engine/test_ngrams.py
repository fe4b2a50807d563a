"""Matches among earlier tokens, and the history of finished requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from realm.engine.ngrams import LookupHistory, NgramIndex
from realm.engine.sureness import AGREED, DISPUTED, MAX_MATCH, SINGLE


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=10))
def test_a_match_is_among_the_longest_of_the_latest_occurrences(tokens: list[int], tail: list[int]) -> None:
    index = NgramIndex(tokens)
    index.update()
    context = tokens + tail
    match = index.find(context)

    def match_length(end: int) -> int:
        size = 0
        while size < min(MAX_MATCH, end) and tokens[end - size - 1] == context[len(context) - size - 1]:
            size += 1
        return size

    candidates = [end for end in range(len(tokens) - 1, 1, -1) if len(context) > 1 and match_length(end) >= 2][:8]
    if not candidates:
        assert match is None
        return
    assert match is not None
    longest = [end for end in candidates if match_length(end) == match.length]
    assert match.length == max(map(match_length, candidates))
    assert match.position == longest[0]
    following = {tokens[end] for end in longest}
    assert match.kind == (DISPUTED if len(following) > 1 else SINGLE if len(longest) == 1 else AGREED)


def test_history_is_bounded_in_tokens_and_domains() -> None:
    history = LookupHistory(max_domains=3, max_tokens=100)
    for number in range(50):
        history.add(bytes([number % 5]), list(range(number, number + 37)))
        assert history.num_tokens <= 300
    history.add(b"long", list(range(1000)))
    assert history.num_tokens <= 300
    kept = history.index(b"long")
    assert kept is not None
    assert kept.tokens[-2] == 999


def test_the_domain_unused_for_longest_is_forgotten_first() -> None:
    history = LookupHistory(max_domains=2)
    history.add(b"A", [1, 2, 3])
    history.add(b"B", [1, 2, 3])
    assert history.index(b"A") is not None
    history.add(b"C", [1, 2, 3])
    assert history.index(b"B") is None
    assert history.index(b"A") is not None


def test_an_occurrence_is_found_near_a_place() -> None:
    index = NgramIndex([7, 1, 7, 2, 7, 3, 7, 4])
    found = index.find_near(7, begin=2, end=6, center=6)
    assert found is not None
    assert found.following(1, repeat=False) == [3]
    assert index.find_near(7, begin=6, end=7, center=6) is None
    assert index.find_near(4, begin=0, end=99, center=6) is None, "nothing follows it"


def test_a_match_moves_on_to_the_first_token_that_differs() -> None:
    index = NgramIndex([1, 2, 3, 4, 5, 6])
    index.update()
    match = index.find([1, 2])
    assert match is not None
    assert match.follow([3, 4])
    assert (match.position, match.length) == (4, 4)
    assert not match.follow([5, 9])
    assert (match.position, match.length) == (5, 5)

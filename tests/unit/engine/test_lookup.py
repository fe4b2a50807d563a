"""Lookup drafts: what they find, what they forget, and that cache domains stay apart."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.core.types import Request, SamplingParams
from realm.engine.adaptive import DraftLength
from realm.engine.lookup import LookupProposer
from realm.engine.ngrams import LookupHistory
from realm.engine.sequence import Sequence


def sequence(
    tokens: list[int], domain: bytes = b"A", tenant: str = "t", stop_ids: frozenset[int] = frozenset()
) -> Sequence:
    request = Request("r", tuple(tokens), SamplingParams(), cache_domain=domain, tenant_id=tenant)
    return Sequence(request, 0, 10**6, stop_ids, b"")


def propose(tokens: list[int], max_tokens: int = 4) -> list[int]:
    return LookupProposer().propose([(sequence(tokens), max_tokens)])[0]


def test_what_followed_the_latest_tokens_before_is_proposed() -> None:
    assert propose([1, 2, 3, 4, 5, 6, 9, 1, 2], 3) == [3, 4, 5]
    assert propose([1, 2, 3, 9, 2, 3]) == [9, 2, 3, 9]


def test_one_token_in_common_is_no_match() -> None:
    assert propose([1, 2, 3, 9, 2]) == []
    assert propose([7]) == []
    assert propose([]) == []


def test_the_longest_match_wins_and_the_latest_of_equals() -> None:
    assert propose([5, 1, 2, 3, 8, 1, 2, 4, 9, 5, 1, 2], 1) == [3]
    assert propose([6, 1, 2, 3, 7, 1, 2, 4, 9, 1, 2], 1) == [4]


def test_a_loop_is_carried_on_beyond_what_is_known() -> None:
    assert propose([1, 2, 3, 1, 2, 3, 1, 2], 8) == [3, 1, 2, 3, 1, 2, 3, 1]
    assert propose([4, 4, 4], 5) == [4, 4, 4, 4, 4]


def decode(proposer: LookupProposer, seq: Sequence, output: list[int], max_tokens: int) -> int:
    """Make `output` come out of `seq` with drafts verified against it. Returns the number of steps."""
    num_steps = 0
    while output:
        drafts = proposer.propose([(seq, max_tokens)])[0]
        assert len(drafts) <= max_tokens
        num_accepted = 0
        while num_accepted < min(len(drafts), len(output) - 1) and drafts[num_accepted] == output[num_accepted]:
            num_accepted += 1
        seq.tokens.extend(output[: num_accepted + 1])
        proposer.observe(seq, len(drafts), num_accepted)
        output = output[num_accepted + 1 :]
        num_steps += 1
    return num_steps


def test_copying_a_passage_takes_few_steps() -> None:
    passage = random.Random(1).choices(range(1000), k=300)
    assert decode(LookupProposer(), sequence([*passage, 1, 2, 3]), passage, 9) < 300 / 9 + 5


def test_copying_goes_on_after_an_edit() -> None:
    passage = random.Random(2).choices(range(1000), k=300)
    edited = [*passage[:100], 5000, 5001, *passage[110:]]
    assert decode(LookupProposer(), sequence(passage), edited, 9) < 292 / 9 + 10


@pytest.mark.parametrize(
    ("edit", "num_skipped"),
    [([5000], 0), ([5000], 1), ([], 3), ([5000, 5001], 2)],
    ids=["insertion", "substitution", "deletion", "rewriting"],
)
def test_a_copy_is_taken_up_again_by_one_token(edit: list[int], num_skipped: int) -> None:
    """The first token after an edit that is the source's occurs elsewhere, too; the place tells which one is meant."""
    passage = list(range(100, 140))
    passage[20 + num_skipped] = 77
    prompt = [*passage, 77, 1, 77, 2]
    come = [*passage[:20], *edit, 77]
    proposer, seq = LookupProposer(), sequence([*prompt, *passage[:3]])
    proposer.propose([(seq, 1)])
    for token in come[3:]:
        seq.tokens.append(token)
        proposer.propose([(seq, 1)])
    following = passage[20 + num_skipped + 1 :]
    assert proposer.propose([(seq, 4)])[0] == following[:4]


def test_after_an_insertion_the_place_counts_for_more_than_two_tokens_elsewhere() -> None:
    """As in "nights he read" -> "nights, he read", where "the west, he rang" stands nearby."""
    passage, comma = list(range(100, 140)), 5
    passage[8], passage[20] = comma, passage[9]
    proposer, seq = LookupProposer(), sequence([*passage, *passage[:3]])
    proposer.propose([(seq, 1)])
    for token in [*passage[3:20], comma, passage[20]]:
        seq.tokens.append(token)
        drafts = proposer.propose([(seq, 4)])[0]
    assert drafts == passage[21:25]


def test_far_from_an_edit_one_token_is_no_match() -> None:
    passage = list(range(100, 140))
    proposer, seq = LookupProposer(), sequence([*passage, *passage[:20]])
    proposer.propose([(seq, 1)])
    for token in [*range(1000, 1015), passage[20]]:
        seq.tokens.append(token)
        drafts = proposer.propose([(seq, 4)])[0]
    assert drafts == []


def test_what_ends_a_request_is_never_drafted() -> None:
    seq = sequence([1, 2, 3, 9, 4, 1, 2], stop_ids=frozenset({9}))
    assert LookupProposer().propose([(seq, 4)])[0] == [3]
    assert LookupProposer().propose([(sequence([1, 2, 9, 4, 1, 2], stop_ids=frozenset({9})), 4)])[0] == []


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=60), st.integers(1, 6))
def test_proposals_depend_on_the_tokens_alone(prompt: list[int], output: list[int], max_tokens: int) -> None:
    runs = []
    for _ in range(2):
        history = LookupHistory()
        proposer = LookupProposer(DraftLength(8), history)
        first, second = sequence(prompt), sequence(prompt)
        steps = decode(proposer, first, output, max_tokens)
        proposer.finish(first)
        runs.append((steps, decode(proposer, second, output, max_tokens)))
    assert runs[0] == runs[1]


def test_history_helps_the_same_domain_only() -> None:
    secret = random.Random(3).choices(range(1000), k=60)
    proposer = LookupProposer(history=LookupHistory())
    first = sequence(secret, b"A")
    proposer.propose([(first, 4)])[0]
    proposer.finish(first)
    assert proposer.propose([(sequence([7, *secret[10:13]], b"A"), 4)])[0] == secret[13:17]
    assert proposer.propose([(sequence([7, *secret[10:13]], b"B"), 4)])[0] == []


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 5), min_size=1, max_size=12)), max_size=30))
def test_no_token_of_another_domain_is_ever_proposed(requests: list[tuple[bool, list[int]]]) -> None:
    """Domain A uses tokens 0 to 5; B uses the same ones to match on, and 10 to 15 to follow."""
    proposer = LookupProposer(history=LookupHistory(max_domains=2, max_tokens=40))
    for in_a, tokens in requests:
        mine = tokens if in_a else [t + 10 * (i % 3 == 2) for i, t in enumerate(tokens)]
        seq = sequence(mine, b"A" if in_a else b"B")
        drafts = proposer.propose([(seq, 6)])[0]
        if in_a:
            assert all(token < 10 for token in drafts)
        proposer.finish(seq)


def test_without_a_history_nothing_outlives_a_request() -> None:
    proposer = LookupProposer()
    seq = sequence([1, 2, 3, 4])
    proposer.propose([(seq, 4)])[0]
    proposer.finish(seq)
    assert seq.draft_state is None
    assert proposer.propose([(sequence([1, 2]), 4)])[0] == []


def test_a_draft_does_not_run_into_the_next_document() -> None:
    history = LookupHistory()
    history.add(b"A", [1, 2, 3])
    history.add(b"A", [4, 5, 6])
    proposer = LookupProposer(history=history)
    assert proposer.propose([(sequence([9, 1, 2]), 4)])[0] == [3]
    assert proposer.propose([(sequence([9, 2, 3]), 4)])[0] == []


def test_a_request_may_draft_on_while_its_history_is_renewed() -> None:
    document = list(range(100, 140))
    history = LookupHistory(max_tokens=100)
    history.add(b"A", document)
    proposer = LookupProposer(history=history)
    seq = sequence([1, *document[:4]])
    assert proposer.propose([(seq, 2)])[0] == document[4:6]
    for start in range(0, 400, 40):
        history.add(b"A", list(range(1000 + start, 1040 + start)))
    seq.tokens.extend(document[4:7])
    assert proposer.propose([(seq, 2)])[0] == document[7:9]


def test_guesses_that_are_wrong_stop_being_drafted_and_come_back_when_right() -> None:
    length = DraftLength(8)
    for rows in range(1, 10):
        length.end_step(rows, 1.0 + 0.2 * rows)
    proposer = LookupProposer(length)
    rng = random.Random(4)
    seq = sequence([1, 2])

    def step(following: int) -> int:
        length.begin_step(1, 1.0)
        drafts = proposer.propose([(seq, 1)])[0]
        seq.tokens.append(following)
        if drafts:
            proposer.observe(seq, 1, drafts == [following])
        return len(drafts)

    drafted = []
    for _ in range(60):
        drafted += [step(rng.randrange(10**6)), step(1), step(2)]
    assert sum(drafted[-60:]) == 0
    drafted = [step(token) for token in [7, 1, 2] * 40]
    assert min(drafted[-20:]) > 0


def test_steps_without_guesses_are_caught_up_with() -> None:
    length = DraftLength(8)
    for rows in range(1, 64):
        length.end_step(rows, max(4.0, rows))
    proposer = LookupProposer(length)
    passage = list(range(100, 140))
    seq = sequence([*passage, 1, 2, *passage[:4]])
    length.begin_step(1, 1.0)
    assert proposer.propose([(seq, 3)])[0] == passage[4:7]
    for token in passage[4:9]:
        length.begin_step(18, 18.0)
        assert proposer.propose([(seq, 3)])[0] == []
        seq.tokens.append(token)
    length.begin_step(1, 1.0)
    assert proposer.propose([(seq, 3)])[0] == passage[9:12]

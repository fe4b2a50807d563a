"""Blocks of the draft model: held by one request each, given back, taken from those that drafted longest ago."""

from __future__ import annotations

import numpy as np
import pytest

from realm.core.types import Request, SamplingParams
from realm.engine.draft_kv import DraftKV, draft_batch
from realm.engine.sequence import Sequence


def sequence(name: str, num_tokens: int, row: int) -> Sequence:
    seq = Sequence(Request(name, tuple(range(num_tokens)), SamplingParams()), 0, 10**6, frozenset(), b"")
    seq.row = row
    return seq


def draft(kv: DraftKV, seq: Sequence, drafts: list[int], busy: set[str] = frozenset()) -> bool:
    """As if the draft model had computed all of `seq` and these drafts."""
    context = kv.get(seq)
    if not kv.reserve(seq, len(seq.tokens) + len(drafts), busy | {seq.request_id}):
        return False
    context.num_computed = len(seq.tokens)
    context.unverified = list(drafts)
    return True


def test_accepted_drafts_count_as_computed_and_rejected_ones_give_their_blocks_back() -> None:
    kv = DraftKV(8, 16, 2, 8)
    seq = sequence("a", 15, 0)
    assert draft(kv, seq, [7, 8, 9])
    assert kv.pool.num_used == 2
    seq.tokens += [7, 5]
    kv.truncate(seq)
    assert kv.get(seq).num_computed == 16
    assert kv.lag(seq) == 1
    assert kv.pool.num_used == 1
    kv.check_integrity({"a"})


def test_the_request_that_drafted_longest_ago_gives_way() -> None:
    kv = DraftKV(4, 16, 4, 4)
    a, b, c = (sequence(name, 30, row) for row, name in enumerate("abc"))
    assert draft(kv, a, [])
    assert draft(kv, b, [])
    assert draft(kv, a, [1])
    assert draft(kv, c, [])
    assert kv.lag(b) == len(b.tokens), "what gave way has to be computed again"
    assert kv.lag(a) == 0
    kv.check_integrity({"a", "b", "c"})


def test_those_that_draft_now_never_give_way() -> None:
    kv = DraftKV(4, 16, 4, 4)
    a, b, c = (sequence(name, 30, row) for row, name in enumerate("abc"))
    assert draft(kv, a, [])
    assert draft(kv, b, [])
    assert not draft(kv, c, [], busy={"a", "b"})
    kv.check_integrity({"a", "b", "c"})
    kv.release("c")
    assert kv.pool.num_used == 4


def test_a_request_larger_than_the_pool_gets_nothing() -> None:
    kv = DraftKV(2, 16, 1, 4)
    assert not draft(kv, sequence("a", 40, 0), [])
    kv.release("a")
    kv.check_integrity(set())
    assert kv.pool.num_used == 0


def test_tables_follow_a_request_from_row_to_row_and_back() -> None:
    """Preempted, it comes back to another row, and again to the first one, which nobody else has used meanwhile."""
    kv = DraftKV(8, 16, 2, 8)
    seq = sequence("a", 10, 0)
    assert draft(kv, seq, [])
    for row, num_tokens in ((1, 40), (0, 40), (1, 60)):
        seq.row = row
        seq.tokens = list(range(num_tokens))
        assert draft(kv, seq, [])
        blocks = kv.get(seq).blocks
        assert kv.tables([row])[0, : len(blocks)].tolist() == blocks


def test_a_row_forgets_the_request_that_had_it() -> None:
    kv = DraftKV(8, 16, 1, 8)
    for name in "abc":
        seq = sequence(name, 40, 0)
        assert draft(kv, seq, [])
        assert kv.tables([0])[0, :3].tolist() == kv.get(seq).blocks
        if name != "b":  # the last one is still there when its row is given away
            kv.release(name)
    kv.release("b")
    kv.check_integrity(set())


def test_integrity_notices_a_request_that_has_ended() -> None:
    kv = DraftKV(8, 16, 1, 8)
    draft(kv, sequence("a", 3, 0), [])
    with pytest.raises(AssertionError, match="has ended"):
        kv.check_integrity(set())


def test_a_batch_judges_the_last_token_of_those_that_guess() -> None:
    batch = draft_batch([[1, 2, 3], [4], [5, 6]], [0, 9, 2], np.zeros((3, 4), np.int32), [True, False, True])
    assert batch.token_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.query_starts.tolist() == [0, 3, 4, 6]
    assert batch.logit_rows.tolist() == [2, 5]
    assert batch.adapter_slots.tolist() == [-1, -1, -1], "drafts are the base model's"

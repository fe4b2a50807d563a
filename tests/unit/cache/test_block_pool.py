from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from realm.cache.block_pool import BlockPool, chain_hash, chain_root


def test_allocates_all_or_nothing():
    pool = BlockPool(4, 16)
    assert pool.allocate(5) is None
    assert pool.num_available == 4
    blocks = pool.allocate(4)
    assert sorted(blocks) == [0, 1, 2, 3]
    assert pool.allocate(1) is None
    pool.release(blocks)
    assert pool.num_available == 4
    pool.check_integrity([])


def test_a_named_block_is_found_until_it_is_evicted():
    pool = BlockPool(2, 4)
    name = chain_hash(chain_root(b"x"), [1, 2, 3, 4])
    (block,) = pool.allocate(1)
    pool.publish(block, name)
    pool.release([block])
    assert pool.find(name) == block
    assert (pool.num_cached, pool.num_used) == (1, 0)
    pool.share([block])
    assert (pool.num_cached, pool.num_used) == (0, 1)
    pool.release([block])
    assert pool.allocate(2) is not None
    assert pool.find(name) is None


def test_eviction_takes_the_longest_unused_and_a_chains_end_first():
    pool = BlockPool(4, 4)
    names = []
    parent = chain_root(b"")
    blocks = pool.allocate(3)
    for i, block in enumerate(blocks):
        parent = chain_hash(parent, [i] * 4)
        names.append(parent)
        pool.publish(block, parent)
    pool.release(blocks)
    pool.allocate(2)  # the free one, then the end of the chain
    assert [pool.find(name) is not None for name in names] == [True, True, False]
    pool.share([blocks[0]])
    pool.release([blocks[0]])  # used most recently now
    pool.allocate(1)
    assert [pool.find(name) is not None for name in names] == [True, False, False]


def test_the_first_block_of_a_name_keeps_it():
    pool = BlockPool(3, 4)
    name = chain_hash(chain_root(b""), [1, 2, 3, 4])
    first, second = pool.allocate(2)
    pool.publish(first, name)
    pool.publish(second, name)
    assert pool.find(name) == first
    pool.release([first, second])
    assert (pool.num_cached, pool.num_available) == (1, 3)


def test_names_depend_on_domain_position_and_every_token():
    root = chain_root(b"a")
    first = chain_hash(root, [1, 2, 3, 4])
    names = {
        first,
        chain_hash(chain_root(b"b"), [1, 2, 3, 4]),
        chain_hash(chain_root(b""), [1, 2, 3, 4]),
        chain_hash(first, [1, 2, 3, 4]),
        chain_hash(root, [1, 2, 3, 5]),
        chain_hash(root, [2, 1, 3, 4]),
    }
    assert len(names) == 6
    assert first == chain_hash(chain_root(b"a"), [1, 2, 3, 4])


def test_without_prefix_cache_nothing_is_named():
    pool = BlockPool(2, 4, prefix_cache=False)
    name = chain_hash(chain_root(b""), [1, 2, 3, 4])
    (block,) = pool.allocate(1)
    pool.publish(block, name)
    assert pool.find(name) is None


def test_clearing_forgets_names_but_keeps_owners():
    pool = BlockPool(3, 4)
    root = chain_root(b"")
    kept, dropped = pool.allocate(2)
    pool.publish(kept, chain_hash(root, [1] * 4))
    pool.publish(dropped, chain_hash(root, [2] * 4))
    pool.release([dropped])
    pool.clear_cache()
    pool.check_integrity([[kept]])
    assert (pool.num_cached, pool.num_used, pool.num_available) == (0, 1, 2)
    assert pool.find(chain_hash(root, [1] * 4)) is None


def test_integrity_notices_damage():
    pool = BlockPool(3, 4)
    (block,) = pool.allocate(1)
    with pytest.raises(AssertionError, match="disagree"):
        pool.check_integrity([])
    pool._free.append(block)
    with pytest.raises(AssertionError, match="two states"):
        pool.check_integrity()
    pool._free.clear()
    with pytest.raises(AssertionError, match="lost"):
        pool.check_integrity()


class PoolMachine(RuleBasedStateMachine):
    """Random owners allocate, name, share and release; the pool's books must always agree with theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(8, 4)
        self.owned: list[list[int]] = []

    @rule(num_blocks=st.integers(1, 9))
    def allocate(self, num_blocks: int) -> None:
        available = self.pool.num_available
        blocks = self.pool.allocate(num_blocks)
        assert (blocks is None) == (num_blocks > available)
        if blocks is not None:
            self.owned.append(blocks)

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), token=st.integers(0, 5))
    def publish(self, data: st.DataObject, token: int) -> None:
        blocks = data.draw(st.sampled_from(self.owned))
        self.pool.publish(blocks[0], chain_hash(chain_root(b""), [token] * 4))

    @rule(token=st.integers(0, 5))
    def share(self, token: int) -> None:
        block = self.pool.find(chain_hash(chain_root(b""), [token] * 4))
        if block is not None:
            self.pool.share([block])
            self.owned.append([block])

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.owned.pop(data.draw(st.integers(0, len(self.owned) - 1))))

    @invariant()
    def whole(self) -> None:
        self.pool.check_integrity(self.owned)


PoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestPoolMachine = PoolMachine.TestCase

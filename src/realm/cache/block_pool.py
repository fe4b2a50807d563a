"""The paged KV cache's bookkeeping: which block holds what, and which blocks can be used again.

Every block is in exactly one state:

    free     no owner, content worthless            in `_free`
    cached   no owner, content named by a hash      in `_lru`, oldest first
    used     `refs` owners, perhaps named by a hash in neither

A block's name is a SHA-256 chain over all tokens up to its end, rooted in the cache domain: equal names mean equal
tokens, equal positions and equal domain, so that a hit can't cross a domain. Source: vLLM's automatic prefix caching.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import sha256

_ROOT = b"realm-kv-chain-v1"


def chain_root(cache_domain: bytes) -> bytes:
    """The parent of every first block of a domain: 32 bytes, whatever the length of `cache_domain`."""
    return sha256(_ROOT + cache_domain).digest()


def chain_hash(parent: bytes, token_ids: list[int]) -> bytes:
    """Name of a full block: SHA-256 of its parent's name (32 bytes) and its tokens (4 bytes each)."""
    return sha256(parent + array("i", token_ids).tobytes()).digest()


class BlockPool:
    """Allocates blocks of `block_tokens` tokens, counts their owners, keeps freed ones as a prefix cache.

    Args:
        num_blocks: Blocks the executor's cache holds.
        block_tokens: Tokens in one block.
        prefix_cache: Whether blocks are named and found again; if not, a freed block is worthless at once.
    """

    __slots__ = ("_block_of", "_free", "_hash_of", "_lru", "_refs", "block_tokens", "num_blocks", "prefix_cache")

    def __init__(self, num_blocks: int, block_tokens: int, prefix_cache: bool = True) -> None:
        assert num_blocks > 0
        assert block_tokens > 0
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.prefix_cache = prefix_cache
        self._free = list(range(num_blocks - 1, -1, -1))
        self._lru: OrderedDict[int, None] = OrderedDict()
        self._refs = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could give now: free and cached ones."""
        return len(self._free) + len(self._lru)

    @property
    def num_cached(self) -> int:
        """Blocks without an owner that a prefix hit could still use."""
        return len(self._lru)

    @property
    def num_used(self) -> int:
        """Blocks with at least one owner."""
        return self.num_blocks - self.num_available

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_tokens)

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Give `num_blocks` blocks with one owner each, or None (and nothing changes) if there are not as many.

        Free blocks go first, then the cached ones that have lain unused longest.
        """
        if num_blocks > len(self._free) + len(self._lru):
            return None
        blocks = []
        for _ in range(num_blocks):
            if self._free:
                block = self._free.pop()
            else:
                block, _none = self._lru.popitem(last=False)
                self._forget(block)
            self._refs[block] = 1
            blocks.append(block)
        return blocks

    def find(self, block_hash: bytes) -> int | None:
        """The block of this name, if the cache has it. Call `share` before anything else is allocated."""
        return self._block_of.get(block_hash)

    def share(self, blocks: list[int]) -> None:
        """Add one owner to each of these used or cached blocks."""
        for block in blocks:
            if self._refs[block] == 0:
                del self._lru[block]
            self._refs[block] += 1

    def publish(self, block: int, block_hash: bytes) -> None:
        """Name a used block whose tokens are all computed and accepted. The first block of a name keeps it."""
        assert self._refs[block] > 0
        if self.prefix_cache and self._hash_of[block] is None and block_hash not in self._block_of:
            self._hash_of[block] = block_hash
            self._block_of[block_hash] = block

    def release(self, blocks: list[int]) -> None:
        """Take one owner from each block. The last of a chain is put away first, so that it is evicted first."""
        for block in reversed(blocks):
            assert self._refs[block] > 0
            self._refs[block] -= 1
            if self._refs[block] == 0:
                if self._hash_of[block] is None:
                    self._free.append(block)
                else:
                    self._lru[block] = None

    def clear_cache(self) -> None:
        """Forget every name. Owners keep their blocks; cached blocks become free."""
        for block in list(self._block_of.values()):
            self._forget(block)
        self._free.extend(self._lru)
        self._lru.clear()

    def check_integrity(self, owned: list[list[int]] | None = None) -> None:
        """Assert that every block is in one state and that the name maps agree.

        Args:
            owned: The block lists of all owners; their counts must then equal the reference counts.
        """
        free = set(self._free)
        cached = set(self._lru)
        used = {b for b in range(self.num_blocks) if self._refs[b] > 0}
        assert len(free) == len(self._free), "a block is free twice"
        assert not (free & cached) | (free & used) | (cached & used), "a block is in two states"
        assert len(free) + len(cached) + len(used) == self.num_blocks, "a block is lost"
        assert all(refs >= 0 for refs in self._refs), "a reference count is negative"
        assert all(self._hash_of[b] is None for b in free), "a free block has a name"
        assert all(self._hash_of[b] is not None for b in cached), "a cached block has no name"
        named = {h: b for b, h in enumerate(self._hash_of) if h is not None}
        assert named == self._block_of, "names and blocks disagree"
        if owned is not None:
            counts = [0] * self.num_blocks
            for blocks in owned:
                assert len(set(blocks)) == len(blocks), "one owner holds a block twice"
                for block in blocks:
                    counts[block] += 1
            assert counts == self._refs, "owners and reference counts disagree"

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of[block]
        assert block_hash is not None
        del self._block_of[block_hash]
        self._hash_of[block] = None

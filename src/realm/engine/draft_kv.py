"""The draft model's KV cache: blocks of its own, held for requests as long as there are enough."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from realm.cache.block_pool import BlockPool
from realm.core.types import Batch, Int32Array
from realm.engine.sequence import Sequence


@dataclass(slots=True, eq=False)
class DraftContext:
    """What the draft model holds of one request: the KV of `num_computed` tokens, and of `unverified` after them."""

    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    unverified: list[int] = field(default_factory=list)
    """Drafts whose KV follows; they count as computed once they turn out to be what came."""
    row: int = -1
    """The request's row of the block table when it drafted last."""
    num_tabled: int = 0
    """Blocks of `blocks`, from the first, that this row has, if nobody else's are in it."""

    def settle(self, tokens: list[int]) -> None:
        """Count those of `unverified` that `tokens` has too, and forget the others."""
        for token in self.unverified:
            if self.num_computed >= len(tokens) or tokens[self.num_computed] != token:
                break
            self.num_computed += 1
        self.unverified = []


class DraftKV:
    """Gives requests draft KV, taking it from those that have not drafted for longest when it runs out.

    Args:
        num_blocks: Blocks of the draft executor's cache.
        block_tokens: Tokens in one block.
        max_batch_size: Rows of the block table: running requests.
        max_blocks: Blocks of the longest request.
    """

    def __init__(self, num_blocks: int, block_tokens: int, max_batch_size: int, max_blocks: int) -> None:
        self.pool = BlockPool(num_blocks, block_tokens, prefix_cache=False)
        self._contexts: OrderedDict[str, DraftContext] = OrderedDict()  # that drafted latest comes last
        self._tables = np.zeros((max_batch_size, max_blocks), np.int32)
        self._owners: list[DraftContext | None] = [None] * max_batch_size  # of the table's rows

    def get(self, seq: Sequence) -> DraftContext:
        """The context of a request, an empty one if it has none; settled with what is known now."""
        context = self._contexts.get(seq.request_id)
        if context is None:
            context = self._contexts[seq.request_id] = DraftContext()
        elif context.unverified:
            context.settle(seq.tokens)
        return context

    def lag(self, seq: Sequence) -> int:
        """Known tokens whose draft KV is missing."""
        context = self._contexts.get(seq.request_id)
        return len(seq.tokens) - (context.num_computed if context is not None else 0)

    def reserve(self, seq: Sequence, num_tokens: int, busy: set[str]) -> bool:
        """Blocks for the first `num_tokens` tokens of `seq`, taken from others that are not `busy` if need be."""
        context = self._contexts[seq.request_id]
        self._contexts.move_to_end(seq.request_id)
        num_new = self.pool.blocks_for(num_tokens) - len(context.blocks)
        while num_new > 0:
            blocks = self.pool.allocate(num_new)
            if blocks is not None:
                context.blocks += blocks
                break
            if not self._drop_oldest(busy):
                return False
        self._tabulate(seq, context)
        return True

    def truncate(self, seq: Sequence) -> None:
        """Settle what was drafted and give back the blocks that only rejected drafts have used."""
        context = self._contexts.get(seq.request_id)
        if context is None:
            return
        context.settle(seq.tokens)
        num_blocks = self.pool.blocks_for(context.num_computed)
        if num_blocks < len(context.blocks):
            self.pool.release(context.blocks[num_blocks:])
            del context.blocks[num_blocks:]
            context.num_tabled = min(context.num_tabled, num_blocks)

    def release(self, request_id: str) -> None:
        """Forget a request."""
        context = self._contexts.pop(request_id, None)
        if context is not None:
            self.pool.release(context.blocks)

    def tables(self, rows: list[int]) -> Int32Array:
        """Block tables [R, M] of the requests with these rows."""
        return self._tables[rows]

    def check_integrity(self, request_ids: set[str]) -> None:
        """Assert that blocks belong to requests that are still there, and to one each."""
        assert set(self._contexts) <= request_ids, "draft KV of a request that has ended"
        for context in self._contexts.values():
            held = len(context.blocks) * self.pool.block_tokens
            assert context.num_computed + len(context.unverified) <= held, "draft KV without a block"
        self.pool.check_integrity([context.blocks for context in self._contexts.values()])

    def _drop_oldest(self, busy: set[str]) -> bool:
        for request_id, context in self._contexts.items():
            if context.blocks and request_id not in busy:
                self.release(request_id)
                return True
        return False

    def _tabulate(self, seq: Sequence, context: DraftContext) -> None:
        # A request that was preempted comes back to any row, also to one that it had before.
        if context.row != seq.row or self._owners[seq.row] is not context:
            self._owners[seq.row] = context
            context.row = seq.row
            context.num_tabled = 0
        if context.num_tabled < len(context.blocks):
            self._tables[seq.row, context.num_tabled : len(context.blocks)] = context.blocks[context.num_tabled :]
            context.num_tabled = len(context.blocks)


def draft_batch(
    tokens: list[list[int]], context_lens: list[int], tables: Int32Array, is_judged: list[bool] | None = None
) -> Batch:
    """A step of the draft model: `tokens` of each request, with the logits after the last one of those judged."""
    starts = [0, *accumulate([len(row) for row in tokens])]
    judged = (
        starts[1:] if is_judged is None else [end for end, ready in zip(starts[1:], is_judged, strict=True) if ready]
    )
    return Batch(
        token_ids=np.array([token for row in tokens for token in row], np.int32),
        query_starts=np.array(starts, np.int32),
        context_lens=np.array(context_lens, np.int32),
        block_tables=tables,
        logit_rows=np.array(judged, np.int32) - 1,
        adapter_slots=np.full(len(tokens), -1, np.int32),
    )

"""Batches of one request, to drive an executor without an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from realm.core.types import Batch, Float32Array
from realm.kernels.ops import Executor


def chunk(
    ids: Sequence[int], context: int, block_table: Sequence[int], first_row: int = 0, adapter_slot: int = -1
) -> Batch:
    """The tokens `ids` after `context` tokens that are in the cache already; rows from `first_row` on are judged."""
    return Batch(
        token_ids=np.array(ids, np.int32),
        query_starts=np.array([0, len(ids)], np.int32),
        context_lens=np.array([context], np.int32),
        block_tables=np.array([block_table], np.int32),
        logit_rows=np.arange(min(first_row, len(ids)), len(ids), dtype=np.int32),
        adapter_slots=np.array([adapter_slot], np.int32),
    )


def logits_in_chunks(
    executor: Executor, ids: Sequence[int], size: int, block_tokens: int, first: int = 0, adapter_slot: int = -1
) -> Iterator[Float32Array]:
    """Logits of every position from `first` on, `size` tokens a step, over blocks in shuffled order."""
    num_blocks = -(-len(ids) // block_tokens)
    table = np.random.default_rng(0).permutation(executor.num_kv_blocks)[:num_blocks]
    for start in range(0, len(ids), size):
        part = chunk(ids[start : start + size], start, table.tolist(), max(0, first - start), adapter_slot)
        yield executor.step(part).copy()

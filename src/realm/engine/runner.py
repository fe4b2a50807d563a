"""Turns a plan into one `Batch`. All arrays are made once; a step only fills them.

Between two steps Python finds its code and data pushed out of the caches by the weights, so each call of numpy costs
microseconds. While the same requests decode, a step therefore only writes what has changed.
"""

from __future__ import annotations

import numpy as np

from realm.core.types import Batch, Int32Array
from realm.engine.sequence import Sequence


class Runner:
    """Holds the block tables of running requests and the arrays of the step.

    Args:
        max_batch_size: Rows of the tables, R at most.
        max_batch_tokens: T at most.
        max_blocks: M, blocks of the longest request.
    """

    __slots__ = (
        "_adapter_slots",
        "_arange",
        "_context_lens",
        "_decode_batch",
        "_decoding",
        "_logit_rows",
        "_query_starts",
        "_tables",
        "_token_ids",
    )

    def __init__(self, max_batch_size: int, max_batch_tokens: int, max_blocks: int) -> None:
        self._tables = np.zeros((max_batch_size, max_blocks), np.int32)
        self._token_ids = np.empty(max_batch_tokens, np.int32)
        self._query_starts = np.zeros(max_batch_size + 1, np.int32)
        self._context_lens = np.empty(max_batch_size, np.int32)
        self._logit_rows = np.empty(max_batch_tokens, np.int32)
        self._adapter_slots = np.empty(max_batch_size, np.int32)
        self._arange = np.arange(max_batch_tokens + 1, dtype=np.int32)
        self._decoding: list[Sequence] = []
        self._decode_batch: Batch | None = None  # of the step before, if it was one in which `_decoding` decoded

    def load(self, seq: Sequence) -> None:
        """Start using `seq.row` for a newly admitted request."""
        self._tables[seq.row] = 0

    def build(self, plan: list[Sequence]) -> Batch:
        """The step's input; views of this runner's arrays, valid until the next call."""
        if all([seq.num_scheduled == 1 == len(seq.tokens) - seq.num_computed for seq in plan]):  # noqa: C419  (quicker)
            return self._build_decode(plan)
        self._decode_batch = None
        for seq in plan:
            self._update_table(seq)
        num_tokens = self._fill_ragged(plan)
        return self._batch(plan, num_tokens, self._query_starts[: len(plan) + 1], self._fill_logit_rows(plan))

    def _build_decode(self, plan: list[Sequence]) -> Batch:
        """One more token for each request, and no drafts."""
        num_requests = len(plan)
        self._token_ids[:num_requests] = [seq.tokens[-1] for seq in plan]
        batch = self._decode_batch
        has_new_blocks = True in [self._update_table(seq) for seq in plan]
        # (Who gave way and came back, perhaps to another row, has new blocks.)
        if batch is None or has_new_blocks or plan != self._decoding:
            judged = self._arange[:num_requests]
            batch = self._batch(plan, num_requests, self._arange[: num_requests + 1], judged)
            self._decoding, self._decode_batch = plan, batch
        else:
            batch.context_lens[:] = [seq.num_computed for seq in plan]
        return batch

    def _batch(self, plan: list[Sequence], num_tokens: int, query_starts: Int32Array, logit_rows: Int32Array) -> Batch:
        num_requests = len(plan)
        self._context_lens[:num_requests] = [seq.num_computed for seq in plan]
        self._adapter_slots[:num_requests] = [seq.adapter_slot for seq in plan]
        return Batch(
            token_ids=self._token_ids[:num_tokens],
            query_starts=query_starts,
            context_lens=self._context_lens[:num_requests],
            block_tables=self._tables[[seq.row for seq in plan]],
            logit_rows=logit_rows,
            adapter_slots=self._adapter_slots[:num_requests],
            likeliest_only=all([seq.greedy for seq in plan]),  # noqa: C419  (quicker)
        )

    def _fill_ragged(self, plan: list[Sequence]) -> int:
        token_ids = self._token_ids
        row = 0
        starts = [0]
        for seq in plan:
            begin = seq.num_computed
            end = row + seq.num_scheduled
            if seq.drafts:
                token_ids[row:end] = [seq.tokens[begin], *seq.drafts]
            else:
                token_ids[row:end] = seq.tokens[begin : begin + seq.num_scheduled]
            row = end
            starts.append(end)
        self._query_starts[: len(starts)] = starts
        return row

    def _fill_logit_rows(self, plan: list[Sequence]) -> Int32Array:
        """Rows that judge: the last known token of each request that gets so far, and each draft after it."""
        rows: list[int] = []
        end = 0
        for seq in plan:
            end += seq.num_scheduled
            if seq.num_computed + seq.num_scheduled >= len(seq.tokens):
                rows.extend(range(end - len(seq.drafts) - 1, end))
        self._logit_rows[: len(rows)] = rows
        return self._logit_rows[: len(rows)]

    def _update_table(self, seq: Sequence) -> bool:
        """Copy blocks that the table doesn't have yet, if any. (Entries behind a truncated end are never read.)"""
        num_tabled, num_blocks = seq.num_tabled, len(seq.blocks)
        if num_tabled >= num_blocks:
            return False
        self._tables[seq.row, num_tabled:num_blocks] = seq.blocks[num_tabled:]
        seq.num_tabled = num_blocks
        return True

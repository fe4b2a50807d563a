"""A batch says what its plan says, whatever the batches before it were."""

from copy import copy

import numpy as np

from realm.core.types import Batch, Request, SamplingParams
from realm.engine.runner import Runner
from realm.engine.sequence import Sequence

ARRAYS = ("token_ids", "query_starts", "context_lens", "logit_rows", "adapter_slots")
BLOCK_TOKENS, MAX_BLOCKS, NUM_ROWS = 4, 16, 6


def sequence(arrival: int, prompt: list[int]) -> Sequence:
    request = Request(f"r{arrival}", tuple(prompt), SamplingParams(temperature=0.0 if arrival % 4 else 1.0))
    seq = Sequence(request, arrival, BLOCK_TOKENS * MAX_BLOCKS, frozenset(), b"")
    seq.num_computed = seq.num_scheduled = 0
    return seq


def arrays(batch: Batch, plan: list[Sequence]) -> list[list]:
    """What of a batch is read: behind a request's blocks anything may stand."""
    tables = [table[: len(seq.blocks)].tolist() for table, seq in zip(batch.block_tables, plan, strict=True)]
    return [tables, *(getattr(batch, name).tolist() for name in ARRAYS)]


def built_anew(plan: list[Sequence]) -> Batch:
    runner = Runner(NUM_ROWS, 256, MAX_BLOCKS)
    copies = [copy(seq) for seq in plan]
    for seq in copies:
        seq.num_tabled = 0
        runner.load(seq)
    return runner.build(copies)


def test_against_a_runner_that_knows_no_past() -> None:
    rng = np.random.default_rng(2)
    runner = Runner(NUM_ROWS, 256, MAX_BLOCKS)
    running: list[Sequence] = []
    free_rows = list(range(NUM_ROWS))
    num_decodes = num_likeliest = 0
    for step in range(2000):
        if running and rng.random() < 0.03:
            free_rows.append(running.pop(rng.integers(len(running))).row)
        if running and rng.random() < 0.05:  # gives way, and is back before anybody has had a step
            seq = running[rng.integers(len(running))]
            free_rows.append(seq.row)
            seq.row, seq.num_tabled = free_rows.pop(0), 0
            runner.load(seq)
        if free_rows and (not running or rng.random() < 0.05):
            seq = sequence(step, rng.integers(0, 99, rng.integers(1, 20)).tolist())
            seq.row, seq.adapter_slot = free_rows.pop(rng.integers(len(free_rows))), int(rng.integers(-1, 3))
            runner.load(seq)
            running.append(seq)
        for seq in running:
            left = len(seq.tokens) - seq.num_computed
            seq.num_scheduled = left if left == 1 else int(rng.integers(1, left + 1))
            seq.drafts = rng.integers(0, 99, 2).tolist() if left == 1 and rng.random() < 0.02 else []
            seq.num_scheduled += len(seq.drafts)
            while len(seq.blocks) * BLOCK_TOKENS < seq.num_computed + seq.num_scheduled:
                seq.blocks.append(int(rng.integers(1, 1000)))
        plan = running.copy()
        batch = runner.build(plan)
        num_decodes += len(batch.token_ids) == len(plan)
        num_likeliest += batch.likeliest_only
        assert batch.likeliest_only == all(seq.greedy for seq in plan)
        assert arrays(batch, plan) == arrays(built_anew(plan), plan)
        for seq in plan:
            seq.num_computed += seq.num_scheduled - len(seq.drafts)
            if seq.num_computed == len(seq.tokens):
                seq.tokens.append(int(rng.integers(99)))
            needed = -(-len(seq.tokens) // BLOCK_TOKENS)
            del seq.blocks[needed:]
            seq.num_tabled = min(seq.num_tabled, needed)
            if len(seq.tokens) >= BLOCK_TOKENS * MAX_BLOCKS - 4:
                running.remove(seq)
                free_rows.append(seq.row)
    assert num_decodes > 500
    assert 100 < num_likeliest < 1900

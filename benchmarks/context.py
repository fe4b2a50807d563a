"""What long contexts cost: decode steps over each KV type, and how near they come to the memory's bandwidth.

Times the native step alone; `realm bench --context` has the whole engine. The contexts are computed first, in chunks:
memory that was never written would be one page of zeros, in the CPU's cache however much of it is read.

Example: python benchmarks/context.py MODEL.gguf --cases 32x128 32x1024 4x8064 --out benchmarks/results/context.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from realm.cli.machine import stamp
from realm.cli.measure import memory_bandwidth
from realm.core.config import EngineConfig, KVType
from realm.core.types import Batch
from realm.gguf.card import read_card
from realm.gguf.reader import GGUFFile
from realm.kernels.cpu import NativeExecutor
from realm.models.loader import load_model

BLOCK_TOKENS = EngineConfig().kv_block_tokens


def decode_batch(batch_size: int, context_tokens: int, num_blocks: int) -> Batch:
    """One more token for each request, its blocks anywhere in the pool."""
    width = context_tokens // BLOCK_TOKENS + 1
    rng = np.random.default_rng(0)
    return Batch(
        token_ids=rng.integers(100, 1000, batch_size).astype(np.int32),
        query_starts=np.arange(batch_size + 1, dtype=np.int32),
        context_lens=np.full(batch_size, context_tokens, np.int32),
        block_tables=rng.permutation(num_blocks)[: batch_size * width].reshape(batch_size, width).astype(np.int32),
        logit_rows=np.arange(batch_size, dtype=np.int32),
        adapter_slots=np.full(batch_size, -1, np.int32),
    )


def prefill(executor: NativeExecutor, batch: Batch, chunk_tokens: int) -> None:
    """Compute each request's context, so that the cache holds real keys and values."""
    rng = np.random.default_rng(1)
    for table, context in zip(batch.block_tables, batch.context_lens, strict=True):
        for begin in range(0, int(context), chunk_tokens):
            num_tokens = min(chunk_tokens, int(context) - begin)
            executor.step(
                Batch(
                    token_ids=rng.integers(100, 1000, num_tokens).astype(np.int32),
                    query_starts=np.array([0, num_tokens], np.int32),
                    context_lens=np.array([begin], np.int32),
                    block_tables=table[None],
                    logit_rows=np.zeros(0, np.int32),
                    adapter_slots=np.full(1, -1, np.int32),
                )
            )


def measure(executor: NativeExecutor, batch: Batch, seconds: float) -> tuple[float, float]:
    """Median seconds of a step, and of attention in it."""
    executor.step(batch)
    steps, attention = [], []
    end = time.perf_counter() + seconds
    while len(steps) < 5 or time.perf_counter() < end:
        executor.start_profile()
        began = time.perf_counter()
        executor.step(batch)
        steps.append(time.perf_counter() - began)
        attention.append(executor.profile()["attention"] / 1e6)
    return statistics.median(steps), statistics.median(attention)


def run_case(args: argparse.Namespace, kv_type: KVType, batch_size: int, context_tokens: int) -> dict[str, object]:
    with GGUFFile.open(args.model) as file:
        card = read_card(file)
    tokens_per_request = (context_tokens // BLOCK_TOKENS + 1) * BLOCK_TOKENS
    config = EngineConfig(
        max_batch_size=batch_size,
        max_batch_tokens=512,
        max_seq_len=tokens_per_request,
        kv_cache_tokens=batch_size * tokens_per_request,
        kv_type=kv_type,
        num_threads=args.threads,
    )
    executor = load_model(args.model, config).executor
    assert isinstance(executor, NativeExecutor)
    batch = decode_batch(batch_size, context_tokens, executor.num_kv_blocks)
    prefill(executor, batch, config.max_batch_tokens)
    step_seconds, attention_seconds = measure(executor, batch, args.seconds)
    kv_bytes = (card.kv_bytes_per_token(kv_type) or 0) * batch_size * context_tokens
    return {
        "kv_type": kv_type.value,
        "batch_size": batch_size,
        "context_tokens": context_tokens,
        "tokens_per_second": round(batch_size / step_seconds, 1),
        "step_ms": round(step_seconds * 1e3, 3),
        "read_gb_per_second": round((card.weights_bytes + kv_bytes) / step_seconds / 1e9, 2),
        "attention_ms": round(attention_seconds * 1e3, 3),
        "attention_read_gb_per_second": round(kv_bytes / attention_seconds / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cases", nargs="+", default=["1x128", "32x128", "1x1024", "32x1024", "1x8064", "4x8064"])
    parser.add_argument("--kv-types", type=KVType, nargs="+", default=list(KVType))
    parser.add_argument("--threads", type=int, default=EngineConfig().num_threads)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each case")
    parser.add_argument("--out", type=Path, help="append the row to this .jsonl file")
    args = parser.parse_args()
    bandwidths = [memory_bandwidth(args.threads)]
    rows = []
    print(f"{'KV':5} {'B x context':>12} {'tok/s':>8} {'GB/s':>6} {'of memory':>9}   attention: ms, GB/s, of memory")
    for case in args.cases:
        batch_size, context_tokens = map(int, case.split("x"))
        for kv_type in args.kv_types:
            row = run_case(args, kv_type, batch_size, context_tokens)
            bandwidths.append(memory_bandwidth(args.threads))
            rows.append(row)
            memory = statistics.median(bandwidths) / 1e9
            print(
                f"{kv_type.value:5} {case:>12} {row['tokens_per_second']:8,.0f} {row['read_gb_per_second']:6.1f} "
                f"{row['read_gb_per_second'] / memory:9.0%}   {row['attention_ms']:10.2f} "
                f"{row['attention_read_gb_per_second']:6.1f} {row['attention_read_gb_per_second'] / memory:9.0%}",
                flush=True,
            )
    bandwidth = statistics.median(bandwidths)
    print(f"memory reads {bandwidth / 1e9:.1f} GB/s (median over the run)")
    if args.out is not None:
        head = {**stamp(), "benchmark": "context", "model": args.model.name, "num_threads": args.threads}
        row = {**head, "memory_bandwidth_gb_per_second": round(bandwidth / 1e9, 2), "cases": rows}
        with args.out.open("a") as out:
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

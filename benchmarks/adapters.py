"""Many adapters in one batch: what they cost the engine, how near memory's floor that is, and llama-server beside us.

    python benchmarks/adapters.py MODEL.gguf --peers-dir ~/.cache/realm/peers

Eight adapters of rank 16 on all linear layers (random: speed doesn't depend on values). The engine's cases take turns,
and so do the two servers; medians over the rounds. What a pool of adapters costs that nobody uses is measured with two
engines beside each other (paired.py), and once more without any pool: what that shows is the measurement's error.
Prints tables and adds a row to benchmarks/results/adapters.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "compare"))
from compare_http import measure
from rows import add_row

from paired import STEPS_PER_ROUND, Round, Speed, run_round
from realm.cli.machine import stamp
from realm.core.config import EngineConfig
from realm.core.types import AdapterRef, Request, SamplingParams
from realm.engine.engine import Engine
from realm.gguf.reader import GGUFFile
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.lora.gguf_format import write_gguf_adapter
from realm.lora.pool import AdapterPool
from realm.models.loader import LoadedModel, load_model

NUM_ADAPTERS, RANK = 8, 16
PROMPT_TOKENS, NUM_STEPS = 64, 40
STALL_ROUNDS = 5
# name: (rows, adapters in the batch)
CASES = {
    "8 rows, no adapter": (8, 0),
    "8 rows, 8 adapters": (8, 8),
    "32 rows, no adapter": (32, 0),
    "32 rows, 8 adapters": (32, 8),
}
HTTP_SERVERS = ("Realm", "llama.cpp")


def make_adapters(base: BaseModel, count: int) -> list[LoRAWeights]:
    """Random adapters of all layers' matrices, in the base model's row order."""
    made = []
    for index in range(count):
        rng = np.random.default_rng(index)
        adapter = LoRAWeights(f"a{index}", RANK, 2.0 * RANK, architecture=base.architecture)
        for name, (rows, columns) in base.modules.items():
            if name != "output":
                a, b = rng.normal(0, columns**-0.5, (RANK, columns)), rng.normal(0, 0.01, (rows, RANK))
                adapter.add_layer_weights(name, a, b)
        made.append(adapter)
    return made


class EngineBench:
    """Decoding with one loaded model, and engines over it that come and go."""

    def __init__(self, path: Path, adapters: list[LoRAWeights], num_threads: int) -> None:
        self.config = EngineConfig(num_threads=num_threads, prefix_cache=False, speculative=None)
        self.model: LoadedModel = load_model(path, self.config)
        self.adapters = adapters
        self.by_hash = {adapter.content_hash: adapter for adapter in adapters}
        self.refs = [AdapterRef(adapter.adapter_id, adapter.content_hash) for adapter in adapters]

    def new_pool(self) -> AdapterPool:
        """A pool in which all adapters are ready."""
        pool = AdapterPool(self.model.executor, self.by_hash.__getitem__, 1 << 30, submit=lambda job: job())
        for ref in self.refs:
            pool.prefetch(ref)
            slot = pool.acquire(ref)
            assert slot is not None
            pool.release(slot)
        return pool

    def empty(self) -> None:
        """Forget what an earlier pool has put into the executor."""
        for slot in range(NUM_ADAPTERS):
            self.model.executor.set_adapter(slot, None)

    def request(self, index: int, ref: AdapterRef | None, max_tokens: int) -> Request:
        ids = tuple(np.random.default_rng(index).integers(1000, 40000, PROMPT_TOKENS).tolist())
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        return Request(f"r{index}", ids, params, f"domain {index}".encode(), adapter=ref)

    def start(self, num_rows: int, num_steps: int, pool: AdapterPool | None, num_adapters: int = 0) -> Engine:
        """An engine whose requests all decode, for `num_steps` steps at least."""
        engine = Engine(self.model.executor, self.config, adapters=pool)
        for i in range(num_rows):
            # Rows of one adapter lie apart, as arrivals would have it.
            ref = self.refs[i % num_adapters] if num_adapters else None
            engine.add(self.request(i, ref, num_steps + 20))
        while sum(bool(output.token_ids) for output in engine.step()) < num_rows:
            pass  # prompts are still being computed
        return engine

    def decode_rate(self, num_rows: int, num_adapters: int, pool: AdapterPool) -> float:
        """Tokens per second while all rows decode."""
        engine = self.start(num_rows, NUM_STEPS, pool, num_adapters)
        began = time.perf_counter()
        num_tokens = sum(len(output.token_ids) for _ in range(NUM_STEPS) for output in engine.step())
        seconds = time.perf_counter() - began
        engine.shut_down()
        return num_tokens / seconds

    def stall(self, with_adapter: bool) -> dict[str, float]:
        """Seven streams decode while another request comes: how long they wait for a token.

        It asks for an adapter that is not resident, or for the base model, whose prompt makes a step longer, too.
        """
        pool = AdapterPool(self.model.executor, self.by_hash.__getitem__, 1 << 30)  # packs on its own thread
        engine = Engine(self.model.executor, self.config, adapters=pool)
        for i in range(7):
            engine.add(self.request(i, None, 400))
        for _ in range(30):
            engine.step()
        gaps, silent, arrived, began_at = [], 0, 0, 0
        for step in range(200):
            if step == 50:
                engine.add(self.request(99, self.refs[0] if with_adapter else None, 8))
                began_at = step
            began = time.perf_counter()
            outputs = {o.request_id: o for o in engine.step()}
            gaps.append(time.perf_counter() - began)
            silent += sum(not (f"r{i}" in outputs and outputs[f"r{i}"].token_ids) for i in range(7))
            if not arrived and "r99" in outputs and outputs["r99"].token_ids:
                arrived = step
        engine.shut_down()
        pool.close()
        self.empty()
        return {
            "streams_without_a_token_in_a_step": silent,
            "steps_until_its_first_token": arrived - began_at,
            "median_step_ms": statistics.median(gaps) * 1e3,
            "longest_step_ms": max(gaps) * 1e3,
        }


def read_bandwidth(num_threads: int) -> float:
    """Bytes per second that `num_threads` read from memory, each its own 256 MB: the best of five."""
    arrays = [np.ones(1 << 26, np.float32) for _ in range(num_threads)]
    with ThreadPoolExecutor(num_threads) as threads:
        best = float("inf")
        for _ in range(5):
            began = time.perf_counter()
            list(threads.map(np.max, arrays))
            best = min(best, time.perf_counter() - began)
    return sum(a.nbytes for a in arrays) / best


def unused_pool_part(path: Path, adapters: list[LoRAWeights], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Speed with a pool that nobody uses beside an engine without one, and of two engines without one."""
    copies = [EngineBench(path, adapters, args.threads) for _ in range(2)]
    speeds = {}
    for num_rows in (8, 32):
        rounds: dict[bool, list[Round]] = {True: [], False: []}
        num_rounds = args.pool_rounds * (4 if num_rows == 8 else 1)  # steps are short
        for index in range(num_rounds + 1):
            for with_pool, plain in product((True, False) if index else (True,), (0, 1)):
                other = 1 - plain
                pool = copies[other].new_pool() if with_pool else None
                measured = run_round(
                    partial(copies[plain].start, num_rows, STEPS_PER_ROUND, None),
                    partial(copies[other].start, num_rows, STEPS_PER_ROUND, pool),
                )
                copies[other].empty()
                if index:  # the first rounds warm up
                    rounds[with_pool].append(measured)
        for with_pool, name in ((True, "pool, none used"), (False, "control: no pool in either")):
            speeds[f"{num_rows} rows, {name}"] = Speed.of(rounds[with_pool]).as_row()
    return speeds


def print_unused_pool(speeds: dict[str, dict[str, float]]) -> None:
    print("| decoding beside an engine without a pool | of its speed | 95% interval | step |\n|---|---:|---:|---:|")
    for case, s in speeds.items():
        print(f"| {case} | {s['ratio']:.1%} | {s['low']:.1%} to {s['high']:.1%} | {s['candidate_step_ms']:.2f} ms |")


def engine_part(path: Path, adapters: list[LoRAWeights], args: argparse.Namespace) -> dict[str, object]:
    """All cases in turn, and the floor."""
    bench = EngineBench(path, adapters, args.threads)
    stalls: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for index in range(STALL_ROUNDS + 1):
        for with_adapter, found in stalls.items():
            measured = bench.stall(with_adapter)
            if index:  # the first round touches the KV cache's memory
                found.append(measured)
    pool = bench.new_pool()
    rates: dict[str, list[float]] = {case: [] for case in CASES}
    for index in range(args.rounds + 1):
        for case in CASES if index % 2 else reversed(CASES):
            rate = bench.decode_rate(*CASES[case], pool)
            if index:  # the first round warms up
                rates[case].append(rate)
    executor = bench.model.executor
    return {
        "rates": rates,
        "stall": {
            name: {key: statistics.median(row[key] for row in stalls[with_adapter]) for key in stalls[with_adapter][0]}
            for name, with_adapter in (("adapter not resident", True), ("base model", False))
        },
        "base_bytes": executor.weights_bytes,
        "adapter_bytes": sum(executor.adapter_bytes(adapter.layers) for adapter in adapters),
        "bandwidth_bytes_per_second": read_bandwidth(args.threads),
    }


def print_engine(result: dict[str, object]) -> None:
    rates = {case: statistics.median(values) for case, values in result["rates"].items()}  # type: ignore[attr-defined]
    base, added, bandwidth = (
        float(result[key])  # type: ignore[arg-type]
        for key in ("base_bytes", "adapter_bytes", "bandwidth_bytes_per_second")
    )
    print("\n| decoding (engine) | tokens/s | of base |\n|---|---:|---:|")
    for case, rate in rates.items():
        whole = rates[f"{case.split(',')[0]}, no adapter"]
        print(f"| {case} | {rate:,.0f} | {rate / whole:.1%} |")
    floor_ms = [num_bytes / bandwidth * 1e3 for num_bytes in (base, base + added)]
    print(
        f"\nA step reads {base / 1e6:.0f} MB of the base model and {added / 1e6:.0f} MB of adapters; memory gives "
        f"{bandwidth / 1e9:.1f} GB/s:\nat least {floor_ms[0]:.2f} ms without adapters, {floor_ms[1]:.2f} ms with them. "
        f"If reading were all, {base / (base + added):.1%} of the base's speed would be left."
    )
    for rows in (8, 32):
        step_ms = {case: rows / rate * 1e3 for case, rate in rates.items() if case.startswith(f"{rows} ")}
        measured = step_ms[f"{rows} rows, 8 adapters"]
        print(f"{rows} rows: {measured:.2f} ms with adapters, {step_ms[f'{rows} rows, no adapter']:.2f} ms without.")
    for name, stall in result["stall"].items():  # type: ignore[attr-defined]
        print(f"A request comes, {name}: {json.dumps(stall)}")


def http_part(path: Path, adapters: list[LoRAWeights], args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Both servers with the same adapter files, a client for each adapter."""
    rounds: dict[str, list[dict[str, float]]] = {server: [] for server in HTTP_SERVERS}
    with tempfile.TemporaryDirectory() as folder:
        files = {adapter.adapter_id: Path(folder) / f"{adapter.adapter_id}.gguf" for adapter in adapters}
        for adapter in adapters:
            write_gguf_adapter(adapter, files[adapter.adapter_id])
        ours = ["--model-id", "m", *(f"--adapter={name}={file}" for name, file in files.items())]
        theirs = ["--lora-init-without-apply", *(part for file in files.values() for part in ("--lora", str(file)))]
        options = {
            "Realm": (ours, ["--model", ",".join(f"m:{name}" for name in files)]),
            "llama.cpp": (theirs, ["--llama-adapters", str(len(files))]),
        }
        for index in range(args.http_rounds):
            for server in HTTP_SERVERS if index % 2 else reversed(HTTP_SERVERS):
                rounds[server].append(measure(server, args, *options[server]))
    return rounds


def print_http(rounds: dict[str, list[dict[str, float]]]) -> None:
    print("\n| 8 clients, 8 adapters, over HTTP | " + " | ".join(rounds) + " | ratio |\n|---|---:|---:|---:|")
    for name in rounds["Realm"][0]:
        ours, theirs = (statistics.median(row[name] for row in rounds[server]) for server in HTTP_SERVERS)
        print(f"| {name} | {ours:,.1f} | {theirs:,.1f} | {ours / theirs:.2f}x |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7, help="of the engine's cases; 0 leaves them out")
    parser.add_argument("--pool-rounds", type=int, default=3, help="of the pool that nobody uses; 0 leaves them out")
    parser.add_argument("--http-rounds", type=int, default=3, help="of the two servers; 0 leaves them out")
    parser.add_argument("--clients", type=int, default=NUM_ADAPTERS)
    parser.add_argument("--prompt-tokens", type=int, default=90)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2, help="of each client, in turn")
    parser.add_argument(
        "--peers-dir", type=Path, default=os.environ.get("PEERS_DIR", Path.home() / ".cache" / "realm" / "peers")
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "adapters.jsonl")
    args = parser.parse_args()
    args.peers_dir = Path(args.peers_dir)
    with GGUFFile.open(args.model) as file:
        adapters = make_adapters(BaseModel.from_gguf(file), NUM_ADAPTERS)
    row: dict[str, object] = {
        **stamp(), "benchmark": "adapters", "model": args.model.name, "num_threads": args.threads,
        "num_adapters": NUM_ADAPTERS, "rank": RANK,
    }  # fmt: skip
    if args.pool_rounds:
        row["unused_pool"] = unused_pool = unused_pool_part(args.model, adapters, args)
        print_unused_pool(unused_pool)
    if args.rounds:
        row["engine"] = engine = engine_part(args.model, adapters, args)
        print_engine(engine)
    if args.http_rounds:
        row["http"] = http = http_part(args.model, adapters, args)
        print_http(http)
    add_row(args.out, row)


if __name__ == "__main__":
    main()

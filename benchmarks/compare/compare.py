"""Realm, llama.cpp and OpenVINO GenAI on the same GGUF, with the same threads, in interleaved rounds.

    python benchmarks/compare/compare.py MODEL.gguf ... [--rounds 3] [--scenarios ...] [--session NAME]

Each engine runs in its own process, one at a time, and the order rotates every round. `setup_peers.sh` installs the
others. Every process adds a row to benchmarks/results/compare.jsonl at once, so a comparison can be made in pieces:
rows of one session make one table, which `report.py` prints.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from engines import ENGINES, Engine, add_common_arguments, parse_engines, peer_environment
from memory_watch import MemoryWatch
from report import print_report
from rows import add_row
from workload import SCENARIOS, Scenario, parse_scenarios

from realm.cli.machine import stamp


def run_worker(engine: Engine, model: Path, scenarios: list[Scenario], args: argparse.Namespace) -> dict[str, object]:
    """What one process of one engine measured; `error` instead of rates where a peer can't run the model."""
    command = [*shlex.split(args.prefix), *engine.command(args.peers_dir), "--model", str(model)]
    command += ["--threads", str(args.threads), "--scenarios", ",".join(s.name for s in scenarios)]
    env = peer_environment(args.peers_dir)
    try:
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise SystemExit(f"{engine.name} is not in {args.peers_dir}; run benchmarks/compare/setup_peers.sh") from None
    watch = MemoryWatch(process.pid)
    try:
        out, err = process.communicate()
    finally:
        peak_bytes, steady_bytes = watch.finish()
    if process.returncode and engine.ours:
        raise SystemExit(f"{engine.name} failed:\n{err[-2000:]}")
    if process.returncode:
        return {"rates": {}, "error": (err.strip().splitlines() or [f"exit {process.returncode}"])[-1][:500]}
    measured: dict[str, object] = json.loads(out.strip().splitlines()[-1])
    return measured | {"peak_rss_bytes": peak_bytes, "steady_rss_bytes": steady_bytes}


def turns(args: argparse.Namespace) -> Iterator[tuple[int, Path, list[Scenario], Engine]]:
    """What to run, in order: within a round every engine has its turn at the same scenarios, one after the other."""
    groups = [[s for s in args.scenarios if s.is_long == is_long] for is_long in (False, True)]
    for number, model, group in itertools.product(range(args.rounds), args.models, groups):
        engines = [engine for engine in args.engines if group and (group[0].is_long or not engine.only_long)]
        shift = number % len(engines) if engines else 0
        for engine in engines[shift:] + engines[:shift]:
            yield number, model, group, engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="GGUF files that every engine loads")
    parser.add_argument(
        "--engines", type=parse_engines, default=list(ENGINES.values()), help=f"of {', '.join(ENGINES)}"
    )
    parser.add_argument(
        "--scenarios", type=parse_scenarios, default=list(SCENARIOS.values()), help=f"of {', '.join(SCENARIOS)}"
    )
    parser.add_argument("--prefix", default="", help='put before each command, e.g. "taskset -c 0,1"')
    add_common_arguments(parser, "compare.jsonl")
    args = parser.parse_args()
    for model in args.models:
        if not model.is_file():
            parser.error(f"{model} does not exist; `realm pull NAME` prints the path of a model that it has fetched")
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    session = args.session or began[:10]
    for number, model, scenarios, engine in turns(args):
        names = ", ".join(s.name for s in scenarios)
        print(f"round {number + 1}/{args.rounds}, {model.name}: {engine.name}: {names}", file=sys.stderr, flush=True)
        row = {
            **stamp(),
            "session": session,
            "round": f"{began}#{number}",
            "model": model.name,
            "num_threads": args.threads,
            "engine": engine.name,
            **run_worker(engine, model, scenarios, args),
        }
        add_row(args.out, row)
    print_report(args.out, args.out.with_name("compare_http.jsonl"), session)


if __name__ == "__main__":
    main()

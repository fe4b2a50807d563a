"""Realm, llama.cpp and OpenVINO GenAI on the same GGUF, the same threads, in one interleaved run.

Each engine runs in its own process, one at a time; the order rotates every round; medians are taken over the rounds.
`setup_peers.sh` installs the others. Prints a table with ratios and appends a row to benchmarks/results/compare.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from workload import DEFAULT_SCENARIOS, SCENARIOS

from realm.cli.machine import stamp

HERE = Path(__file__).parent
ENGINES = ("realm", "llama.cpp", "openvino")


@dataclass
class Run:
    """One engine over all rounds."""

    version: str = ""
    rates: dict[str, list[float]] = field(default_factory=dict)
    peak_rss_bytes: int = 0
    steady_rss_bytes: int = 0
    details: dict[str, object] = field(default_factory=dict)


class MemoryWatch:
    """Samples the resident memory of the biggest process in a tree."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.25):
            try:
                root = psutil.Process(self._pid)
                self._samples.append(max(p.memory_info().rss for p in (root, *root.children(recursive=True))))
            except psutil.Error:
                continue

    def finish(self) -> tuple[int, int]:
        """(peak, steady) in bytes; steady is the median of the second half of the run."""
        self._stop.set()
        self._thread.join()
        if not self._samples:
            return 0, 0
        return max(self._samples), int(statistics.median(self._samples[len(self._samples) // 2 :]))


def _command(engine: str, peers: Path) -> list[str]:
    if engine == "realm":
        return [sys.executable, str(HERE / "worker_realm.py")]
    if engine == "openvino":
        return [str(peers / "openvino" / "bin" / "python"), str(HERE / "worker_openvino.py")]
    return [sys.executable, str(HERE / "worker_llama.py")]


def _environment(peers: Path) -> dict[str, str]:
    version = peers / "llama-build" / "version.txt"
    known = {"LLAMA_VERSION": version.read_text().strip()} if version.is_file() else {}
    return os.environ | {"LLAMA_BIN": str(peers / "llama-build" / "bin")} | known


def run_once(engine: str, args: argparse.Namespace, run: Run) -> None:
    """One process of one engine; adds what it measured to `run`."""
    command = [
        *shlex.split(args.prefix),
        *_command(engine, args.peers_dir),
        "--model",
        str(args.model),
        "--threads",
        str(args.threads),
    ]
    command += ["--scenarios", ",".join(args.scenarios)]
    env = _environment(args.peers_dir)
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watch = MemoryWatch(process.pid)
    out, err = process.communicate()
    peak_bytes, steady_bytes = watch.finish()
    if process.returncode:
        raise SystemExit(f"{engine} failed:\n{err[-2000:]}")
    row = json.loads(out.strip().splitlines()[-1])
    run.version = row.pop("version")
    for measurement in row.pop("measurements"):
        run.rates.setdefault(measurement["scenario"], []).append(measurement["tokens_per_second"])
    run.peak_rss_bytes = max(run.peak_rss_bytes, peak_bytes)
    run.steady_rss_bytes = max(run.steady_rss_bytes, steady_bytes)
    run.details = {k: v for k, v in row.items() if k != "engine"}


def table(runs: dict[str, Run], scenarios: list[str]) -> str:
    """A Markdown table: tokens/s per engine, and Realm over the best of the others."""
    engines = list(runs)
    peers = [e for e in engines if e != "realm"]
    lines = ["| scenario (tokens/s) | " + " | ".join(engines) + " | Realm / best peer |"]
    lines.append("|---|" + "---:|" * (len(engines) + 1))
    for name in scenarios:
        medians = {e: statistics.median(runs[e].rates[name]) for e in engines}
        best = max((medians[p] for p in peers), default=0.0)
        ratio = f"{medians['realm'] / best:.2f}x" if best and "realm" in medians else "-"
        lines.append(f"| {name} | " + " | ".join(f"{medians[e]:,.0f}" for e in engines) + f" | {ratio} |")
    for label, attribute in (("peak RSS, MB", "peak_rss_bytes"), ("steady RSS, MB", "steady_rss_bytes")):
        cells = " | ".join(f"{getattr(runs[e], attribute) / 1e6:,.0f}" for e in engines)
        lines.append(f"| {label} | {cells} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the GGUF that every engine loads")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--scenarios", default=",".join(DEFAULT_SCENARIOS), help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument(
        "--peers-dir", type=Path, default=os.environ.get("PEERS_DIR", Path.home() / ".cache" / "realm" / "peers")
    )
    parser.add_argument("--prefix", default="", help='put before each command, e.g. "taskset -c 0,1"')
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "compare.jsonl")
    args = parser.parse_args()
    args.peers_dir = Path(args.peers_dir)
    args.scenarios = args.scenarios.split(",")
    engines = args.engines.split(",")
    runs = {engine: Run() for engine in engines}
    for round_index in range(args.rounds):
        shift = round_index % len(engines)
        for engine in engines[shift:] + engines[:shift]:
            print(f"round {round_index + 1}/{args.rounds}: {engine}", file=sys.stderr, flush=True)
            run_once(engine, args, runs[engine])
    print(table(runs, args.scenarios))
    row = {
        **stamp(),
        "benchmark": "compare",
        "model": args.model.name,
        "num_threads": args.threads,
        "rounds": args.rounds,
        "engines": {engine: vars(run) for engine, run in runs.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

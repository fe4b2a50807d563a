"""`realm serve` beside `llama-server`, end to end over HTTP: 8 streaming clients, 90-token prompts, 64 tokens each.

The servers run one at a time, in turns, with the order rotated; the load comes from benchmarks/serving/http_load.py.
Prints a table and appends a row to benchmarks/results/compare_http.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from realm.cli.machine import stamp

HERE = Path(__file__).parent
LOAD = HERE.parent / "serving" / "http_load.py"
FIGURES = ("tokens_per_second", "ttft_ms_p50", "ttft_ms_p99", "itl_ms_p50", "itl_ms_p99")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _command(server: str, args: argparse.Namespace, port: int) -> list[str]:
    if server == "realm":
        command = [
            sys.executable,
            "-m",
            "realm.cli",
            "serve",
            str(args.model),
            "--threads",
            str(args.threads),
            "--speculate",
            "off",
        ]
        return [*command, "--port", str(port), "--log-level", "warning"]
    binary = str(args.peers_dir / "llama-build" / "bin" / "llama-server")
    threads = str(args.threads)
    context = str(args.clients * 1024)
    command = [binary, "-m", str(args.model), "--port", str(port), "-t", threads, "-tb", threads]
    return [*command, "-np", str(args.clients), "-c", context]


@contextmanager
def running(server: str, args: argparse.Namespace) -> Iterator[str]:
    """A server that answers /health; gives its address."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(_command(server, args, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{server} did not start: {shlex.join(_command(server, args, port))}")
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=1) as response:
                    if response.status == 200:
                        break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def measure(server: str, args: argparse.Namespace) -> dict[str, float]:
    """One round against one server, after a warm-up round."""
    with running(server, args) as url:
        load = [sys.executable, str(LOAD), url, "--clients", str(args.clients), "--prompt-tokens", "90"]
        load += ["--max-tokens", "64", "--rounds", "1", "--requests", str(args.requests), "--json", "-"]
        done = subprocess.run(load, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"load on {server} failed:\n{done.stderr[-2000:]}")
    row = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: row[name] for name in FIGURES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=2, help="of each client, in turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", default="realm,llama-server")
    parser.add_argument(
        "--peers-dir", type=Path, default=os.environ.get("PEERS_DIR", Path.home() / ".cache" / "realm" / "peers")
    )
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "compare_http.jsonl")
    args = parser.parse_args()
    args.peers_dir = Path(args.peers_dir)
    servers = args.servers.split(",")
    rounds: dict[str, list[dict[str, float]]] = {server: [] for server in servers}
    for index in range(args.rounds):
        shift = index % len(servers)
        for server in servers[shift:] + servers[:shift]:
            print(f"round {index + 1}/{args.rounds}: {server}", file=sys.stderr, flush=True)
            rounds[server].append(measure(server, args))
    medians = {
        server: {name: statistics.median(row[name] for row in rows) for name in FIGURES}
        for server, rows in rounds.items()
    }
    print("| over HTTP | " + " | ".join(servers) + " | ratio |")
    print("|---|" + "---:|" * (len(servers) + 1))
    for name in FIGURES:
        values = [medians[server][name] for server in servers]
        ratio = f"{values[0] / values[1]:.2f}x" if len(values) == 2 else "-"
        print(f"| {name} | " + " | ".join(f"{value:,.1f}" for value in values) + f" | {ratio} |")
    row = {
        **stamp(),
        "benchmark": "compare_http",
        "model": args.model.name,
        "num_threads": args.threads,
        "clients": args.clients,
        "servers": rounds,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

"""`realm serve` beside `llama-server`, end to end over HTTP: 8 streaming clients, 90-token prompts, 64 tokens each.

    python benchmarks/compare/compare_http.py MODEL.gguf [--rounds 3] [--session NAME]

The servers run one at a time, in turns, with the order rotated; the load comes from benchmarks/serving/http_load.py,
at temperature 0; neither server drafts. Adds a row for each to benchmarks/results/compare_http.jsonl; `report.py`
prints the table.
"""

from __future__ import annotations

import argparse
import json
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engines import add_common_arguments
from memory_watch import MemoryWatch
from report import print_report
from rows import add_row

from realm.cli.machine import stamp

HERE = Path(__file__).parent
LOAD = HERE.parent / "serving" / "http_load.py"
SERVERS = ("Realm", "llama.cpp")
START_SECONDS = 60


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _command(server: str, args: argparse.Namespace, port: int) -> list[str]:
    if server == "Realm":
        command = [sys.executable, "-m", "realm.cli", "serve", str(args.model), "--threads", str(args.threads)]
        return [*command, "--port", str(port), "--log-level", "warning", "--speculate", "off"]
    binary = str(args.peers_dir / "llama-build" / "bin" / "llama-server")
    threads = str(args.threads)
    context = str(args.clients * 1024)
    command = [binary, "-m", str(args.model), "--port", str(port), "-t", threads, "-tb", threads]
    return [*command, "-np", str(args.clients), "-c", context]


@contextmanager
def running(server: str, args: argparse.Namespace, options: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
    """A server that answers /health, started with more `options` of its own; gives its address and process id."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [*_command(server, args, port), *options]
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        except FileNotFoundError:
            raise SystemExit(f"{command[0]} is missing; run benchmarks/compare/setup_peers.sh") from None
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _is_healthy(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{shlex.join(command)} did not start:\n{log.read()[-2000:].decode()}")
                time.sleep(0.1)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait()


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def measure(
    server: str, args: argparse.Namespace, options: Sequence[str] = (), load_options: Sequence[str] = ()
) -> dict[str, float]:
    """One round against one server, after a warm-up round. More options: the server's own, and the load's."""
    with running(server, args, options) as (url, pid):
        watch = MemoryWatch(pid)
        load = [sys.executable, str(LOAD), url, "--clients", str(args.clients)]
        load += ["--prompt-tokens", str(args.prompt_tokens), "--max-tokens", str(args.max_tokens)]
        load += ["--rounds", "1", "--requests", str(args.requests), "--json", "-", *load_options]
        done = subprocess.run(load, capture_output=True, text=True)
        peak_bytes, _ = watch.finish()
    if done.returncode:
        raise SystemExit(f"load on {server} failed:\n{done.stderr[-2000:]}")
    row = json.loads(done.stdout.strip().splitlines()[-1])
    kept = ("tokens_per_second", "ttft_ms_p50", "ttft_ms_p99", "itl_ms_p50", "itl_ms_p99")
    return {name: row[name] for name in kept} | {"peak_rss_bytes": peak_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the GGUF file that both serve")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=90)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=3, help="of each client, in turn")
    parser.add_argument("--servers", default=",".join(SERVERS), help=f"of {', '.join(SERVERS)}")
    add_common_arguments(parser, "compare_http.jsonl")
    args = parser.parse_args()
    servers = args.servers.split(",")
    if not set(servers) <= set(SERVERS):
        parser.error(f"--servers are some of {', '.join(SERVERS)}")
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    session = args.session or began[:10]
    for number in range(args.rounds):
        shift = number % len(servers)
        for server in servers[shift:] + servers[:shift]:
            print(
                f"round {number + 1}/{args.rounds}, {args.model.name} over HTTP: {server}", file=sys.stderr, flush=True
            )
            row = {**stamp(), "session": session, "round": f"{began}#{number}", "model": args.model.name}
            row |= {"num_threads": args.threads, "engine": server, "clients": args.clients}
            row |= {"prompt_tokens": args.prompt_tokens, "max_tokens": args.max_tokens}
            add_row(args.out, row | measure(server, args))
    print_report(args.out.with_name("compare.jsonl"), args.out, session)


if __name__ == "__main__":
    main()

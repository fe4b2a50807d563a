"""The engines that are compared: how each is started, and what a reader of the table has to know about it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Engine:
    """`command` makes a worker's command line, without the arguments that all workers share."""

    name: str
    note: str
    command: Callable[[Path], list[str]]
    ours: bool = False
    only_long: bool = False
    """Runs the long contexts only: where it is expected to differ from its sibling."""


def _realm(*more: str) -> Callable[[Path], list[str]]:
    return lambda peers: [sys.executable, str(HERE / "worker_realm.py"), *more]


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("Realm", "KV f16, greedy, no drafts; its sampler and detokeniser are in the time", _realm(), ours=True),
        Engine("Realm int8 KV", "the same, KV int8", _realm("--kv-type", "int8"), ours=True, only_long=True),
        Engine(
            "llama.cpp",
            "built for this CPU; `llama-batched-bench`, KV f16, which neither samples nor makes text",
            lambda peers: [sys.executable, str(HERE / "worker_llama.py")],
        ),
        Engine(
            "OpenVINO GenAI",
            "`ContinuousBatchingPipeline` with its defaults (KV int8), greedy",
            lambda peers: [str(peers / "openvino" / "bin" / "python"), str(HERE / "worker_openvino.py")],
        ),
    )
}


def parse_engines(text: str) -> list[Engine]:
    """Of a comma-separated list of names, whatever their case.

    Raises:
        argparse.ArgumentTypeError: a name that is not known.
    """
    by_name = {name.lower(): engine for name, engine in ENGINES.items()}
    unknown = [name for name in text.split(",") if name.lower() not in by_name]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown engine {unknown[0]!r}; there are {', '.join(ENGINES)}")
    return [by_name[name.lower()] for name in text.split(",")]


def add_common_arguments(parser: argparse.ArgumentParser, rows: str) -> None:
    """Arguments of both comparisons; `rows` is the name of the results file."""
    default_peers = os.environ.get("PEERS_DIR") or Path.home() / ".cache" / "realm" / "peers"
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--session", help="rows of one session make one table; default: the day")
    parser.add_argument("--peers-dir", type=Path, default=Path(default_peers), help="where setup_peers.sh put them")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / rows, help="file that rows are added to")


def peer_environment(peers: Path) -> dict[str, str]:
    """Environment variables that the workers look at."""
    version = peers / "llama-build" / "version.txt"
    known = {"LLAMA_VERSION": version.read_text().strip()} if version.is_file() else {}
    return os.environ | {"LLAMA_BIN": str(peers / "llama-build" / "bin")} | known

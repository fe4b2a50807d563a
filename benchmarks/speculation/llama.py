"""Speculation of llama.cpp beside Realm's, each beside itself without: same prompts, in turns, in one run.

python benchmarks/speculation/llama.py MODEL.gguf --server path/to/llama-server [--out FILE.jsonl]

Each of llama.cpp's configurations is a server of its own, each of Realm's an engine in this process; all are up from
the beginning and take turns, prompt by prompt at batch size 1, and with as many prompts at once as --batch-sizes says.
At batch size 1 a rate is that of generating alone (llama.cpp's own `timings`; with Realm, from the first token on), so
that HTTP and prompts don't count; at larger sizes it is all tokens over the time of all requests, prompts included.

llama.cpp's draft is Realm's draft file with the target's embedding, as it needs a whole model: its head has a row for
each of the target's tokens, zeros for those that the draft was not trained to propose. So both engines propose from
the same tokens, but llama.cpp has to compute all rows. It drafts --draft-tokens at a time; Realm chooses by itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
import numpy as np
from closed_loop import Loop
from prompts import CHAT, COPY

from realm.cli.machine import stamp
from realm.core.types import SamplingParams
from realm.gguf.reader import GGUFFile
from realm.gguf.writer import OutputTensor, write_gguf
from speculation import Bench, shipped_draft

FIRST_PORT = 18731
STARTUP_SECONDS = 60
Prompt = tuple[int, ...]


@dataclass
class Total:
    """What a configuration has done so far."""

    num_tokens: int = 0
    seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0

    def add(self, other: Total) -> None:
        """Count `other` too."""
        self.num_tokens += other.num_tokens
        self.seconds += other.seconds
        self.drafted += other.drafted
        self.accepted += other.accepted


class Contender(Protocol):
    """One configuration of one engine."""

    def run(self, prompts: Sequence[Prompt], max_tokens: int) -> Total:
        """Complete `prompts`, all at once."""


class LlamaServer:
    """A llama-server with some options; it runs until `stack` is closed."""

    def __init__(self, stack: ExitStack, command: Sequence[object], port: int) -> None:
        log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  (the stack closes it)
        parts = [*map(str, command), "--port", str(port)]
        process = stack.enter_context(subprocess.Popen(parts, stdout=log, stderr=log))
        stack.callback(process.terminate)
        self._client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120.0))
        deadline = time.monotonic() + STARTUP_SECONDS
        while not self._is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise SystemExit(f"llama-server did not start:\n{log.read()[-2000:].decode(errors='replace')}")
            time.sleep(0.2)

    def _is_up(self) -> bool:
        try:
            return self._client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def run(self, prompts: Sequence[Prompt], max_tokens: int) -> Total:
        """See `Contender`."""

        def complete(prompt: Prompt) -> dict[str, float]:
            body = {"prompt": prompt, "n_predict": max_tokens, "temperature": 0.0, "cache_prompt": False}
            return self._client.post("/completion", json=body).raise_for_status().json()["timings"]

        began = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            timings = list(pool.map(complete, prompts))
        seconds = time.perf_counter() - began
        if len(prompts) == 1:
            seconds = timings[0]["predicted_ms"] / 1e3
        counts = [int(sum(t.get(name, 0) for t in timings)) for name in ("predicted_n", "draft_n", "draft_n_accepted")]
        return Total(counts[0], seconds, *counts[1:])


class RealmEngine:
    """One of Realm's configurations."""

    def __init__(self, bench: Bench, name: str, place: int) -> None:
        self._engine = bench.engine(name, place)

    def run(self, prompts: Sequence[Prompt], max_tokens: int) -> Total:
        """See `Contender`."""
        loop = Loop(self._engine, prompts, SamplingParams(max_tokens=max_tokens, temperature=0.0), len(prompts))
        before = self._engine.stats()
        seconds = loop.run_once(from_first_token=len(prompts) == 1)
        after = self._engine.stats()
        return Total(
            loop.num_tokens,
            seconds,
            after.num_drafted_tokens - before.num_drafted_tokens,
            after.num_accepted_tokens - before.num_accepted_tokens,
        )


def whole_draft(draft: GGUFFile, target: GGUFFile, path: Path) -> Path:
    """`draft` as a model that stands alone."""
    architecture = target.metadata.get_str("general.architecture")
    metadata = dict(target.metadata) | {
        f"{architecture}.block_count": draft.metadata.get_int(f"{architecture}.block_count")
    }
    embedding = target.tensors["token_embd.weight"]
    head = draft.tensors.get("output.weight") or target.tensors.get("output.weight", embedding)
    num_tokens = embedding.shape[0]
    proposable = draft.metadata.get_ints("realm.draft.token_ids", list(range(num_tokens)))
    rows = np.zeros((num_tokens, *head.data.shape[1:]), head.data.dtype)
    rows[proposable] = head.data if len(head.data) == len(proposable) else head.data[proposable]
    tensors = [OutputTensor(embedding.name, embedding.quant_type, embedding.shape, embedding.data)]
    tensors.append(OutputTensor("output.weight", head.quant_type, (num_tokens, head.shape[1]), rows))
    layers = [t for t in draft.tensors.values() if t.name != "output.weight"]
    tensors += [OutputTensor(t.name, t.quant_type, t.shape, t.data) for t in layers]
    write_gguf(path, metadata, tensors, value_types=target.value_types)
    return path


def contenders(args: argparse.Namespace, stack: ExitStack, sizes: list[int]) -> tuple[Bench, dict[str, Contender]]:
    """All configurations by name, "ENGINE NAME", each engine's "off" before its others."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    path = args.draft or shipped_draft()
    with GGUFFile.open(args.model) as target, GGUFFile.open(path) as draft:
        whole = whole_draft(draft, target, directory / "draft.gguf")
    configurations: dict[str, list[object]] = {
        "off": [],
        "draft": ["--spec-type", "draft-simple", "-md", whole, "--spec-draft-n-max", args.draft_tokens],
        "ngram": ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", 3, "--spec-ngram-simple-size-m", 16],
    }
    common = [args.server, "-m", args.model, "-t", args.threads, "-c", 8192, "-np", max(sizes), "--no-webui"]
    found: dict[str, Contender] = {}
    for port, (name, options) in enumerate(configurations.items(), FIRST_PORT):
        found[f"llama.cpp {name}"] = LlamaServer(stack, [*common, *options], port)
    bench = Bench(args.model, {"draft": path, "both": path}, args.threads, max(sizes), args.max_tokens)
    for place, name in enumerate(("off", "lookup", "draft", "both")):
        found[f"realm {name}"] = RealmEngine(bench, name, place)
    return bench, found


def measure(
    found: dict[str, Contender], prompts: Sequence[Prompt], size: int, num_rounds: int, max_tokens: int
) -> dict[str, Total]:
    """Totals by configuration."""
    groups = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    totals = {name: Total() for name in found}
    for turn in range(num_rounds):
        for place, group in enumerate(groups):
            names = list(found)
            for name in names if (turn + place) % 2 else names[::-1]:
                totals[name].add(found[name].run(group, max_tokens))
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--server", type=Path, required=True)
    parser.add_argument("--draft", type=Path, help="the draft file; by default the one that is shipped")
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument("--prompts", type=int, default=8, help="of each part")
    parser.add_argument("--draft-tokens", type=int, default=3, help="--spec-draft-n-max; 3 is llama.cpp's default")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="append the result row to this .jsonl file")
    args = parser.parse_args()
    sizes = [int(size) for size in args.batch_sizes.split(",")]
    row = {**stamp(), "benchmark": "speculation-llama.cpp", "model": args.model.name, "num_threads": args.threads}
    row |= {"draft_tokens": args.draft_tokens, "max_tokens": args.max_tokens, "prompts": args.prompts}
    row |= {"rounds": args.rounds, "results": []}
    with ExitStack() as stack:
        bench, found = contenders(args, stack, sizes)
        parts = {"copy": COPY, "chat": CHAT}
        workloads = {part: [bench.encode(text) for text in texts[: args.prompts]] for part, texts in parts.items()}
        realm = {name: contender for name, contender in found.items() if name.startswith("realm")}
        print(f"{'':6}{'B':>3}  {'':20}{'tok/s':>8}{'speed-up':>10}{'accepted':>10}")
        for part, prompts in workloads.items():
            for size in sizes:
                measure(realm, prompts, size, 1, args.max_tokens)  # it learns what steps cost
                totals = measure(found, prompts, size, args.rounds, args.max_tokens)
                rates = {name: total.num_tokens / total.seconds for name, total in totals.items()}
                for name, total in totals.items():
                    speedup = rates[name] / rates[f"{name.split()[0]} off"]
                    result = {"tokens_per_second": round(rates[name], 1), "speedup": round(speedup, 3)}
                    result["acceptance"] = round(total.accepted / total.drafted, 3) if total.drafted else 0.0
                    row["results"].append({"part": part, "batch_size": size, "configuration": name, **result})
                    accepted = f"{result['acceptance']:>10.1%}"
                    print(f"{part:6}{size:>3}  {name:20}{rates[name]:>8.0f}{speedup:>10.2f}{accepted}", flush=True)
    if args.out is not None:
        with args.out.open("a") as rows:
            rows.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

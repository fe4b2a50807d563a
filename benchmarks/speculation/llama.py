"""llama.cpp's own speculation on the prompts of speculation.py: with a draft model, by n-grams, and without.

python benchmarks/speculation/llama.py MODEL.gguf --server path/to/llama-server [--out FILE.jsonl]

Each configuration is a server of its own; its rate is what it reports itself for generating (`timings`), so HTTP does
not count. The draft is Realm's draft file with the target's embedding, as llama.cpp needs a whole model; tokens that
the draft was not trained to propose have an output row of zeros, so that both engines propose from the same ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from prompts import CHAT, COPY

from realm.cli.machine import stamp
from realm.gguf.reader import GGUFFile
from realm.gguf.writer import OutputTensor, write_gguf
from realm.tokenizer.chat import load_chat_template
from realm.tokenizer.tokenizer import load_tokenizer
from speculation import shipped_draft

PORT = 18731
STARTUP_SECONDS = 60


def whole_draft(draft: GGUFFile, target: GGUFFile, path: Path) -> Path:
    """`draft` as a model that stands alone."""
    architecture = target.metadata.get_str("general.architecture")
    metadata = dict(target.metadata) | {
        f"{architecture}.block_count": draft.metadata.get_int(f"{architecture}.block_count")
    }
    embedding = target.tensors["token_embd.weight"]
    head = target.tensors.get("output.weight", embedding)
    rows = np.zeros_like(head.data)
    proposable = draft.metadata.get_ints("realm.draft.token_ids", list(range(head.shape[0])))
    rows[proposable] = head.data[proposable]
    tensors = [OutputTensor(embedding.name, embedding.quant_type, embedding.shape, embedding.data)]
    tensors.append(OutputTensor("output.weight", head.quant_type, head.shape, rows))
    tensors += [OutputTensor(t.name, t.quant_type, t.shape, t.data) for t in draft.tensors.values()]
    write_gguf(path, metadata, tensors, value_types=target.value_types)
    return path


@contextmanager
def serving(command: list[str]) -> Iterator[httpx.Client]:
    """A llama-server while it is needed."""
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=120.0) as client:
                deadline = time.monotonic() + STARTUP_SECONDS
                while not _is_up(client):
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise SystemExit(f"llama-server did not start:\n{log.read()[-2000:].decode(errors='replace')}")
                    time.sleep(0.2)
                yield client
        finally:
            process.terminate()


def _is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def rate(client: httpx.Client, prompts: list[list[int]], batch_size: int, max_tokens: int) -> dict[str, float]:
    """Tokens per second while generating, over all prompts, `batch_size` of them at a time."""

    def complete(prompt: list[int]) -> dict[str, float]:
        body = {"prompt": prompt, "n_predict": max_tokens, "temperature": 0.0, "cache_prompt": False}
        return client.post("/completion", json=body).raise_for_status().json()["timings"]

    began = time.perf_counter()
    with ThreadPoolExecutor(batch_size) as pool:
        timings = list(pool.map(complete, prompts))
    wall = time.perf_counter() - began
    tokens = sum(t["predicted_n"] for t in timings)
    alone = batch_size == 1
    seconds = sum(t["predicted_ms"] for t in timings) / 1e3 if alone else wall
    drafted, accepted = (sum(t.get(name, 0) for t in timings) for name in ("draft_n", "draft_n_accepted"))
    return {"tokens_per_second": tokens / seconds, "acceptance": accepted / drafted if drafted else 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--server", type=Path, required=True)
    parser.add_argument("--draft", type=Path, help="the draft file; by default the one that is shipped")
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument("--draft-tokens", type=int, default=4, help="--spec-draft-n-max")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="append the result row to this .jsonl file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, GGUFFile.open(args.model) as target:
        tokenizer = load_tokenizer(target.metadata)
        template = load_chat_template(target.metadata, tokenizer)
        with GGUFFile.open(args.draft or shipped_draft()) as draft:
            whole = whole_draft(draft, target, Path(directory) / "draft.gguf")
        configurations = {
            "off": [],
            "draft": ["--spec-type", "draft-simple", "-md", whole, "--spec-draft-n-max", args.draft_tokens],
            "ngram": ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", 3, "--spec-ngram-simple-size-m", 16],
            "ngram-default": ["--spec-type", "ngram-simple"],
        }
        sizes = [int(size) for size in args.batch_sizes.split(",")]

        def encode(text: str) -> list[int]:
            return tokenizer.encode(template.render([{"role": "user", "content": text}]), add_special=False)

        workloads = {"copy": [encode(text) for text in COPY[:8]], "chat": [encode(text) for text in CHAT[:8]]}
        row = {**stamp(), "benchmark": "speculation-llama.cpp", "model": args.model.name, "num_threads": args.threads}
        row |= {"draft_tokens": args.draft_tokens, "max_tokens": args.max_tokens, "results": []}
        base: dict[tuple[str, int], float] = {}
        for name, options in configurations.items():
            common = ["-m", args.model, "-t", args.threads, "-c", 8192, "-np", max(sizes), "--port", PORT, "--no-webui"]
            with serving([str(part) for part in (args.server, *common, *options)]) as client:
                rate(client, workloads["chat"][:1], 1, 16)
                for part, prompts in workloads.items():
                    for size in sizes:
                        rounds = [rate(client, prompts, size, args.max_tokens) for _ in range(args.rounds)]
                        speed = statistics.median(r["tokens_per_second"] for r in rounds)
                        speedup = speed / base.setdefault((part, size), speed)
                        result = {"tokens_per_second": round(speed, 1), "speedup": round(speedup, 3)}
                        result["acceptance"] = round(rounds[-1]["acceptance"], 3)
                        row["results"].append({"part": part, "batch_size": size, "configuration": name, **result})
                        print(
                            f"{part:6}{size:>3}  {name:14}{speed:>8.0f}{speedup:>8.2f}{result['acceptance']:>8.1%}",
                            flush=True,
                        )
    if args.out is not None:
        with args.out.open("a") as rows:
            rows.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

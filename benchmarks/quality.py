"""How much of a model's quality the native kernels keep, next to llama.cpp on the same file and text.

    python benchmarks/quality.py MODEL.gguf [--llama-bin DIR] [--kv f16 int8] [--positions N]

The base is the reference device: the file's weights in float32. The text is judged as `llama-perplexity` does it: in
stretches of 512 tokens, of which the second half counts; each begins 256 tokens after the one before, so that nearly
every token of the text is judged once. The base's log-probabilities go to a file of its format, so that llama.cpp
itself computes its divergence from the same base; ours is computed by the same rule (tokens below exp(-16) are left
out). That file takes gigabytes (2 bytes for each position and token of the vocabulary) and minutes to make, and is kept
for the next time in --cache. Adds a row to benchmarks/results/quality.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from realm.cli.machine import stamp
from realm.core.config import EngineConfig, KVType, default_threads
from realm.core.types import Float32Array
from realm.gguf.reader import GGUFFile
from realm.models.loader import LoadedModel, load_model
from realm.testing.batches import logits_in_chunks
from realm.tokenizer.tokenizer import load_tokenizer

HERE = Path(__file__).parent
CONTEXT = 512
FIRST = CONTEXT // 2
JUDGED = CONTEXT - 1 - FIRST
"""Of each stretch: the token after its last one is not known."""
STEP_TOKENS = 128
MIN_LOG_PROB = -16.0


@dataclass
class Row:
    """One line of the table."""

    engine: str
    perplexity: float
    mean_kl: float
    top1_agreement: float


class Base:
    """Log-probabilities in the format of `llama-perplexity --kl-divergence-base`: 16 bits each, linear per position."""

    def __init__(self, path: Path, stretches: list[list[int]], vocab_size: int, bos: list[int]) -> None:
        self.path = path
        self.bos = bos
        self.stretches = stretches
        self.vocab_size = vocab_size
        self._row_size = 2 * ((vocab_size + 1) // 2) + 4

    def write(self, model: LoadedModel) -> None:
        """Fill the file with what `model` says."""
        part = self.path.with_suffix(".part")
        with part.open("wb") as file:
            file.write(b"_logits_" + np.array([CONTEXT, self.vocab_size, len(self.stretches)], np.int32).tobytes())
            file.write(np.array(self.stretches, np.int32).tobytes())
            for number, stretch in enumerate(self.stretches, start=1):
                print(
                    f"\rfloat32 base: {number} of {len(self.stretches)} stretches", end="", file=sys.stderr, flush=True
                )
                for logits in judged_logits(model, stretch, self.bos):
                    file.write(self._encode(logits).tobytes())
        print(file=sys.stderr)
        part.rename(self.path)

    def read(self) -> Iterator[Float32Array]:
        """Log-probabilities [255, V] of each stretch."""
        shape = (JUDGED, self._row_size)
        with self.path.open("rb") as file:
            file.seek(8 + 4 * (3 + CONTEXT * len(self.stretches)))
            for _ in self.stretches:
                rows = np.frombuffer(file.read(2 * shape[0] * shape[1]), np.uint16).reshape(shape)
                scale, low = rows[:, :4].copy().view(np.float32).T
                yield rows[:, 4 : 4 + self.vocab_size] * scale[:, None] + low[:, None]

    def _encode(self, logits: Float32Array) -> NDArray[np.uint16]:
        top = logits.max(axis=1, keepdims=True)
        low = np.maximum(logits.min(axis=1, keepdims=True), top + np.float32(MIN_LOG_PROB))
        log_sum = np.log(np.exp(logits - top).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
        scale = (top - low) / np.float32(65535)
        rows = np.zeros((len(logits), self._row_size), np.uint16)
        rows[:, :4] = np.concatenate([scale, low - top - log_sum], axis=1).view(np.uint16)
        rows[:, 4 : 4 + self.vocab_size] = np.rint((np.maximum(logits, low) - low) / scale)
        return rows


def judged_logits(model: LoadedModel, stretch: list[int], bos: list[int]) -> Iterator[Float32Array]:
    """Logits of positions 256 .. 510 of one stretch, in pieces; the first token is BOS if the model wants one."""
    ids = (bos + stretch[len(bos) :])[: CONTEXT - 1]
    for logits in logits_in_chunks(model.executor, ids, STEP_TOKENS, 32, FIRST):
        if len(logits):
            yield logits


def measure(engine: str, model: LoadedModel, base: Base) -> Row:
    """Judge `model` against the base."""
    nll, kl, same, count = 0.0, 0.0, 0, 0
    for stretch, expected in zip(base.stretches, base.read(), strict=True):
        done = 0
        for logits in judged_logits(model, stretch, base.bos):
            p = expected[done : done + len(logits)]
            top = logits.max(axis=1, keepdims=True)
            q = logits - (top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True, dtype=np.float64)))
            q = q.astype(np.float32)
            next_ids = stretch[FIRST + done + 1 :][: len(logits)]
            nll -= q[np.arange(len(q)), next_ids].sum(dtype=np.float64)
            kl += (np.exp(p) * (p - q)).sum(where=p > MIN_LOG_PROB, dtype=np.float64)
            same += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
            done += len(logits)
        count += done
    return Row(engine, float(np.exp(nll / count)), kl / count, same / count)


def measure_llama(binary: Path, model: Path, base: Base, threads: int) -> Row:
    """Let llama.cpp judge itself against the base."""
    command = [binary, "-m", model, "-c", CONTEXT, "-b", CONTEXT, "-t", threads]
    command += ["--kl-divergence", "--kl-divergence-base", base.path]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{binary} failed:\n{done.stderr[-2000:]}")

    def number(label: str) -> float:
        match = re.search(rf"^{re.escape(label)}\s*:\s*([\d.]+)", done.stdout + done.stderr, re.MULTILINE)
        if match is None:
            raise SystemExit(f"no {label!r} in the output of {binary}")
        return float(match[1])

    return Row("llama.cpp", number("Mean PPL(Q)"), number("Mean    KLD"), number("Same top p") / 100)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("--text", type=Path, default=HERE / "data/northanger_abbey.txt")
    parser.add_argument("--positions", type=int, default=10_200, help="tokens judged, at most")
    parser.add_argument("--llama-bin", type=Path, help="folder that holds llama-perplexity")
    parser.add_argument("--threads", type=int, default=default_threads())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "realm" / "quality"
    parser.add_argument("--cache", type=Path, default=cache, help="folder for float32 bases")
    parser.add_argument("--kv", nargs="*", type=KVType, default=[KVType.F16, KVType.INT8], help="to try: f16 int8 f32")
    return parser.parse_args()


def stretches_of(ids: list[int], num_positions: int) -> list[list[int]]:
    """Overlapping stretches of which the judged halves lie end to end."""
    starts = range(0, len(ids) - CONTEXT + 1, CONTEXT - FIRST)
    return [ids[start : start + CONTEXT] for start in starts][: num_positions // JUDGED]


def prepared_base(args: argparse.Namespace) -> Base:
    """The float32 base, made now or kept from an earlier run."""
    with GGUFFile.open(args.model) as file:
        tokenizer, fingerprint = load_tokenizer(file.metadata), file.fingerprint
    text = args.text.read_text(encoding="utf-8")
    stretches = stretches_of(tokenizer.encode(text), args.positions)
    tokens = np.array(stretches, np.int32).tobytes()
    digest = hashlib.sha256(fingerprint.encode() + tokens).hexdigest()[:16]
    args.cache.mkdir(parents=True, exist_ok=True)
    base = Base(args.cache / f"{args.model.stem}-{digest}.base", stretches, tokenizer.vocab_size, tokenizer.encode(""))
    if not base.path.is_file():
        config = EngineConfig(kv_type=KVType.F32, kv_cache_tokens=CONTEXT, num_threads=args.threads)
        base.write(load_model(args.model, config, "reference"))
    return base


def main() -> None:
    args = parse_arguments()
    base = prepared_base(args)
    rows = []
    for kv_type in args.kv:
        native = EngineConfig(kv_type=kv_type, kv_cache_tokens=CONTEXT, num_threads=args.threads)
        rows.append(measure(f"realm, KV {kv_type.value}", load_model(args.model, native), base))
    if args.llama_bin:
        rows.append(measure_llama(args.llama_bin / "llama-perplexity", args.model, base, args.threads))
    num_positions = len(base.stretches) * JUDGED
    print(f"{args.model.name}, {args.text.name}: {num_positions} tokens judged")
    print(f"{'':16} {'perplexity':>10} {'mean KL':>9} {'same top':>9}")
    for row in rows:
        print(f"{row.engine:16} {row.perplexity:10.4f} {row.mean_kl:9.6f} {row.top1_agreement:9.2%}")
    result = {"model": args.model.name, "text": args.text.name, "num_positions": num_positions, **stamp()}
    with (HERE / "results/quality.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(result | {"rows": [asdict(row) for row in rows]}) + "\n")


if __name__ == "__main__":
    main()

"""How much speculation gains, beside Realm's own engine without it: same prompts in the same order, same tokens.

python benchmarks/speculation/speculation.py MODEL.gguf [--parts copy,chat,hopeless] [--batch-sizes 1,8,32] [--out F]

Every configuration is an engine over the same weights in the same process that keeps B requests in flight: one that
ends is replaced at once by the next prompt (`closed_loop`), and the prefix cache has the prompts, so that generating is
what is timed. A round is the same number of tokens for each configuration, in slices of them in turn, first the one
and then the other way round; the figures are medians over rounds. That the tokens are the same is checked, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from closed_loop import KVPart, Loop, Work
from prompts import CHAT, COPY

import realm
from realm.cli.machine import stamp
from realm.core.config import EngineConfig, SpeculativeConfig
from realm.core.types import Float32Array, SamplingParams
from realm.distill.make import make_draft
from realm.engine.engine import Engine
from realm.engine.sampling import sampling_of
from realm.gguf.reader import GGUFFile
from realm.models.loader import load_draft, load_model
from realm.tokenizer.chat import load_chat_template

LOOKUP, NO_LOOKUP = SpeculativeConfig(), SpeculativeConfig(lookup=False)
PARTS = ("copy", "chat", "sampled", "hopeless")
PROMPT_TOKENS = 256  # at most, for the room they take in the KV cache


@dataclass(frozen=True)
class Case:
    """One part at one batch size."""

    part: str
    batch_size: int
    prompts: list[tuple[int, ...]]
    params: SamplingParams
    configurations: tuple[str, ...]


class Bench:
    """One model in memory, and the engines over it."""

    def __init__(
        self, path: Path, drafts: dict[str, Path], num_threads: int, max_batch_size: int, max_tokens: int
    ) -> None:
        num_prompts = max(len(COPY), len(CHAT))
        self._part_tokens = max_batch_size * (PROMPT_TOKENS + max_tokens) + num_prompts * PROMPT_TOKENS
        self._config = EngineConfig(
            max_batch_size=max_batch_size, kv_cache_tokens=5 * self._part_tokens, num_threads=num_threads
        )
        self._path = path
        self._drafts = drafts
        self._model = load_model(path, self._config)
        self._tokenizer = self._model.tokenizer
        self._template = load_chat_template(self._model.metadata, self._tokenizer)
        self.end_ids = self._tokenizer.end_ids

    def engine(self, name: str, place: int) -> Engine:
        """A new engine for a configuration, in one of five places of the KV cache."""
        speculative = {"off": None, "again": None, "lookup": LOOKUP, "both": LOOKUP}.get(name, NO_LOOKUP)
        config = replace(self._config, speculative=speculative)
        path = self._drafts.get(name)
        draft = None if path is None else load_draft(path, self._path, self._model, self._config)
        executor, num_blocks = self._model.executor, self._part_tokens // self._config.kv_block_tokens
        return Engine(
            KVPart(executor, place * num_blocks, num_blocks),
            config,
            self._tokenizer.end_ids,
            draft=draft,
            sampling=sampling_of(executor),
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """A chat of one question."""
        rendered = self._template.render([{"role": "user", "content": text}])
        tokens = tuple(self._tokenizer.encode(rendered, add_special=False))
        assert len(tokens) <= PROMPT_TOKENS
        return tokens


def measure(bench: Bench, case: Case, num_rounds: int, num_slices: int, seconds: float) -> dict[str, dict[str, float]]:
    """Medians over rounds, by configuration. Rounds without drafts take about `seconds` in all."""
    loops = {
        name: Loop(bench.engine(name, place), case.prompts, case.params, case.batch_size)
        for place, name in enumerate(case.configurations)
    }
    # In the first round prompts get into the prefix cache, and engines learn what steps cost.
    first = case.params.max_tokens * max(len(case.prompts), case.batch_size)
    off = loops["off"].run(first // 2)
    off = loops["off"].run(first)
    for loop in loops.values():
        loop.run(first)
    slice_tokens = max(1, round(off.tokens_per_second * seconds / num_rounds / num_slices))
    names = list(case.configurations)
    totals = {name: Work() for name in names}
    rates: dict[str, list[float]] = {name: [] for name in names}
    target = first
    for turn in range(num_rounds):
        works = {name: Work() for name in names}
        for part in range(num_slices):
            target += slice_tokens
            for name in names if (turn * num_slices + part) % 2 else names[::-1]:
                works[name].add(loops[name].run(target))
        for name in names:
            rates[name].append(works[name].tokens_per_second)
            totals[name].add(works[name])
    _check_same(loops)
    for loop in loops.values():
        loop.stop()
    return {name: _row(totals[name], rates[name], rates["off"]) for name in names}


def _row(total: Work, rates: list[float], rates_off: list[float]) -> dict[str, float]:
    ratios = sorted(rate / off for rate, off in zip(rates, rates_off, strict=True))
    return {
        "tokens_per_second": round(statistics.median(rates), 1),
        "speedup": round(statistics.median(ratios), 3),
        "speedup_low": round(ratios[len(ratios) // 4], 3),
        "speedup_high": round(ratios[-1 - len(ratios) // 4], 3),
        "tokens_per_step": round(total.num_tokens / total.num_steps, 2),
        "rows_per_step": round(total.num_rows / total.num_steps, 2),
        "acceptance": round(total.accepted / total.drafted, 3) if total.drafted else 0.0,
        "step_ms": round(1e3 * total.seconds / total.num_steps, 3),
        "outside_ms": round(1e3 * total.python_seconds / total.num_steps, 3),
    }


def _check_same(loops: dict[str, Loop]) -> None:
    expected = loops["off"].outputs
    for name, loop in loops.items():
        both = expected.keys() & loop.outputs.keys()
        if any(expected[number] != loop.outputs[number] for number in both):
            sys.exit(f"{name} changed the output")


def shipped_draft() -> Path:
    """The draft for SmolLM2 that comes with Realm."""
    return Path(realm.__file__).parent / "data" / "smollm2-135m-draft.gguf"


def hopeless_draft(path: Path, directory: Path) -> Path:
    """A draft with random weights, of the size of the shipped one."""
    rng = np.random.default_rng(0)
    with GGUFFile.open(path) as target:
        shapes = {name: info.shape for name, info in target.tensors.items()}
        num_layers = target.metadata.get_int(f"{target.metadata.get_str('general.architecture')}.block_count")
        layers = sorted({i * (num_layers - 1) // 3 for i in range(4)})
        token_ids = range(1000, 9192)
        shapes["output.weight"] = (len(token_ids), shapes["token_embd.weight"][1])

        def noise(name: str) -> Float32Array:
            return rng.normal(0.0, 0.05, shapes[name]).astype(np.float32)

        return make_draft(target, directory / "hopeless.gguf", layers, token_ids, trained=noise)


def cases(bench: Bench, parts: Sequence[str], batch_sizes: Sequence[int], params: SamplingParams) -> list[Case]:
    """All parts at all batch sizes."""
    copy, chat = [bench.encode(text) for text in COPY], [bench.encode(text) for text in CHAT]
    what = {
        "copy": (copy, params, ("off", "lookup", "both")),
        "chat": (chat, params, ("off", "lookup", "draft", "both")),
        "sampled": (chat, replace(params, temperature=0.7, top_p=0.95), ("off", "draft", "both")),
        "hopeless": (chat, params, ("off", "hopeless")),
        "noise": (chat, params, ("off", "again")),
    }
    return [Case(part, size, what[part][0], *what[part][1:]) for part in parts for size in batch_sizes]


_HEADING = (
    f"{'':10}{'B':>3}  {'':10}{'tok/s':>8}{'speed-up':>10}  {'quartiles':<13}{'tok/step':>9}{'rows':>7}{'accepted':>10}"
    f"{'step ms':>9}{'outside':>9}"
)


def _line(case: Case, name: str, r: dict[str, float]) -> str:
    return (
        f"{case.part:10}{case.batch_size:>3}  {name:10}{r['tokens_per_second']:>8.0f}{r['speedup']:>10.3f}"
        f"  {r['speedup_low']:.3f}-{r['speedup_high']:<7.3f}{r['tokens_per_step']:>9.2f}{r['rows_per_step']:>7.1f}"
        f"{r['acceptance']:>10.1%}{r['step_ms']:>9.2f}{r['outside_ms']:>9.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft", type=Path, help="the draft file; by default the one that is shipped")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}, noise")
    parser.add_argument("--batch-sizes", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slices", type=int, default=6, help="turns of each configuration in a round")
    parser.add_argument("--seconds", type=float, default=10.0, help="that all rounds without drafts take, for one line")
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="append the result row to this .jsonl file")
    args = parser.parse_args()
    sizes = [int(size) for size in args.batch_sizes.split(",")]
    draft = args.draft or shipped_draft()
    row = {**stamp(), "benchmark": "speculation", "model": args.model.name, "num_threads": args.threads}
    row |= {"draft": draft.name, "rounds": args.rounds, "slices": args.slices, "seconds": args.seconds}
    row |= {"max_tokens": args.max_tokens, "results": []}
    with tempfile.TemporaryDirectory() as directory:
        drafts = {"draft": draft, "both": draft}
        if "hopeless" in args.parts:
            drafts["hopeless"] = hopeless_draft(args.model, Path(directory))
        bench = Bench(args.model, drafts, args.threads, max(sizes), args.max_tokens)
        params = SamplingParams(max_tokens=args.max_tokens, temperature=0.0)
        print(_HEADING)
        for case in cases(bench, args.parts.split(","), sizes, params):
            for name, r in measure(bench, case, args.rounds, args.slices, args.seconds).items():
                row["results"].append({"part": case.part, "batch_size": case.batch_size, "configuration": name, **r})
                print(_line(case, name, r), flush=True)
    if args.out is not None:
        with args.out.open("a") as rows:
            rows.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

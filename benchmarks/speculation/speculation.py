"""How much speculation gains, beside Realm's own engine without it: same prompts, same tokens, rounds interleaved.

python benchmarks/speculation/speculation.py MODEL.gguf [--parts copy,chat,hopeless] [--batch-sizes 1,8,32] [--out F]

Every configuration is an engine over the same weights in the same process. A round runs each of them on the same
prompts, one after the other; the figures are medians over rounds. Time counts from the moment every request has its
first token. Outputs end where the model ends them, or at --max-tokens; that they are the same tokens in every
configuration is checked, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from prompts import CHAT, COPY

import realm
from realm.cli.machine import stamp
from realm.core.config import EngineConfig, SpeculativeConfig
from realm.core.types import Request, SamplingParams
from realm.distill.make import make_draft
from realm.engine.engine import Engine
from realm.gguf.reader import GGUFFile
from realm.models.draft import DraftModel
from realm.models.loader import LoadedModel, load_draft, load_model
from realm.tokenizer.chat import load_chat_template
from realm.tokenizer.tokenizer import Tokenizer

LOOKUP, NO_LOOKUP = SpeculativeConfig(), SpeculativeConfig(lookup=False)
PARTS = ("copy", "chat", "sampled", "hopeless")


@dataclass
class Run:
    """One pass over the prompts."""

    seconds: float
    num_tokens: int
    num_steps: int
    drafted: int
    accepted: int
    outputs: list[tuple[int, ...]] = field(repr=False)


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    part: str
    batch_size: int
    prompts: list[tuple[int, ...]]
    params: SamplingParams
    configurations: tuple[str, ...]


class Bench:
    """Engines over one model in memory."""

    def __init__(self, path: Path, num_threads: int, max_batch_size: int) -> None:
        self._config = EngineConfig(
            max_batch_size=max_batch_size,
            kv_cache_tokens=max_batch_size * 1024,
            num_threads=num_threads,
            prefix_cache=False,  # each run computes its prompts
        )
        self._path = path
        self._model: LoadedModel = load_model(path, self._config)
        self.tokenizer: Tokenizer = self._model.tokenizer
        self._template = load_chat_template(self._model.metadata, self.tokenizer)
        self._engines: dict[str, Engine] = {}
        self.add("off", None, None)

    def add(self, name: str, speculative: SpeculativeConfig | None, draft: Path | None) -> None:
        """One more configuration."""
        config = replace(self._config, speculative=speculative)
        model: DraftModel | None = None
        if draft is not None:
            model = load_draft(draft, self._path, self._model, self._config)
        self._engines[name] = Engine(self._model.executor, config, self.tokenizer.end_ids, draft=model)

    def encode(self, text: str) -> tuple[int, ...]:
        """A chat of one question."""
        rendered = self._template.render([{"role": "user", "content": text}])
        return tuple(self.tokenizer.encode(rendered, add_special=False))

    def run(self, name: str, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> Run:
        """All prompts together through one engine."""
        engine = self._engines[name]
        outputs: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            request_id = f"{index}"
            outputs[request_id] = []
            engine.add(Request(request_id, prompt, replace(params, seed=index)))
        before = engine.stats()
        began, num_before = 0.0, 0
        while engine.has_work:
            for output in engine.step():
                outputs[output.request_id] += output.token_ids
            if not began and all(outputs.values()):
                began, num_before = time.perf_counter(), sum(map(len, outputs.values()))
                before = engine.stats()
        seconds = time.perf_counter() - began
        after = engine.stats()
        return Run(
            seconds,
            sum(map(len, outputs.values())) - num_before,
            after.num_steps - before.num_steps,
            after.num_drafted_tokens - before.num_drafted_tokens,
            after.num_accepted_tokens - before.num_accepted_tokens,
            [tuple(tokens) for tokens in outputs.values()],
        )


def measure(bench: Bench, case: Case, num_rounds: int) -> dict[str, dict[str, float]]:
    """Medians over rounds, by configuration. At batch size 1 a round is all prompts, one after another."""
    groups = [[p] for p in case.prompts] if case.batch_size == 1 else [case.prompts]
    rates: dict[str, list[float]] = {name: [] for name in case.configurations}
    totals: dict[str, list[int]] = {name: [0, 0, 0, 0] for name in case.configurations}
    for turn in range(num_rounds):
        seconds, tokens = dict.fromkeys(case.configurations, 0.0), dict.fromkeys(case.configurations, 0)
        for group in groups:
            expected = None
            for name in case.configurations:
                run = bench.run(name, group, case.params)
                expected = expected or run.outputs
                if run.outputs != expected:
                    sys.exit(f"{name} changed the output")
                seconds[name] += run.seconds
                tokens[name] += run.num_tokens
                for i, count in enumerate((run.num_tokens, run.num_steps, run.drafted, run.accepted)):
                    totals[name][i] += count
        for name in case.configurations:
            if turn or num_rounds == 1:  # in the first round engines learn what steps cost
                rates[name].append(tokens[name] / seconds[name])
    results = {}
    for name in case.configurations:
        num_tokens, num_steps, drafted, accepted = totals[name]
        results[name] = {
            "tokens_per_second": round(statistics.median(rates[name]), 1),
            "speedup": round(statistics.median(r / o for r, o in zip(rates[name], rates["off"], strict=True)), 3),
            "tokens_per_step": round(num_tokens / num_steps, 2),
            "drafted_per_token": round(drafted / num_tokens, 2),
            "acceptance": round(accepted / drafted, 3) if drafted else 0.0,
        }
    return results


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
        return make_draft(
            target,
            directory / "hopeless.gguf",
            layers,
            range(1000, 9192),
            trained=lambda name: rng.normal(0.0, 0.05, shapes[name]).astype(np.float32),
        )


def cases(bench: Bench, parts: Sequence[str], batch_sizes: Sequence[int], max_tokens: int) -> list[Case]:
    copy, chat = [bench.encode(text) for text in COPY], [bench.encode(text) for text in CHAT]
    greedy = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    sampled = replace(greedy, temperature=0.7, top_p=0.95)
    what = {
        "copy": (copy, greedy, ("off", "lookup", "both")),
        "chat": (chat, greedy, ("off", "draft", "both")),
        "sampled": (chat, sampled, ("off", "draft", "both")),
        "hopeless": (chat, greedy, ("off", "hopeless")),
    }
    made = []
    for part in parts:
        prompts, params, configurations = what[part]
        for size in batch_sizes:
            some = prompts[:8] if size == 1 else [prompts[i % len(prompts)] for i in range(size)]
            made.append(Case(part, size, some, params, configurations))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft", type=Path, help="the draft file; by default the one that is shipped")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--batch-sizes", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="append the result row to this .jsonl file")
    args = parser.parse_args()
    sizes = [int(size) for size in args.batch_sizes.split(",")]
    parts = args.parts.split(",")
    draft = args.draft or shipped_draft()
    bench = Bench(args.model, args.threads, max(sizes))
    with tempfile.TemporaryDirectory() as directory:
        bench.add("lookup", LOOKUP, None)
        bench.add("draft", NO_LOOKUP, draft)
        bench.add("both", LOOKUP, draft)
        bench.add("hopeless", NO_LOOKUP, hopeless_draft(args.model, Path(directory)))
    row = {**stamp(), "benchmark": "speculation", "model": args.model.name, "num_threads": args.threads}
    row |= {"draft": draft.name, "rounds": args.rounds, "max_tokens": args.max_tokens, "results": []}
    print(f"{'':10}{'B':>3}  {'':10}{'tok/s':>8}{'speed-up':>10}{'tok/step':>10}{'drafted':>9}{'accepted':>10}")
    for case in cases(bench, parts, sizes, args.max_tokens):
        for name, r in measure(bench, case, args.rounds).items():
            row["results"].append({"part": case.part, "batch_size": case.batch_size, "configuration": name, **r})
            print(
                f"{case.part:10}{case.batch_size:>3}  {name:10}{r['tokens_per_second']:>8.0f}{r['speedup']:>10.2f}"
                f"{r['tokens_per_step']:>10.2f}{r['drafted_per_token']:>9.2f}{r['acceptance']:>10.1%}",
                flush=True,
            )
    if args.out is not None:
        with args.out.open("a") as rows:
            rows.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

"""Replay lookup drafts over recorded answers, with the time of each step taken from a table: exact, and quick.

python benchmarks/speculation/replay.py MODEL.gguf [--batch-sizes 1,8,32] [--parts copy,chat] [--step-ms 1:2.2,...]

Answers are recorded once, by the engine without drafts (--streams keeps them). Then the engine's own `Drafter` drafts
for requests in a closed loop as in `speculation.py`, and what it drafts is verified against the recorded answers; only
the model is missing. So policies are compared without a machine's noise, and what the best of them could give is told:
"right" drafts what "lookup" guesses, but only tokens that are right.

With --classes: by class of sureness (`realm.engine.sureness`), how many of the guesses, drafted or not, were right.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from closed_loop import Loop
from prompts import CHAT, COPY

from realm.core.config import SpeculativeConfig
from realm.core.types import Request, SamplingParams
from realm.engine.adaptive import DraftLength
from realm.engine.lookup import LookupProposer
from realm.engine.sequence import Sequence
from realm.engine.speculation import Drafter
from realm.engine.verification import verify
from speculation import Bench

MAX_BATCH_TOKENS, BLOCK_TOKENS, MAX_TOKENS = 512, 32, 192
MAX_VOCAB = 2**30
# SmolLM2 (Q4_1), two threads of an AMD EPYC with AVX-512 VNNI, requests of 250 tokens: judged rows of a step at batch
# size 1, and milliseconds. The tiles of the kernels have 8 rows.
STEP_MS = "1:2.27,2:2.3,4:2.52,6:2.76,8:3.13,9:3.62,10:3.87,12:4.4,16:5.6,24:7.85,32:10.1,56:17,96:28.5,544:158"
REQUEST_MS, PROMPT_ROW_MS = 0.05, 0.2  # each further request's attention; a row that isn't judged
STEP_PYTHON_MS, LOOK_MS = 0.12, 0.015  # outside the model; and for each request that is looked at
NOISE, OUTLIERS = 0.03, 0.01

Stream = dict[str, list[int]]


@dataclass
class StepTime:
    """Seconds of a step on a simulated machine."""

    table: list[tuple[float, float]]
    random: random.Random = field(default_factory=lambda: random.Random(1))

    def seconds(self, num_requests: int, num_judged: int, num_prompt_rows: int) -> float:
        """Of one step, with the noise of a machine."""
        place = min(max(1, bisect_right(self.table, (num_judged, math.inf))), len(self.table) - 1)
        (rows, ms), (more_rows, more_ms) = self.table[place - 1 : place + 1]
        ms += (more_ms - ms) * (num_judged - rows) / (more_rows - rows)
        ms += REQUEST_MS * (num_requests - 1) + PROMPT_ROW_MS * num_prompt_rows
        ms *= 1.0 + NOISE * self.random.random()
        if self.random.random() < OUTLIERS:
            ms *= 1.0 + 1.5 * self.random.random()
        return 1e-3 * ms


class Lookup(LookupProposer):
    """Lookup that takes simulated time, and counts how right its guesses are by class."""

    def __init__(self, length: DraftLength, replayed: Replay) -> None:
        super().__init__(length)
        self._replayed = replayed
        self.counts: dict[int, list[int]] = defaultdict(lambda: [0, 0])

    def propose(self, requests: list[tuple[Sequence, int]], pays: bool = True) -> list[list[int]]:
        """See `LookupProposer`."""
        self._replayed.now += 1e-3 * LOOK_MS * len(requests)
        proposed = super().propose(requests, pays)
        for seq, _ in requests:
            state = seq.draft_state
            if state is None or not state.guess:
                continue
            for which, guessed, came in zip(state.classes, state.guess, self._replayed.after(seq), strict=False):
                self.counts[which][0] += guessed == came
                self.counts[which][1] += 1
                if guessed != came:
                    break
        return proposed


class Right(Lookup):
    """Drafts what is right of the guesses."""

    def propose(self, requests: list[tuple[Sequence, int]], pays: bool = True) -> list[list[int]]:
        """See `LookupProposer`."""
        drafts = []
        for seq, limit in requests:
            pairs = zip(self._guess(seq, limit).guess, self._replayed.after(seq), strict=False)
            drafts.append([guessed for guessed, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])
        return drafts


class Replay:
    """A closed loop of `batch_size` requests with recorded answers."""

    def __init__(
        self,
        streams: list[Stream],
        end_ids: frozenset[int],
        batch_size: int,
        times: StepTime,
        source: type[Lookup] | None,
    ) -> None:
        self.now = 0.0
        self.num_tokens = self.num_steps = self.num_drafted = self.num_accepted = 0
        self._streams = streams
        self._end_ids = end_ids
        self._batch_size = batch_size
        self._times = times
        self._numbers = itertools.count()
        self._decoding: list[Sequence] = []
        length = DraftLength(16)
        self.proposer = None if source is None else source(length, self)
        self._drafter = (
            None
            if self.proposer is None
            else Drafter([self.proposer], SpeculativeConfig(), MAX_VOCAB, length, lambda: self.now)
        )

    def after(self, seq: Sequence) -> list[int]:
        """What comes after the known tokens of a request."""
        return self._streams[int(seq.request_id) % len(self._streams)]["output"][seq.num_output :]

    def step(self) -> None:
        """One step; new requests have all of their prompts but the last block in the prefix cache."""
        missing = self._batch_size - len(self._decoding)
        new = [self._request(number) for number in itertools.islice(self._numbers, missing)]
        num_prompt_rows = sum((seq.num_prompt - 1) % BLOCK_TOKENS for seq in new)
        num_rows = self._batch_size + num_prompt_rows
        drafts: dict[int, list[int]] = {}
        if self._drafter is not None and self._decoding:
            drafts = self._drafter.propose(self._decoding, num_rows, MAX_BATCH_TOKENS - num_rows)
        for i, draft in drafts.items():
            self._decoding[i].drafts = draft
        num_drafts = sum(map(len, drafts.values()))
        seconds = self._times.seconds(self._batch_size, self._batch_size + num_drafts, num_prompt_rows)
        self.now += seconds + 1e-3 * STEP_PYTHON_MS
        self._decoding = [seq for seq in self._decoding + new if not self._verify(seq)]
        if self._drafter is not None and not num_prompt_rows:
            self._drafter.end_step(num_rows + num_drafts, seconds)
        self.num_steps += 1

    def _request(self, number: int) -> Sequence:
        prompt = tuple(self._streams[number % len(self._streams)]["prompt"])
        max_tokens = math.ceil(MAX_TOKENS * min(1.0, (number + 1) / self._batch_size))
        request = Request(str(number), prompt, SamplingParams(max_tokens=max_tokens))
        return Sequence(request, number, len(prompt) + max_tokens, self._end_ids, b"")

    def _verify(self, seq: Sequence) -> bool:
        """Hand out what comes; whether that was all."""
        num_known, num_drafts = len(seq.tokens), len(seq.drafts)
        verified = verify(seq, (self.after(seq) + [min(self._end_ids)] * (num_drafts + 1))[: num_drafts + 1])
        self.num_tokens += len(seq.tokens) - num_known
        self.num_drafted += num_drafts
        self.num_accepted += verified.num_accepted
        if self._drafter is not None and num_drafts:
            self._drafter.observe(seq, num_drafts, verified.num_accepted)
        if self._drafter is not None and verified.reason is not None:
            self._drafter.finish(seq)
        return verified.reason is not None


def record(path: Path) -> tuple[dict[str, list[Stream]], list[int]]:
    """Prompts and greedy answers by part, without drafts; and the tokens that end an answer."""
    bench = Bench(path, {}, num_threads=2, max_batch_size=8, max_tokens=MAX_TOKENS)
    found: dict[str, list[Stream]] = {}
    for part, texts in (("copy", COPY), ("chat", CHAT)):
        prompts = [bench.encode(text) for text in texts]
        params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
        outputs: list[tuple[int, ...]] = []
        for begin in range(0, len(prompts), 8):
            loop = Loop(bench.engine("off", 0), prompts[begin : begin + 8], params, len(prompts[begin : begin + 8]))
            loop.run_once(from_first_token=False)
            outputs += [loop.outputs[number] for number in range(len(loop.outputs))]
        pairs = zip(prompts, outputs, strict=True)
        found[part] = [{"prompt": list(prompt), "output": list(output)} for prompt, output in pairs]
    return found, sorted(bench.end_ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=Path, help="recorded answers; made if it doesn't exist")
    parser.add_argument("--parts", default="copy,chat")
    parser.add_argument("--batch-sizes", default="1,2,4,8,16,32")
    parser.add_argument("--tokens", type=int, default=30_000, help="of each run, after a tenth of them to warm up")
    parser.add_argument("--step-ms", default=STEP_MS, help="rows:milliseconds,... at batch size 1")
    parser.add_argument("--classes", action="store_true", help="how right guesses are, by class")
    args = parser.parse_args()
    if args.streams is not None and args.streams.exists():
        streams, end_ids = json.loads(args.streams.read_text())
    else:
        streams, end_ids = record(args.model)
        if args.streams is not None:
            args.streams.write_text(json.dumps((streams, end_ids)))
    pairs = [pair.split(":") for pair in args.step_ms.split(",")]
    times = StepTime([(float(rows), float(ms)) for rows, ms in pairs])
    print(f"{'':10}{'B':>3}  {'':8}{'speed-up':>9}{'tok/step':>10}{'accepted':>10}")
    for part, size in itertools.product(args.parts.split(","), map(int, args.batch_sizes.split(","))):
        rates: dict[str, float] = {}
        for name, source in {"off": None, "lookup": Lookup, "right": Right}.items():
            run = Replay(streams[part], frozenset(end_ids), size, replace(times, random=random.Random(1)), source)
            while run.num_tokens < args.tokens // 10:
                run.step()
            begin, num_tokens, num_steps = run.now, run.num_tokens, run.num_steps
            while run.num_tokens < args.tokens:
                run.step()
            rates[name] = (run.num_tokens - num_tokens) / (run.now - begin)
            print(
                f"{part:10}{size:>3}  {name:8}{rates[name] / rates['off']:>9.3f}"
                f"{(run.num_tokens - num_tokens) / (run.num_steps - num_steps):>10.2f}"
                f"{run.num_accepted / max(1, run.num_drafted):>10.1%}"
            )
            if args.classes and name == "lookup" and run.proposer is not None:
                for which, (num_right, num_guesses) in sorted(run.proposer.counts.items()):
                    print(f"{'':15}class {which:>2}: {num_right / num_guesses:.3f} of {num_guesses}")


if __name__ == "__main__":
    main()

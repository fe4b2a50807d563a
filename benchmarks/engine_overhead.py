"""Python time of one engine step without a model: microseconds by phase, at several batch sizes.

python benchmarks/engine_overhead.py [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
from dataclasses import dataclass

import numpy as np

from realm.core.config import EngineConfig, SpeculativeConfig
from realm.core.types import Batch, Float32Array, Int32Array, Request, SamplingParams
from realm.engine.engine import Engine
from realm.engine.sequence import Sequence
from realm.kernels.sampling_reference import SampleInputs, SampleOutputs

VOCAB = 64
PHASES = ("schedule", "batch", "forward", "sample", "emit")


class NoModel:
    """Gives the same logits at once."""

    vocab_size = VOCAB
    num_kv_blocks = 4096
    weights_bytes = kv_bytes = 0

    def __init__(self) -> None:
        self.logits = np.random.default_rng(0).normal(size=(1024, VOCAB)).astype(np.float32)

    def step(self, batch: Batch) -> Float32Array:
        return self.logits[: len(batch.logit_rows)]


class Repeat:
    """Drafts four tokens, of which some are right."""

    source = "repeat"

    def propose(self, seq: Sequence, max_tokens: int) -> list[int]:
        return [seq.tokens[-1]] * min(4, max_tokens)

    def observe(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        pass

    def finish(self, seq: Sequence) -> None:
        pass


class NoSampling:
    """Stands for the native sampler, to leave the Python around it."""

    def sample_rows(self, logits: Float32Array, inputs: SampleInputs) -> SampleOutputs:
        outputs = SampleOutputs.empty(len(logits))
        outputs.token_ids[:] = 1
        return outputs

    def argmax_rows(self, logits: Float32Array) -> Int32Array:
        return logits.argmax(axis=1).astype(np.int32)


@dataclass
class Case:
    name: str
    batch_size: int
    params: dict[str, object]
    speculate: bool = False


CASES = [
    Case("greedy", 1, {"temperature": 0.0}),
    Case("greedy", 32, {"temperature": 0.0}),
    Case("sampled", 1, {"temperature": 0.8, "top_p": 0.9}),
    Case("sampled", 32, {"temperature": 0.8, "top_p": 0.9}),
    Case("penalties", 32, {"temperature": 0.8, "repetition_penalty": 1.1}),
    Case("logprobs 5", 32, {"temperature": 0.8, "logprobs": 5}),
    Case("drafts of 4", 1, {"temperature": 0.0}, speculate=True),
    Case("drafts of 4", 32, {"temperature": 0.0}, speculate=True),
]


def measure(case: Case, num_steps: int) -> dict[str, float]:
    config = EngineConfig(max_batch_size=32, num_threads=1, speculative=SpeculativeConfig())
    engine = Engine(
        NoModel(),
        config,
        proposer=Repeat() if case.speculate else None,
        sampling=NoSampling(),
    )
    prompt = tuple(int(t) for t in np.random.default_rng(1).integers(0, VOCAB, 200))
    for i in range(case.batch_size):
        engine.add(Request(f"r{i}", (i, *prompt), SamplingParams(max_tokens=None, **case.params)))  # type: ignore[arg-type]
    for _ in range(100):
        engine.step()
    before = engine.stats()
    gc.collect()
    for _ in range(num_steps):
        engine.step()
    after = engine.stats()
    return {
        phase: (getattr(after, f"{phase}_seconds") - getattr(before, f"{phase}_seconds")) / num_steps * 1e6
        for phase in PHASES
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--profile", action="store_true", help="print where the time of greedy, B=32 goes")
    arguments = parser.parse_args()
    if arguments.profile:
        profile = cProfile.Profile()
        profile.runcall(measure, CASES[1], arguments.steps)
        pstats.Stats(profile).sort_stats("tottime").print_stats(20)
        return
    print("microseconds a step; forward is a stand-in that returns at once")
    print(f"{'case':12} {'B':>3} " + " ".join(f"{phase:>9}" for phase in PHASES) + f" {'total':>9}")
    for case in CASES:
        best = min((measure(case, arguments.steps) for _ in range(3)), key=lambda row: sum(row.values()))
        cells = " ".join(f"{best[phase]:9.1f}" for phase in PHASES)
        print(f"{case.name:12} {case.batch_size:3} {cells} {sum(best.values()):9.1f}")


if __name__ == "__main__":
    main()

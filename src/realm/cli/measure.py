"""Timing of a loaded model through its public interface: batching, sampling and detokenising are all in it."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from realm.engine.stats import EngineStats
    from realm.runtime.model import Model

_STAGES = ("schedule", "batch", "forward", "sample", "emit")


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Where the time of the engine's steps went, in seconds over `num_steps` steps."""

    num_steps: int
    seconds: dict[str, float]
    """By stage: schedule, batch, forward (the native call), sample, emit; `between` is the loop around the steps."""

    @property
    def python_share(self) -> float:
        """Part of the wall time that is not the forward pass, 0 to 1."""
        total = sum(self.seconds.values())
        return 1 - self.seconds["forward"] / total if total else 0.0


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """A batch that only decodes: every request has its prompt behind it."""

    batch_size: int
    tokens_per_second: float
    gap_seconds: tuple[float, ...]
    """Between two tokens of one request, all requests together, ascending."""
    profile: StepProfile

    def gap_quantile(self, share: float) -> float:
        """Gap that this share of gaps does not exceed, in seconds."""
        return self.gap_seconds[min(len(self.gap_seconds) - 1, int(share * len(self.gap_seconds)))]


def random_prompt(vocab_size: int, num_tokens: int, seed: object) -> list[int]:
    """Ids of ordinary tokens; no two seeds share a prefix, so that the prefix cache finds nothing."""
    rng = random.Random(str(seed))
    return [rng.randrange(min(1000, vocab_size // 2), min(40_000, vocab_size)) for _ in range(num_tokens)]


def _snapshot(model: Model) -> tuple[int, dict[str, float]]:
    stats: EngineStats = model.loop.engine_stats()
    return stats.num_steps, {stage: getattr(stats, f"{stage}_seconds") for stage in _STAGES}


def measure_decode(
    model: Model, prompts: Sequence[list[int]], num_steps: int, temperature: float = 0.0
) -> DecodeResult:
    """Decode rate of a batch, from the moment its last request got its first token, over `num_steps` steps.

    Each prompt generates enough that nobody ends before; what is still running afterwards is cancelled.
    """
    size = len(prompts)
    generation = model.stream(
        prompts, max_tokens=num_steps + 8 + 4 * size, ignore_eos=True, temperature=temperature, seed=1
    )
    last_arrival = [0.0] * size
    waiting = size
    gaps: list[float] = []
    num_tokens, began = 0, 0.0
    before = (0, dict.fromkeys(_STAGES, 0.0))
    ended = began
    for event in generation:
        now = time.perf_counter()
        if waiting:
            waiting -= last_arrival[event.index] == 0.0
            last_arrival[event.index] = now
            if not waiting:
                began, before = time.perf_counter(), _snapshot(model)
            continue
        num_tokens += len(event.token_ids)
        gaps.append(now - last_arrival[event.index])
        last_arrival[event.index] = now
        if num_tokens >= num_steps * size:
            ended = now
            break
    after = _snapshot(model)
    generation.close()
    seconds = {stage: after[1][stage] - before[1][stage] for stage in _STAGES}
    seconds["between"] = max(0.0, ended - began - sum(seconds.values()))
    profile = StepProfile(after[0] - before[0], seconds)
    return DecodeResult(size, num_tokens / (ended - began), tuple(sorted(gaps)), profile)


def measure_prefill(model: Model, prompts: Sequence[list[int]]) -> float:
    """Prompt tokens per second of one request alone, from the median time to its first token over the prompts."""
    seconds = []
    for prompt in prompts:
        began = time.perf_counter()
        model.generate(prompt, max_tokens=1, temperature=0.0, ignore_eos=True)
        seconds.append(time.perf_counter() - began)
    return statistics.mean(map(len, prompts)) / statistics.median(seconds)


def memory_bandwidth(num_threads: int, repeats: int = 5) -> float:
    """Bytes per second that `num_threads` threads read from memory together; the best of some tries."""
    arrays = [np.ones(64 << 20 >> 2, dtype=np.float32) for _ in range(num_threads)]  # 64 MiB each, beyond the caches
    best = 0.0
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in range(repeats):
            began = time.perf_counter()
            list(pool.map(np.max, arrays))
            best = max(best, sum(a.nbytes for a in arrays) / (time.perf_counter() - began))
    return best

"""Timing of a loaded model through its public interface: batching, sampling and detokenising are all in it."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from realm.cli.measure_drafts import DRAFT_PROMPT_TOKENS, DraftResult, measure_drafts
from realm.core.config import EngineConfig, KVType, ModelConfig, SpeculativeConfig
from realm.engine.stats import EngineStats
from realm.gguf.card import read_card
from realm.gguf.reader import GGUFFile
from realm.kernels.cpu import NativeExecutor
from realm.kernels.ops import Executor
from realm.models.loader import Device, LoadedModel, load_model
from realm.runtime.manager import RuntimeManager
from realm.runtime.model import Model

_BLOCK_TOKENS = EngineConfig().kv_block_tokens
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

    def step_ms(self, stage: str) -> float:
        """Mean milliseconds of one stage in a step."""
        return self.seconds[stage] / max(1, self.num_steps) * 1e3


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


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    path: Path
    batch_sizes: list[int]
    context_tokens: int
    prefill_tokens: int
    """0: no prefill test."""
    num_steps: int
    temperature: float
    kv_type: KVType
    num_threads: int
    device: Device
    speculative: SpeculativeConfig | None = None
    """Measure what drafts gain as well; all else is measured without drafts."""
    draft_model_path: str | None = None

    def engine_config(self) -> EngineConfig:
        """A KV pool in which every request of the largest batch finishes."""
        largest = max(self.batch_sizes)
        per_request = self.context_tokens + _max_tokens(self.num_steps, largest) + _BLOCK_TOKENS
        if self.speculative is not None:
            per_request = max(per_request, DRAFT_PROMPT_TOKENS + 2 * self.num_steps + _BLOCK_TOKENS)
        return EngineConfig(
            max_batch_size=largest,
            kv_cache_tokens=max(largest * per_request, self.prefill_tokens + _BLOCK_TOKENS),
            kv_type=self.kv_type,
            num_threads=self.num_threads,
            speculative=self.speculative,
        )


@dataclass(frozen=True, slots=True)
class Results:
    """What was measured. `ops` has microseconds by kind of op, by batch size; empty on the reference device."""

    load_seconds: float
    bandwidth: float
    """Bytes per second that the machine reads from memory."""
    decodes: list[DecodeResult]
    prefill_rate: float
    ops: dict[int, dict[str, float]]
    weights_bytes: int
    draft_model_id: str | None
    drafts: list[DraftResult]
    """Empty where no speculation was asked for."""
    kv_bytes_per_request: int
    """KV that one decoding request reads in a step, at the middle of its run."""
    skipped_bytes: dict[int, int]
    """Of the weights, what a decode step had no need to read, on average, by batch size."""

    def bytes_per_step(self, batch_size: int) -> int:
        """Bytes that a decode step has to read: every weight that counts once, and each request's KV."""
        return self.weights_bytes - self.skipped_bytes[batch_size] + batch_size * self.kv_bytes_per_request


def _max_tokens(num_steps: int, batch_size: int) -> int:
    """Enough that nobody ends while the batch is timed, also who got its first token long before the last."""
    return num_steps + 8 + 4 * batch_size


def measure(plan: Plan, *, ops: bool = False) -> Results:
    """Load the model and run everything in `plan`; with `ops` also time each kind of native op, in runs of its own."""
    executors: list[Executor] = []

    def load(path: Path, config: EngineConfig, device: Device) -> LoadedModel:
        loaded = load_model(path, config, device)
        executors.append(loaded.executor)
        return loaded

    with GGUFFile.open(plan.path) as file:
        card = read_card(file)
    bandwidth = memory_bandwidth(plan.num_threads)
    with RuntimeManager(plan.engine_config(), device=plan.device, loader=load) as runtime:
        began = time.perf_counter()
        model = runtime.load_model(ModelConfig(plan.path, draft_model_path=plan.draft_model_path))
        load_seconds = time.perf_counter() - began
        vocab_size = model.tokenizer.vocab_size

        def decode(size: int, seed: str) -> DecodeResult:
            prompts = [random_prompt(vocab_size, plan.context_tokens, f"{seed}/{size}/{i}") for i in range(size)]
            return measure_decode(model, prompts, plan.num_steps, plan.temperature)

        def skipped() -> int:
            executor = executors[0]
            return (
                model.loop.call(lambda: executor.skipped_bytes).result() if isinstance(executor, NativeExecutor) else 0
            )

        measure_prefill(model, [random_prompt(vocab_size, 32, "warm-up")])
        decodes: list[DecodeResult] = []
        skipped_bytes: dict[int, int] = {}
        for size in plan.batch_sizes:
            num_steps, num_bytes = _snapshot(model)[0], skipped()
            decodes.append(decode(size, "decode"))
            skipped_bytes[size] = (skipped() - num_bytes) // (_snapshot(model)[0] - num_steps)
        prefill = [random_prompt(vocab_size, plan.prefill_tokens, f"prefill/{i}") for i in range(5)]
        prefill_rate = measure_prefill(model, prefill) if plan.prefill_tokens else 0.0
        op_times: dict[int, dict[str, float]] = {}
        if ops and isinstance(executor := executors[0], NativeExecutor):
            for size in plan.batch_sizes:
                model.loop.call(executor.start_profile).result()
                decode(size, "ops")
                op_times[size] = model.loop.call(executor.profile).result()
        drafts = measure_drafts(model, plan.batch_sizes, 2 * plan.num_steps) if plan.speculative else []
        draft_model_id = model.draft_model_id
    kv_bytes = (card.kv_bytes_per_token(plan.kv_type) or 0) * (plan.context_tokens + plan.num_steps // 2)
    return Results(
        load_seconds,
        bandwidth,
        decodes,
        prefill_rate,
        op_times,
        card.weights_bytes,
        draft_model_id,
        drafts,
        kv_bytes,
        skipped_bytes,
    )


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
        prompts,
        max_tokens=_max_tokens(num_steps, size),
        ignore_eos=True,
        temperature=temperature,
        seed=1,
        speculate=False,
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

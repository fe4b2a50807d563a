"""OpenVINO GenAI: continuous batching over the same GGUF. Run by compare.py with OpenVINO's own interpreter."""

from __future__ import annotations

import importlib.metadata
import time

import numpy as np
import openvino as ov
import openvino_genai as genai
from workload import (
    DECODE_STEPS,
    PREFILL_REPEATS,
    Scenario,
    decode_rate,
    prefill_rate,
    prompt,
    report,
    worker_arguments,
)


def _add(pipeline: genai.ContinuousBatchingPipeline, request_id: int, ids: list[int], max_tokens: int) -> object:
    config = genai.GenerationConfig()
    config.max_new_tokens = max_tokens
    config.ignore_eos = True
    config.do_sample = False
    return pipeline.add_request(request_id, ov.Tensor(np.array([ids], dtype=np.int64)), config)


def _read(handle: object) -> list[int]:
    """Tokens that came since the last call."""
    return [t for o in handle.read().values() for t in o.generated_ids] if handle.can_read() else []


def _decode(pipeline: genai.ContinuousBatchingPipeline, scenario: Scenario) -> float:
    tokenizer = pipeline.get_tokenizer()
    size = scenario.batch_size
    handles = [_add(pipeline, i, prompt(scenario, i), DECODE_STEPS + 64) for i in range(size)]
    counts = [0] * size
    outputs: list[list[int]] = [[] for _ in range(size)]
    arrivals: list[float] = []
    started = 0.0
    while len(arrivals) < DECODE_STEPS * size:
        pipeline.step()
        now = time.perf_counter()
        for i, handle in enumerate(handles):
            for token in _read(handle):
                counts[i] += 1
                outputs[i].append(token)
                if started:
                    arrivals.append(now)
        if not started and all(counts):
            started = now
    for handle in handles:
        handle.cancel()
    while pipeline.has_non_finished_requests():
        pipeline.step()
    tokenizer.decode(outputs)
    return decode_rate(arrivals, size, started)


def _prefill(pipeline: genai.ContinuousBatchingPipeline, scenario: Scenario) -> float:
    seconds = []
    for repeat in range(PREFILL_REPEATS):
        ids = prompt(scenario, 0, repeat)
        start = time.perf_counter()
        handle = _add(pipeline, repeat, ids, 1)
        while not _read(handle):
            pipeline.step()
        seconds.append(time.perf_counter() - start)
        while pipeline.has_non_finished_requests():
            pipeline.step()
    return prefill_rate(seconds, scenario.prompt_tokens)


def main() -> None:
    args = worker_arguments().parse_args()
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = 512
    scheduler.max_num_seqs = 32
    scheduler.cache_size = 2  # GB; enough for 32 requests of 1,024 tokens
    scheduler.enable_prefix_caching = False
    scheduler.dynamic_split_fuse = True
    properties = {"INFERENCE_NUM_THREADS": args.threads}
    pipeline = genai.ContinuousBatchingPipeline(args.model, scheduler, "CPU", properties)
    _prefill(pipeline, Scenario("warm-up", "", "prefill", 1, 128))
    measure = {"decode": _decode, "prefill": _prefill}
    rates = {scenario.name: measure[scenario.kind](pipeline, scenario) for scenario in args.scenarios}
    report(importlib.metadata.version("openvino-genai"), rates)


if __name__ == "__main__":
    main()

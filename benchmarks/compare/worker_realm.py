"""Realm: through `realm.load`, so with its scheduler, sampler and detokeniser. Run by compare.py."""

from __future__ import annotations

import argparse
import importlib.metadata

from workload import (
    DECODE_STEPS,
    PREFILL_REPEATS,
    SCENARIOS,
    Measurement,
    Scenario,
    prompt,
    report,
)

import realm
from realm.cli.measure import measure_decode, measure_prefill


def _decode(model: realm.Model, scenario: Scenario) -> float:
    prompts = [prompt(scenario, i) for i in range(scenario.batch_size)]
    return measure_decode(model, prompts, DECODE_STEPS).tokens_per_second


def _prefill(model: realm.Model, scenario: Scenario) -> float:
    return measure_prefill(model, [prompt(scenario, 0, repeat) for repeat in range(PREFILL_REPEATS)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--scenarios", required=True)
    parser.add_argument("--kv-type", default="f16")
    args = parser.parse_args()
    scenarios = [SCENARIOS[name] for name in args.scenarios.split(",")]
    kv_tokens = max(s.batch_size * (s.prompt_tokens + 256) for s in scenarios)
    limits = {"max_batch_size": 32, "kv_cache_tokens": kv_tokens, "num_threads": args.threads}
    with realm.load(args.model, kv_type=realm.KVType(args.kv_type), **limits) as model:
        _prefill(model, Scenario("warm-up", "prefill", 1, 128))
        measurements = []
        for scenario in scenarios:
            rate = _decode(model, scenario) if scenario.kind == "decode" else _prefill(model, scenario)
            measurements.append(Measurement(scenario.name, rate))
    report("realm", importlib.metadata.version("realm"), measurements, kv_type=args.kv_type)


if __name__ == "__main__":
    main()

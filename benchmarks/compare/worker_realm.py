"""Realm: through `realm.load`, so with its scheduler, sampler and detokeniser. Run by compare.py."""

from __future__ import annotations

import importlib.metadata

from workload import DECODE_STEPS, PREFILL_REPEATS, Scenario, prompt, report, worker_arguments

import realm
from realm.cli.measure import measure_decode, measure_prefill


def _decode(model: realm.Model, scenario: Scenario) -> float:
    prompts = [prompt(scenario, i) for i in range(scenario.batch_size)]
    return measure_decode(model, prompts, DECODE_STEPS).tokens_per_second


def _prefill(model: realm.Model, scenario: Scenario) -> float:
    return measure_prefill(model, [prompt(scenario, 0, repeat) for repeat in range(PREFILL_REPEATS)])


def _warm_up(model: realm.Model, kv_tokens: int) -> None:
    """Prompts over the whole KV cache: its memory comes when it is first written, where peers take theirs at once."""
    chunk = Scenario("warm-up", "", "prefill", 1, 512)
    measure_prefill(model, [prompt(chunk, i) for i in range(-(-kv_tokens // chunk.prompt_tokens))])


def main() -> None:
    parser = worker_arguments()
    parser.add_argument("--kv-type", type=realm.KVType, default=realm.KVType.F16)
    args = parser.parse_args()
    kv_tokens = max(s.batch_size * (s.prompt_tokens + 256) for s in args.scenarios)
    limits = {"max_batch_size": 32, "kv_cache_tokens": kv_tokens, "num_threads": args.threads}
    with realm.load(args.model, kv_type=args.kv_type, **limits) as model:
        _warm_up(model, kv_tokens)
        measure = {"decode": _decode, "prefill": _prefill}
        rates = {scenario.name: measure[scenario.kind](model, scenario) for scenario in args.scenarios}
    report(importlib.metadata.version("realm"), rates)


if __name__ == "__main__":
    main()

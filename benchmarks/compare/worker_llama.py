"""llama.cpp: `llama-batched-bench` of a native build. It neither samples nor detokenises, which favours it a little."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from pathlib import Path

from workload import DECODE_STEPS, PREFILL_REPEATS, SCENARIOS, Measurement, Scenario, report


def _bench(binary: Path, args: argparse.Namespace, scenario: Scenario, repeats: int) -> list[dict[str, float]]:
    """Rows of one run: `speed_tg` and `speed_pp` in tokens/s."""
    decode_tokens = DECODE_STEPS if scenario.kind == "decode" else 1
    context = scenario.batch_size * (scenario.prompt_tokens + decode_tokens)
    command = [str(binary), "-m", args.model, "-c", str(context + 256), "-b", "2048", "-ub", "512"]
    command += ["-npp", ",".join([str(scenario.prompt_tokens)] * repeats), "-ntg", str(decode_tokens)]
    command += ["-npl", str(scenario.batch_size), "-t", str(args.threads), "-tb", str(args.threads)]
    command += ["--output-format", "jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == repeats, done.stdout + done.stderr
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--scenarios", required=True)
    args = parser.parse_args()
    binary = Path(os.environ["LLAMA_BIN"]) / "llama-batched-bench"
    measurements = []
    for name in args.scenarios.split(","):
        scenario = SCENARIOS[name]
        if scenario.kind == "decode":
            rate = _bench(binary, args, scenario, 1)[0]["speed_tg"]
        else:
            rate = statistics.median(row["speed_pp"] for row in _bench(binary, args, scenario, PREFILL_REPEATS))
        measurements.append(Measurement(name, rate))
    report("llama.cpp", os.environ.get("LLAMA_VERSION", "unknown"), measurements)


if __name__ == "__main__":
    main()

"""llama.cpp: `llama-batched-bench` of a native build. It neither samples nor detokenises, which favours it a little."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from pathlib import Path

from workload import DECODE_STEPS, PREFILL_REPEATS, Scenario, report, worker_arguments


def _bench(binary: Path, args: argparse.Namespace, scenario: Scenario, repeats: int) -> list[dict[str, float]]:
    """Rows of one run: `speed_tg` and `speed_pp` in tokens/s."""
    decode_tokens = DECODE_STEPS if scenario.kind == "decode" else 1
    context = scenario.batch_size * (scenario.prompt_tokens + decode_tokens)
    command = [str(binary), "-m", args.model, "-c", str(context + 256), "-b", "2048", "-ub", "512"]
    command += ["-npp", ",".join([str(scenario.prompt_tokens)] * repeats), "-ntg", str(decode_tokens)]
    command += ["-npl", str(scenario.batch_size), "-t", str(args.threads), "-tb", str(args.threads)]
    command += ["--output-format", "jsonl"]
    if scenario.is_long:
        # One prompt, whose KV is then copied to each request: decoding does the same work, 80 s of prefill are saved.
        command += ["-pps"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{binary.name}: {done.stderr.strip()[-500:]}")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == repeats, done.stdout + done.stderr
    return rows


def main() -> None:
    args = worker_arguments().parse_args()
    binary = Path(os.environ["LLAMA_BIN"]) / "llama-batched-bench"
    rates = {}
    for scenario in args.scenarios:
        if scenario.kind == "decode":
            rates[scenario.name] = _bench(binary, args, scenario, 1)[0]["speed_tg"]
        else:
            rows = _bench(binary, args, scenario, PREFILL_REPEATS)
            rates[scenario.name] = statistics.median(row["speed_pp"] for row in rows)
    report(os.environ.get("LLAMA_VERSION", "unknown"), rates)


if __name__ == "__main__":
    main()

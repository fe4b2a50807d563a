"""`realm bench`: how fast a model runs on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from realm.cli.options import (
    ENGINE,
    SPECULATIVE,
    DeviceOption,
    DraftOption,
    KVTypeOption,
    MaxDraftTokens,
    Model,
    SpeculateOption,
    Threads,
    speculation,
)
from realm.core.config import AUTO_DRAFT

if TYPE_CHECKING:
    from realm.cli.measure import DecodeResult, Results
    from realm.cli.measure_drafts import DraftResult


def bench(
    model: Model,
    batch_sizes: Annotated[str, typer.Option(help="Concurrent requests, comma separated.")] = "1,8,32",
    context: Annotated[int, typer.Option(help="Prompt tokens of each decoding request.")] = 128,
    prefill: Annotated[int, typer.Option(help="Prompt tokens of the prefill test; 0 leaves it out.")] = 512,
    steps: Annotated[int, typer.Option(help="Decode steps timed for each batch size.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    kv_type: KVTypeOption = ENGINE.kv_type,
    threads: Threads = ENGINE.num_threads,
    device: DeviceOption = "cpu",
    speculate: SpeculateOption = "off",
    draft: DraftOption = AUTO_DRAFT,
    max_draft_tokens: MaxDraftTokens = SPECULATIVE.max_draft_tokens,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time of a step goes.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print only the result row, as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Append the result row to this .jsonl file.")] = None,
) -> None:
    """Measure decode and prefill through the whole engine: tokens/s, latency quantiles, memory bandwidth used.

    With --speculate also what drafts gain on texts to repeat and on open answers, beside the same without drafts.
    """
    from realm.cli.machine import stamp
    from realm.cli.measure import Plan, measure
    from realm.cli.progress import fetch_model

    speculative, draft_path = speculation(speculate, draft, max_draft_tokens)
    sizes = _parse_sizes(batch_sizes)
    path = fetch_model(model)
    plan = Plan(path, sizes, context, prefill, steps, temperature, kv_type, threads, device, speculative, draft_path)
    results = measure(plan, ops=profile)
    row = {
        **stamp(),
        "benchmark": "realm bench",
        "model": plan.path.name,
        "num_threads": threads,
        "device": device,
        "kv_type": kv_type.value,
        "context_tokens": context,
        "load_seconds": round(results.load_seconds, 3),
        "memory_bandwidth_gb_per_second": round(results.bandwidth / 1e9, 2),
        "decode": [_decode_row(d, results) for d in results.decodes],
        "prefill": {"tokens": prefill, "tokens_per_second": round(results.prefill_rate, 1)} if prefill else None,
        "draft_model": results.draft_model_id,
        "speculation": [_draft_row(d) for d in results.drafts],
    }
    if out is not None:
        with out.open("a") as rows:
            rows.write(json.dumps(row) + "\n")
    if json_output:
        typer.echo(json.dumps(row))
        return
    from realm.cli.report import print_ops, print_report, print_stages

    print_report(row)
    if profile:
        print_stages(results.decodes)
        print_ops(results.ops)


def _parse_sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise typer.BadParameter(f"numbers of at least 1, comma separated; got {text!r}", param_hint="--batch-sizes")
    return sizes


def _draft_row(drafts: DraftResult) -> dict[str, Any]:
    return {
        "work": drafts.work,
        "batch_size": drafts.batch_size,
        "plain_tokens_per_second": round(drafts.plain_rate, 1),
        "tokens_per_second": round(drafts.draft_rate, 1),
        "speedup": round(drafts.draft_rate / drafts.plain_rate, 3),
        "tokens_per_step": round(drafts.tokens_per_step, 3),
        "drafted_tokens": drafts.drafted_tokens,
        "accepted_tokens": drafts.accepted_tokens,
        "same_output": drafts.same_output,
    }


def _decode_row(decode: DecodeResult, results: Results) -> dict[str, Any]:
    read_bytes = results.bytes_per_step(decode.batch_size) * decode.tokens_per_second / decode.batch_size
    return {
        "batch_size": decode.batch_size,
        "tokens_per_second": round(decode.tokens_per_second, 1),
        "gap_ms": {q: round(decode.gap_quantile(float(q[1:]) / 100) * 1e3, 3) for q in ("p50", "p90", "p99")},
        "read_gb_per_second": round(read_bytes / 1e9, 2),
        "python_share": round(decode.profile.python_share, 4),
        "step_ms": {stage: round(decode.profile.step_ms(stage), 4) for stage in decode.profile.seconds},
    }

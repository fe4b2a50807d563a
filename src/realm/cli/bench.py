"""`realm bench`: how fast a model runs on this machine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from realm.cli.options import ENGINE, DeviceOption, KVTypeOption, Model, Threads

if TYPE_CHECKING:
    from rich.console import Console

    from realm.cli.measure import DecodeResult


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
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time of a step goes.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print only the result row, as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Append the result row to this .jsonl file.")] = None,
) -> None:
    """Measure decode and prefill through the whole engine: tokens/s, latency quantiles, memory bandwidth used."""
    from rich.console import Console

    from realm.cli.machine import stamp
    from realm.cli.measure import measure_decode, measure_prefill, memory_bandwidth, random_prompt
    from realm.cli.progress import fetch_model
    from realm.gguf.card import read_card
    from realm.gguf.reader import GGUFFile
    from realm.runtime.load import load

    sizes = _parse_sizes(batch_sizes)
    path = fetch_model(model)
    with GGUFFile.open(path) as file:
        card = read_card(file)
    bandwidth = memory_bandwidth(threads)
    began = time.perf_counter()
    loaded = load(
        path,
        device=device,
        max_batch_size=max(sizes),
        kv_cache_tokens=max(max(sizes) * (context + steps + 8 + 4 * max(sizes) + 32), prefill + 64),
        kv_type=kv_type,
        num_threads=threads,
    )
    load_seconds = time.perf_counter() - began
    with loaded:
        vocab_size = loaded.tokenizer.vocab_size
        loaded.generate(random_prompt(vocab_size, 32, "warm-up"), max_tokens=8, temperature=0.0, ignore_eos=True)
        decodes = [
            measure_decode(
                loaded, [random_prompt(vocab_size, context, f"{size}/{i}") for i in range(size)], steps, temperature
            )
            for size in sizes
        ]
        prompts = [random_prompt(vocab_size, prefill, f"prefill/{i}") for i in range(5)]
        prefill_rate = measure_prefill(loaded, prompts) if prefill else None
    row = {
        **stamp(),
        "benchmark": "realm bench",
        "model": path.name,
        "num_threads": threads,
        "device": device,
        "kv_type": kv_type.value,
        "context_tokens": context,
        "load_seconds": round(load_seconds, 3),
        "memory_bandwidth_gb_per_second": round(bandwidth / 1e9, 2),
        "decode": [_decode_row(d, card.weights_bytes) for d in decodes],
        "prefill": None if prefill_rate is None else {"tokens": prefill, "tokens_per_second": round(prefill_rate, 1)},
    }
    if out is not None:
        with out.open("a") as results:
            results.write(json.dumps(row) + "\n")
    if json_output:
        typer.echo(json.dumps(row))
        return
    console = Console()
    _print_report(console, row)
    if profile:
        _print_profile(console, decodes)


def _parse_sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise typer.BadParameter(f"numbers of at least 1, comma separated; got {text!r}", param_hint="--batch-sizes")
    return sizes


def _decode_row(result: DecodeResult, weights_bytes: int) -> dict[str, Any]:
    steps_per_second = result.tokens_per_second / result.batch_size
    return {
        "batch_size": result.batch_size,
        "tokens_per_second": round(result.tokens_per_second, 1),
        "gap_ms": {q: round(result.gap_quantile(float(q[1:]) / 100) * 1e3, 3) for q in ("p50", "p90", "p99")},
        "weights_gb_per_second": round(steps_per_second * weights_bytes / 1e9, 2),
        "python_share": round(result.profile.python_share, 4),
        "step_ms": {
            stage: round(seconds / max(1, result.profile.num_steps) * 1e3, 4)
            for stage, seconds in result.profile.seconds.items()
        },
    }


def _print_report(console: Console, row: dict[str, Any]) -> None:
    from rich.table import Table

    machine = row["machine"]
    console.print(
        f"{row['model']} on {machine['cpu']}, {row['num_threads']} threads, KV {row['kv_type']}; "
        f"loaded in {row['load_seconds']:.2f} s; memory reads {row['memory_bandwidth_gb_per_second']} GB/s",
        highlight=False,
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    for name in ("", "tok/s", "gap p50 ms", "p90", "p99", "weights GB/s", "of bandwidth", "Python share"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for d in row["decode"]:
        gap = d["gap_ms"]
        used = d["weights_gb_per_second"] / row["memory_bandwidth_gb_per_second"]
        table.add_row(
            f"decode B={d['batch_size']}",
            f"{d['tokens_per_second']:,.0f}",
            *(f"{gap[q]:.2f}" for q in ("p50", "p90", "p99")),
            f"{d['weights_gb_per_second']:.1f}",
            f"{used:.0%}",
            f"{d['python_share']:.1%}",
        )
    if row["prefill"]:
        table.add_row(f"prefill {row['prefill']['tokens']}", f"{row['prefill']['tokens_per_second']:,.0f}")
    console.print(table, highlight=False)


def _print_profile(console: Console, decodes: list[DecodeResult]) -> None:
    from rich.table import Table

    stages = list(decodes[0].profile.seconds)
    table = Table(title="milliseconds a step", title_justify="left", box=None, pad_edge=False)
    for name in ("", *stages, "total"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for decode in decodes:
        per_step = [decode.profile.seconds[s] / max(1, decode.profile.num_steps) * 1e3 for s in stages]
        table.add_row(f"B={decode.batch_size}", *(f"{ms:.3f}" for ms in per_step), f"{sum(per_step):.3f}")
    console.print(table, highlight=False)

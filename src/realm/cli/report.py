"""The tables that `realm bench` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from realm.cli.measure import DecodeResult


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=140)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left")
    return table


def print_report(row: dict[str, Any]) -> None:
    """Rates, gaps between tokens, and how much of the memory bandwidth they use."""
    console = _console()
    console.print(
        f"{row['model']} on {row['machine']['cpu']}, {row['num_threads']} threads, KV {row['kv_type']}, "
        f"context {row['context_tokens']}; loaded in {row['load_seconds']:.2f} s; "
        f"memory reads {row['memory_bandwidth_gb_per_second']} GB/s\n",
        highlight=False,
        markup=False,
    )
    table = _table("", "tok/s", "gap p50 ms", "p90 ms", "p99 ms", "GB/s read", "of memory", "Python share")
    for d in row["decode"]:
        table.add_row(
            f"decode B={d['batch_size']}",
            f"{d['tokens_per_second']:,.0f}",
            *(f"{d['gap_ms'][q]:.2f}" for q in ("p50", "p90", "p99")),
            f"{d['read_gb_per_second']:.1f}",
            f"{d['read_gb_per_second'] / row['memory_bandwidth_gb_per_second']:.0%}",
            f"{d['python_share']:.1%}",
        )
    if row["prefill"]:
        table.add_row(f"prefill {row['prefill']['tokens']}", f"{row['prefill']['tokens_per_second']:,.0f}")
    console.print(table, highlight=False)
    if row["speculation"]:
        console.print()
        console.print(_draft_table(row), highlight=False)


def _draft_table(row: dict[str, Any]) -> Table:
    """Rates with and without drafts."""
    source = f"drafts of {row['draft_model']}" if row["draft_model"] else "lookup drafts"
    table = _table(source, "tok/s without", "tok/s", "gain", "tokens a step", "drafted", "accepted", "same output")
    for d in row["speculation"]:
        table.add_row(
            f"{d['work']} B={d['batch_size']}",
            f"{d['plain_tokens_per_second']:,.0f}",
            f"{d['tokens_per_second']:,.0f}",
            f"{d['speedup']:.2f} x",
            f"{d['tokens_per_step']:.2f}",
            f"{d['drafted_tokens']:,}",
            f"{d['accepted_tokens']:,}",
            "yes" if d["same_output"] else "NO",
        )
    return table


def print_stages(decodes: Sequence[DecodeResult]) -> None:
    """Milliseconds a step spends in each stage."""
    stages = list(decodes[0].profile.seconds)
    table = _table("milliseconds a step", *stages, "total")
    for decode in decodes:
        per_step = [decode.profile.step_ms(stage) for stage in stages]
        table.add_row(f"decode B={decode.batch_size}", *(f"{ms:.3f}" for ms in per_step), f"{sum(per_step):.3f}")
    console = _console()
    console.print()
    console.print(table, highlight=False)


def print_ops(ops: dict[int, dict[str, float]]) -> None:
    """Share of the native call that each kind of op takes, by batch size."""
    if not ops:
        return
    names = sorted(
        {name for op in ops.values() for name in op}, key=lambda name: -sum(o.get(name, 0) for o in ops.values())
    )
    table = _table("share of the forward pass", *(f"B={size}" for size in ops))
    for name in names:
        table.add_row(name, *(f"{op.get(name, 0.0) / sum(op.values()):.1%}" for op in ops.values()))
    console = _console()
    console.print()
    console.print(table, highlight=False)

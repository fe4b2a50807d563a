"""`realm models`: what can be pulled and what is on disk."""

from __future__ import annotations

import typer


def models() -> None:
    """List the models that can be pulled by name, and the GGUF files that are on this machine."""
    from rich.console import Console
    from rich.table import Table

    from realm.runtime.catalogue import CATALOGUE, models_dir

    table = Table(box=None, pad_edge=False)
    for column in ("NAME", "MODEL", "SIZE", "LICENSE", "ON DISK"):
        table.add_column(column, justify="right" if column == "SIZE" else "left", no_wrap=True)
    named = set()
    for entry in CATALOGUE.values():
        path = entry.path()
        named.add(path)
        here = "yes" if path.is_file() else "-"
        table.add_row(entry.name, entry.title, f"{entry.size_bytes / 1e6:.0f} MB", entry.license, here)
    for path in sorted(models_dir().rglob("*.gguf")):
        if path not in named:
            name = str(path.relative_to(models_dir()))
            table.add_row(name, "", f"{path.stat().st_size / 1e6:.0f} MB", "", "yes")
    console = Console()
    console.print(table) if console.is_terminal else Console(width=200).print(table)
    typer.echo(f"\nmodels directory: {models_dir()}")

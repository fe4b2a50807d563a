"""`realm adapters`: look into LoRA adapter files, merge one into a model, or manage those of a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from realm.cli import adapter_admin

app = typer.Typer(
    help="Look into LoRA adapters, merge one into a model, or manage those of a running server.", no_args_is_help=True
)

Adapter = Annotated[Path, typer.Argument(help="PEFT directory or GGUF adapter file.")]


@app.command()
def info(adapter: Adapter) -> None:
    """Print what an adapter changes, its ranks, size and content hash."""
    from realm.lora.adapter import LoRAWeights

    weights = LoRAWeights.load(adapter)
    ranks = sorted({layer.rank for layer in weights.layers.values()})
    parts = sorted({name.rpartition(".")[2] for name in weights.layers})
    typer.echo(f"name      {weights.adapter_id}")
    typer.echo(f"matrices  {len(weights.layers)}: {', '.join(parts)}")
    typer.echo(f"ranks     {', '.join(map(str, ranks))}")
    typer.echo(f"alpha     {weights.alpha:g}")
    typer.echo(f"memory    {weights.num_bytes / 1e6:.1f} MB as float32")
    typer.echo(f"SHA-256   {weights.content_hash}")


@app.command()
def merge(
    base: Annotated[Path, typer.Argument(help="The model, a GGUF file.")],
    adapter: Adapter,
    out: Annotated[Path, typer.Argument(help="The GGUF file to write.")],
) -> None:
    """Write W + scale * B A as a new model, for those who serve one tenant only."""
    from realm.gguf.reader import GGUFFile
    from realm.lora.adapter import LoRAWeights
    from realm.lora.merge import merge_adapter

    with GGUFFile.open(base) as file:
        changed = merge_adapter(file, LoRAWeights.load(adapter), out)
    typer.echo(f"{out}: {len(changed)} matrices changed")


for _name, _command in adapter_admin.COMMANDS.items():
    app.command(_name)(_command)

"""`realm info`: what a GGUF file says about its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from realm.gguf.card import ModelCard
    from realm.runtime.drafts import DraftCard


def info(
    file: Annotated[str, typer.Argument(help="Path of a .gguf file, or the name of a model that is on this machine.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Print a model card: architecture, sizes, quantisation, the memory it will need, tokenizer, chat template."""
    from realm.gguf.card import read_card
    from realm.gguf.reader import GGUFFile
    from realm.runtime.catalogue import find_model
    from realm.runtime.drafts import draft_card

    path = find_model(file)
    with GGUFFile.open(path) as opened:
        card = read_card(opened)
        draft = draft_card(path, opened)
    if json_output:
        import dataclasses
        import json

        facts = dataclasses.asdict(card) | {"draft": draft and dataclasses.asdict(draft)}
        typer.echo(json.dumps(facts, indent=2))
        return
    from rich.console import Console

    console = Console()
    print_card(card, path, console if console.is_terminal else Console(width=120), draft)


def print_card(card: ModelCard, path: Path, console: Console, draft: DraftCard | None = None) -> None:
    """Write the card as aligned lines; `draft` is what there is to say of drafting."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for label, value in _rows(card, path, draft):
        if value is not None:
            table.add_row(label, str(value))
    console.print(table, highlight=False, markup=False)
    if card.chat_template:
        console.print("\nchat template", style="bold")
        console.print(card.chat_template, highlight=False, markup=False)


def _rows(card: ModelCard, path: Path, draft: DraftCard | None) -> list[tuple[str, object]]:
    heads = None
    if card.num_heads is not None:
        heads = f"{card.num_heads} query, {card.num_kv_heads} KV, {card.head_dim} wide"
    mix = ", ".join(
        f"{share.type_name}{'' if share.supported else ' (not supported)'} {share.num_bytes / 1e6:,.1f} MB"
        for share in card.quant_mix
    )
    tokenizer = (
        card.tokenizer and f"{card.tokenizer}{f', pre-tokenizer {card.pre_tokenizer}' if card.pre_tokenizer else ''}"
    )
    return [
        ("file", f"{path} ({card.file_bytes / 1e6:,.1f} MB)"),
        ("name", card.name),
        ("license", card.license),
        ("architecture", card.architecture),
        ("parameters", f"{card.num_parameters / 1e6:,.1f} M in {card.num_tensors} tensors"),
        ("layers", card.num_layers),
        ("hidden size", card.hidden_size),
        ("feed-forward size", card.feed_forward_size),
        ("attention heads", heads),
        ("sliding window", card.sliding_window and f"{card.sliding_window:,} tokens"),
        ("vocabulary", card.vocab_size and f"{card.vocab_size:,} tokens"),
        ("context length", card.context_length and f"{card.context_length:,} tokens"),
        ("tokenizer", tokenizer),
        ("quantisation", mix),
        ("memory", _memory(card)),
        ("draft", draft and _draft(draft)),
    ]


def _memory(card: ModelCard) -> str:
    """Weights plus KV for the default pool of `realm serve`."""
    from realm.core.config import EngineConfig, KVType

    config = EngineConfig()
    weights = f"weights {card.weights_bytes / 1e6:,.0f} MB"
    per_token = card.kv_bytes_per_token(KVType.F16)
    if per_token is None:
        return weights
    tokens = config.max_batch_size * 1024
    return (
        f"{weights} + KV {per_token / 1024:,.1f} KB a token (f16) = {(card.memory_bytes(tokens) or 0) / 1e6:,.0f} MB "
        f"when `realm serve` holds {tokens:,} tokens"
    )


def _draft(draft: DraftCard) -> str:
    """What a draft model adds, or what this file is."""
    from realm.core.config import EngineConfig

    proposable = "all" if draft.num_tokens is None else f"{draft.num_tokens:,}"
    layers = f"{len(draft.layers)} of the model's layers, proposes {proposable} tokens"
    if draft.own:
        return f"this file drafts for a model: {layers}, and the model's embedding and head"
    tokens = EngineConfig().max_batch_size * 1024
    num_bytes = draft.weights_bytes + tokens * draft.kv_bytes_per_token
    return (
        f"{draft.name} is shipped for it ({layers}): weights {draft.weights_bytes / 1e6:,.0f} MB + KV "
        f"{draft.kv_bytes_per_token / 1024:,.1f} KB a token = {num_bytes / 1e6:,.0f} MB more when speculating"
    )

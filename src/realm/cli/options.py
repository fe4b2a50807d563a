"""Options that several commands share; every default is read from the configuration's dataclasses."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import typer

from realm.core.config import AUTO_DRAFT, EngineConfig, KVType, SpeculativeConfig
from realm.core.errors import InvalidRequest

ENGINE = EngineConfig()
"""Defaults of the engine's options."""
SPECULATIVE = SpeculativeConfig()
"""Defaults of the options for drafts."""

NO_DRAFT = "none"

MODEL_HELP = "Name from `realm models`, path of a .gguf file, or its URL. Downloaded if missing."
Model: TypeAlias = Annotated[str, typer.Argument(help=MODEL_HELP)]
Device: TypeAlias = Literal["cpu", "reference"]
DeviceOption: TypeAlias = Annotated[
    Device, typer.Option(help="cpu: native kernels; reference: plain torch, slow and near exact.")
]
Threads: TypeAlias = Annotated[
    int, typer.Option(help="Threads that compute.", show_default="the CPUs this process may use")
]
MaxBatchSize: TypeAlias = Annotated[int, typer.Option(help="Requests in one forward pass.")]
MaxSeqLen: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Tokens of prompt plus output of one request.  [default: the model's, at most 8192]"),
]
MaxBatchTokens: TypeAlias = Annotated[int, typer.Option(help="Tokens in one forward pass, over all requests.")]
KVCacheTokens: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Tokens the KV cache holds.  [default: 1024 for each of max-batch-size requests]"),
]
KVTypeOption: TypeAlias = Annotated[KVType, typer.Option(help="Storage type of cached keys and values.")]
PrefixCache: TypeAlias = Annotated[bool, typer.Option(help="Reuse the KV of prompts that begin alike.")]
MaxQueued: TypeAlias = Annotated[int, typer.Option(help="Requests that may wait; one more is refused with 429.")]

Speculate: TypeAlias = Literal["auto", "lookup", "draft", "off"]
SpeculateOption: TypeAlias = Annotated[
    Speculate,
    typer.Option(
        help="Guess tokens ahead and verify them, which changes the speed, never the output. lookup: from the "
        "request's own text; draft: with a draft model; auto: with what there is."
    ),
]
DraftOption: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Draft model: a .gguf file with the same vocabulary, auto (the one shipped for the model), or none.",
        metavar="auto|none|PATH",
    ),
]
MaxDraftTokens: TypeAlias = Annotated[int, typer.Option(help="Tokens guessed ahead at most for a request.")]


def speculation(
    speculate: Speculate, draft: str, max_draft_tokens: int, lookup_history: bool = False
) -> tuple[SpeculativeConfig | None, str | None]:
    """What `--speculate` and `--draft` ask for: the engine's configuration, and `ModelConfig.draft_model_path`.

    Raises:
        InvalidRequest: they contradict each other.
    """
    if speculate in ("lookup", "off") and draft not in (AUTO_DRAFT, NO_DRAFT):
        raise InvalidRequest(f"--draft {draft} contradicts --speculate {speculate}", param="draft")
    if speculate == "draft" and draft == NO_DRAFT:
        raise InvalidRequest("--draft none contradicts --speculate draft", param="draft")
    if speculate == "off":
        if lookup_history:
            raise InvalidRequest("--lookup-history contradicts --speculate off", param="lookup_history")
        return None, None
    config = SpeculativeConfig(
        max_draft_tokens=max_draft_tokens, lookup=speculate != "draft", lookup_history=lookup_history
    )
    return config, None if speculate == "lookup" or draft == NO_DRAFT else draft

"""Options that several commands share; every default is read from the configuration's dataclasses."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import typer

from realm.core.config import EngineConfig, KVType

ENGINE = EngineConfig()
"""Defaults of the engine's options."""

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

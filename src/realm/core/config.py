"""Frozen configuration. CLI defaults are read from these classes; derive changed copies with `dataclasses.replace`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from realm.core.errors import InvalidRequest


class KVType(StrEnum):
    """Storage type of cached keys and values."""

    F16 = "f16"
    INT8 = "int8"
    F32 = "f32"


MAX_DRAFT_TOKENS = 64


def default_threads() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


AUTO_DRAFT = "auto"
"""As `ModelConfig.draft_model_path`: the draft that Realm ships for the model, if it ships one."""


@dataclass(frozen=True, slots=True)
class SpeculativeConfig:
    """How tokens are guessed ahead. Guesses are verified: they change how soon an output comes, never what it is.

    Raises:
        InvalidRequest: a value out of range, naming the field.
    """

    draft_k: int = 4
    """Longest draft for a request until one was verified, whatever it is; then its length follows what pays."""
    max_draft_tokens: int = 16
    """Longest draft for one request and step."""
    lookup: bool = True
    """Guess what followed the last time that the request's latest tokens occurred."""
    lookup_history: bool = False
    """Look into finished requests of the same cache domain too, which keeps their tokens in memory."""

    def __post_init__(self) -> None:
        for name in ("draft_k", "max_draft_tokens"):
            if not 1 <= getattr(self, name) <= MAX_DRAFT_TOKENS:
                raise InvalidRequest(
                    f"{name} must be between 1 and {MAX_DRAFT_TOKENS}, got {getattr(self, name)}", param=name
                )
        if self.lookup_history and not self.lookup:
            raise InvalidRequest("lookup_history needs lookup", param="lookup_history")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model to load. Names as in the original Realm."""

    model_path: str | Path
    model_id: str = ""
    draft_model_path: str | Path | None = None
    """A draft model: a GGUF file with the same vocabulary, a draft file made for the model, or ``auto``. Used also
    where the engine's configuration says nothing of speculation."""
    draft_model_id: str | None = None
    """What metrics call the draft model; its file's name if None."""

    def __post_init__(self) -> None:
        if self.draft_model_id is not None and self.draft_model_path is None:
            raise InvalidRequest("draft_model_id needs a draft_model_path", param="draft_model_id")


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How much a store of uploaded adapters may hold."""

    max_adapters: int = 1000
    max_adapter_bytes: int = 512 << 20
    """Of one upload."""
    max_bytes: int = 16 << 30
    """Of all files together, those included that a stream still needs."""


_POSITIVE = (
    "max_batch_size",
    "max_batch_tokens",
    "kv_block_tokens",
    "max_queued",
    "num_threads",
    "adapter_cache_bytes",
)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one engine.

    Raises:
        InvalidRequest: a value out of range, naming the field.
    """

    max_batch_size: int = 32
    """Requests in one step."""
    max_seq_len: int | None = None
    """Tokens of prompt plus output of one request; the model's own context length, at most 8,192, if None."""
    max_batch_tokens: int = 512
    """Tokens in one step, over all requests."""
    kv_cache_tokens: int | None = None
    """Tokens the KV pool holds; if None, 1,024 for each of `max_batch_size` requests, at least one `max_seq_len`."""
    kv_block_tokens: int = 32
    """Tokens in one KV block; a multiple of 16."""
    kv_type: KVType = KVType.F16
    prefix_cache: bool = True
    max_queued: int = 256
    """Requests that wait for a place in the batch; one more is refused with 429."""
    num_threads: int = field(default_factory=default_threads)
    adapter_cache_bytes: int = 512 << 20
    """Memory for LoRA adapters that are ready to compute with; more of them than fit is normal."""
    speculative: SpeculativeConfig | None = None
    """No drafts if None, unless the model is loaded with a draft model."""

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} must be at least 1, got {getattr(self, name)}", param=name)
        if self.kv_block_tokens % 16:
            raise InvalidRequest(
                f"kv_block_tokens must be a multiple of 16, got {self.kv_block_tokens}", param="kv_block_tokens"
            )
        if self.max_batch_tokens < self.max_batch_size:
            raise InvalidRequest(
                f"max_batch_tokens ({self.max_batch_tokens}) must be at least max_batch_size ({self.max_batch_size})",
                param="max_batch_tokens",
            )

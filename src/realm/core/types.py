"""The nouns that cross seams. A comment says which stage fills a field. See docs/ARCHITECTURE.md for the letters.

T tokens in a step, R requests in a step, S rows judged (logits wanted), V vocabulary, M KV blocks of a request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from realm.core.errors import InvalidRequest, RealmError

Int32Array: TypeAlias = NDArray[np.int32]
Float32Array: TypeAlias = NDArray[np.float32]

MAX_LOGPROBS = 20
MAX_SEED = 2**63 - 1


class FinishReason(StrEnum):
    """Why a request ended. Each accepted request gets exactly one."""

    STOP = "stop"  # end-of-sequence token, stop token or stop string
    LENGTH = "length"  # max_tokens or the context limit
    CANCELLED = "cancelled"  # by the client, or it disconnected
    TIMEOUT = "timeout"  # its deadline passed
    ERROR = "error"  # see StepOutput.error


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw tokens from one request's logits. Defaults follow the OpenAI API; 0 / 1.0 / None switch a rule off.

    Order of application: logit_bias, repetition/presence/frequency penalties, temperature, top_k, top_p, min_p.
    Reported log-probabilities are those of the model itself, before any of these.

    Raises:
        InvalidRequest: a value that is out of range or not finite; `param` names it.
    """

    max_tokens: int | None = None
    """Tokens to generate at most; whatever the context leaves if None."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and output (CTRL, arXiv 1909.05858)."""
    presence_penalty: float = 0.0
    """Over the output only, as OpenAI."""
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    """The draw at output position i depends on (seed, i) only. Callers that want variety pick a random seed."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """None: no log-probabilities; n: those of the drawn token and of the n likeliest."""

    def __post_init__(self) -> None:
        _check_range("max_tokens", self.max_tokens, 1, None)
        _check_range("temperature", self.temperature, 0.0, 100.0)
        _check_range("top_k", self.top_k, 0, None)
        _check_range("top_p", self.top_p, 0.0, 1.0)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _check_range("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _check_range("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        _check_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        _check_range("seed", self.seed, -MAX_SEED, MAX_SEED)
        for token, bias in self.logit_bias.items():
            _check_range("logit_bias", bias, -100.0, 100.0)
            if token < 0:
                raise InvalidRequest(f"logit_bias token must not be negative, got {token}", param="logit_bias")
        if any(not s for s in self.stop):
            raise InvalidRequest("stop strings must not be empty", param="stop")

    @property
    def greedy(self) -> bool:
        """True when the likeliest token is always taken."""
        return self.temperature == 0.0 or self.top_k == 1


def _check_range(name: str, value: float | None, low: float, high: float | None) -> None:
    if value is None:
        return
    if not math.isfinite(value) or value < low or (high is not None and value > high):
        limit = f"between {low} and {high}" if high is not None else f"at least {low}"
        raise InvalidRequest(f"{name} must be {limit}, got {value}", param=name)


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter as the engine sees it: identity is `content_hash` (hex SHA-256), `name` is an alias."""

    name: str
    content_hash: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate. `n` choices are n requests. Filled by `runtime`; the engine never changes it."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    cache_domain: bytes = b""
    """Root of its KV hash chain (SHA-256); see `core.domain`. Clients can't set it."""
    tenant_id: str = "default"
    adapter: AdapterRef | None = None
    deadline: float | None = None
    """Seconds on the engine's clock (monotonic); None: no deadline."""
    speculate: bool = True
    """Whether drafts may be made for it, if the engine makes any."""
    max_draft_tokens: int | None = None
    """Its longest draft, where that is shorter than the engine's."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities at one output position."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob), likeliest first; ties by lower id."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose KV was found in the prefix cache."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step did for one request. With `finish_reason` set it is the request's terminal event."""

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    error: RealmError | None = None
    usage: Usage | None = None
    """Set on the terminal event."""


@dataclass(slots=True)
class Batch:
    """One step's input, built by `engine.runner`, read by an executor (see `kernels.ops.Executor`).

    Rows of one request are consecutive and in order. Row i of request r sits at position
    `context_lens[r] + (i - query_starts[r])`; its KV slot follows from the block table.
    """

    token_ids: Int32Array  # [T]
    query_starts: Int32Array  # [R + 1], first row of each request, then T
    context_lens: Int32Array  # [R], tokens already in the KV cache
    block_tables: Int32Array  # [R, M], physical block ids, padded with 0
    logit_rows: Int32Array  # [S], rows (ascending) whose logits are wanted
    adapter_slots: Int32Array  # [R], resident adapter slot or -1
    likeliest_only: bool = False  # logits that are not the largest of their row may come out as -infinity

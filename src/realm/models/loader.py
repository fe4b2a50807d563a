"""From a GGUF file to something that can step."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from realm.core.config import EngineConfig
from realm.core.errors import InvalidRequest, UnsupportedParameter
from realm.core.texts import Texts
from realm.gguf.metadata import Metadata
from realm.gguf.reader import GGUFFile
from realm.kernels.ops import Executor
from realm.models.config import ModelSpec, read_spec
from realm.models.decoder import decode
from realm.models.draft import DraftModel, read_draft
from realm.models.weights import Weights, dequantize_tensor, load_weights, rope_factors
from realm.tokenizer.tokenizer import Tokenizer, load_tokenizer

Device = Literal["cpu", "reference"]
Progress = Callable[[int, int], None]
"""Called with (tensors done, tensors in all)."""

_DEFAULT_MAX_SEQ_LEN_TOKENS = 8192
_DEFAULT_KV_TOKENS_PER_REQUEST = 1024


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, ready to step."""

    spec: ModelSpec
    executor: Executor
    tokenizer: Tokenizer
    metadata: Metadata
    """The file's, without its lists: those of a large vocabulary take tens of megabytes."""
    fingerprint: str
    """Hex SHA-256 that identifies the weights; part of every cache domain."""
    max_seq_len: int
    """Tokens of prompt plus output that one request may have."""


def load_model(
    path: str | Path, config: EngineConfig, device: Device = "cpu", progress: Progress | None = None
) -> LoadedModel:
    """Open `path`, check it and make an executor with a KV pool of the size that `config` asks for.

    Args:
        path: a GGUF file; the first one of a split model.
        config: limits of the engine that will use it.
        device: `cpu` for the native kernels, `reference` for plain torch in float32 (slow, exact).
        progress: called with (tensors done, tensors in all) while the native kernels pack the weights.

    Raises:
        ModelFileError: the file is missing, corrupt, hostile or of a kind that is not supported.
        InvalidRequest: `max_seq_len` is more than the model's context.
    """
    parts = _read(path, config)
    num_kv_blocks = _num_kv_blocks(config, parts.max_seq_len)
    args = parts.weights, parts.spec, config, num_kv_blocks
    if device == "cpu":
        executor = _native_executor(*args, parts.max_seq_len, progress)
    else:
        executor = _reference_executor(*args)
    _return_freed_memory()
    return LoadedModel(parts.spec, executor, parts.tokenizer, parts.metadata, parts.fingerprint, parts.max_seq_len)


@dataclass(frozen=True)
class _Parts:
    """What is kept of a file. Its whole metadata is gone before the weights are packed, which takes the most memory."""

    spec: ModelSpec
    weights: Weights
    tokenizer: Tokenizer
    metadata: Metadata
    fingerprint: str
    max_seq_len: int


def _read(path: str | Path, config: EngineConfig) -> _Parts:
    with GGUFFile.open(path) as file:
        spec = read_spec(file.metadata, rope_factors(file))
        max_seq_len = _max_seq_len(config, spec)
        weights = load_weights(file, spec)
        tokenizer = load_tokenizer(file.metadata)
        metadata = Metadata({key: value for key, value in file.metadata.items() if not isinstance(value, list | Texts)})
        return _Parts(spec, weights, tokenizer, metadata, file.fingerprint, max_seq_len)


def _return_freed_memory() -> None:
    """Give the system what reading the file has freed: glibc keeps it for later, and a model stays for long."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def load_draft(
    path: str | Path,
    target_path: str | Path,
    target: LoadedModel,
    config: EngineConfig,
    device: Device = "cpu",
    progress: Progress | None = None,
    name: str | None = None,
) -> DraftModel:
    """Open a draft for a loaded model: any GGUF file of the same vocabulary, or a draft file made for it.

    On the CPU it computes with the target's threads and, if it is a draft file, with the target's embedding and head.
    `name` is what to call it; its file's name if None.

    Raises:
        ModelFileError: as `load_model`; code `draft_mismatch` if it can't draft for this model.
    """
    with GGUFFile.open(path) as file, GGUFFile.open(target_path) as target_file:
        draft = read_draft(file, target_file)
        num_kv_blocks = target.executor.num_kv_blocks
        weights, spec = draft.weights, draft.spec
        if device == "cpu":
            executor = _native_executor(
                weights, spec, config, num_kv_blocks, target.max_seq_len, progress, target.executor, draft.shared
            )
        else:
            executor = _reference_executor(weights, spec, config, num_kv_blocks)
        return DraftModel(executor, draft.token_ids, name or Path(path).stem)


def _max_seq_len(config: EngineConfig, spec: ModelSpec) -> int:
    limit = spec.context_length_tokens
    if config.max_seq_len is None:
        return min(limit, _DEFAULT_MAX_SEQ_LEN_TOKENS)
    if not 1 <= config.max_seq_len <= limit:
        raise InvalidRequest(
            f"max_seq_len must be between 1 and the model's context length, {limit}, got {config.max_seq_len}",
            param="max_seq_len",
        )
    return config.max_seq_len


def _num_kv_blocks(config: EngineConfig, max_seq_len: int) -> int:
    num_tokens = config.kv_cache_tokens
    if num_tokens is None:
        num_tokens = max(config.max_batch_size * min(_DEFAULT_KV_TOKENS_PER_REQUEST, max_seq_len), max_seq_len)
    if num_tokens < 1:
        raise InvalidRequest(f"kv_cache_tokens must be at least 1, got {num_tokens}", param="kv_cache_tokens")
    return -(-num_tokens // config.kv_block_tokens)


def _native_executor(
    weights: Weights,
    spec: ModelSpec,
    config: EngineConfig,
    num_kv_blocks: int,
    max_seq_len: int,
    progress: Progress | None,
    beside: Executor | None = None,
    shared: frozenset[str] = frozenset(),
) -> Executor:
    # Reading a file's metadata must work where the native module was not built.
    from realm.kernels.cpu import NativeExecutor

    return NativeExecutor(
        lambda ops: decode(ops, weights, spec),
        vocab_size=spec.vocab_size,
        num_kv_blocks=num_kv_blocks,
        block_tokens=config.kv_block_tokens,
        kv_type=config.kv_type,
        max_batch_tokens=config.max_batch_tokens,
        max_positions=max_seq_len,
        num_threads=config.num_threads,
        beside=beside if isinstance(beside, NativeExecutor) else None,
        shared=shared,
        progress=progress,
    )


def _reference_executor(weights: Weights, spec: ModelSpec, config: EngineConfig, num_kv_blocks: int) -> Executor:
    # torch is optional, and slow to import.
    from realm.kernels.reference import KV_DTYPES, ReferenceExecutor

    if config.kv_type not in KV_DTYPES:
        raise UnsupportedParameter(
            f"kv_type {config.kv_type.value} is not supported on the reference device", param="kv_type"
        )
    return ReferenceExecutor(
        lambda ops: decode(ops, weights, spec),
        dequantize_tensor,
        vocab_size=spec.vocab_size,
        num_kv_blocks=num_kv_blocks,
        block_tokens=config.kv_block_tokens,
        kv_type=config.kv_type,
        kv_values_per_token=spec.kv_values_per_token,
    )

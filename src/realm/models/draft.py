"""Draft models: any GGUF file with the target's vocabulary, or a draft file made from some of the target's layers.

A draft file holds blocks, the last norm and, if that was trained, a head. The embedding is the target's own tensor in
memory, and so is the head of a draft without one; with a reduced vocabulary it is the target's rows of those tokens.

    realm.draft.version          1
    realm.draft.vocabulary       SHA-256 of the target's tokens, hex
    realm.draft.layers           the target's layers that the blocks were made from
    realm.draft.token_ids        target ids of the tokens it can propose, ascending; absent: all
    realm.draft.embedding_norms  lengths of some rows of the target's embedding, to tell models of one vocabulary apart
    realm.draft.recipe           how it was trained, for people
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from realm.core.errors import ModelFileError
from realm.core.quant import row_bytes
from realm.core.types import Float32Array, Int32Array
from realm.gguf.dequant import dequantize
from realm.gguf.metadata import Metadata
from realm.gguf.reader import GGUFFile
from realm.gguf.writer import OutputTensor, write_gguf
from realm.kernels.ops import Executor, Linear, QuantTensor
from realm.models.config import ModelSpec, read_spec
from realm.models.weights import Weights, load_blocks, load_weights, rope_factors
from realm.tokenizer.vocabulary import read_vocabulary

PREFIX = "realm.draft."
VERSION = 1
_NUM_NORMS = 16
_NORM_TOLERANCE = 0.05  # quantising changes a row's length by less, another model's row has another length


@dataclass(frozen=True)
class DraftModel:
    """A draft model in memory."""

    executor: Executor
    """Gives logits [S, V_draft]."""
    token_ids: Int32Array | None = None
    """[V_draft] the target's token ids, if the draft can't propose all of them."""
    name: str = ""


@dataclass(frozen=True)
class DraftWeights:
    """What there is to build a draft's executor from."""

    weights: Weights
    spec: ModelSpec
    token_ids: Int32Array | None
    shared: frozenset[str]
    """Names of the matrices that are the target's own."""


def is_draft_file(metadata: Mapping[str, object]) -> bool:
    """Whether this is a file of blocks only, which needs its target to run."""
    return f"{PREFIX}version" in metadata


def read_draft(draft: GGUFFile, target: GGUFFile) -> DraftWeights:
    """Weights and spec of `draft`, for use beside `target`.

    Raises:
        ModelFileError: a corrupt file, or one that doesn't fit: code `draft_mismatch`.
    """
    if is_draft_file(draft.metadata):
        return _read_blocks(draft, target)
    difference = _vocabulary_difference(draft.metadata, target.metadata)
    if difference is not None:
        raise _mismatch(draft, f"its vocabulary differs from the target's: {difference}")
    spec = read_spec(draft.metadata, rope_factors(draft))
    num_tokens = read_spec(target.metadata, rope_factors(target)).vocab_size
    if spec.vocab_size < num_tokens:
        raise _mismatch(draft, f"its embedding has {spec.vocab_size} rows, and the target's has {num_tokens}")
    return DraftWeights(load_weights(draft, spec), spec, None, frozenset())


def _vocabulary_difference(draft: Metadata, target: Metadata) -> str | None:
    """What keeps a token id from meaning the same in both, in words."""
    kinds = [metadata.get_str("tokenizer.ggml.model") for metadata in (draft, target)]
    if kinds[0] != kinds[1]:
        return f"it is of the kind {kinds[0]!r} against {kinds[1]!r}"
    return read_vocabulary(draft).first_difference(read_vocabulary(target))


def fits(draft: GGUFFile, target: GGUFFile) -> bool:
    """Whether the draft file `draft` was made for `target`, or for another quantisation of the same model."""
    return _misfit(draft, target) is None


def _read_blocks(draft: GGUFFile, target: GGUFFile) -> DraftWeights:
    problem = _misfit(draft, target)
    if problem is not None:
        raise _mismatch(draft, problem)
    target_spec = read_spec(target.metadata, rope_factors(target))
    whole = load_weights(target, target_spec)
    kept = draft.metadata.get_ints(f"{PREFIX}layers")
    if not kept or min(kept) < 0 or max(kept) >= target_spec.num_layers:
        raise ModelFileError(f"{draft.path.name}: {PREFIX}layers must name layers of the target, got {kept!r:.80}")
    spec = replace(target_spec, layers=tuple(target_spec.layers[i] for i in kept))
    token_ids = _token_ids(draft.metadata, spec.vocab_size)
    layers, output_norm, own_head = load_blocks(draft, spec, spec.vocab_size if token_ids is None else len(token_ids))
    head = whole.head if token_ids is None else _cut(whole.head, token_ids)
    if own_head is not None:
        head = Linear((own_head,), head.biases)
    shared = {whole.embedding.name}
    if token_ids is None and own_head is None:
        shared |= {part.name for part in head.parts}
    return DraftWeights(Weights(whole.embedding, layers, output_norm, head), spec, token_ids, frozenset(shared))


def _misfit(draft: GGUFFile, target: GGUFFile) -> str | None:
    metadata = draft.metadata
    version = metadata.get_int(f"{PREFIX}version")
    if version != VERSION:
        return f"it is of version {version}, and {VERSION} is supported"
    if metadata.get_str(f"{PREFIX}vocabulary") != vocabulary_hash(target.metadata):
        return "it was made for a model with another vocabulary"
    architectures = metadata.get_str("general.architecture"), target.metadata.get_str("general.architecture", "")
    if architectures[0] != architectures[1]:
        return f"it was made for a {architectures[0]} model, and this is a {architectures[1]} model"
    wanted, norms = metadata.get_floats(f"{PREFIX}embedding_norms"), embedding_norms(target)
    if len(wanted) != len(norms) or not np.allclose(wanted, norms, rtol=_NORM_TOLERANCE, atol=0.0):
        return "it was made for a model with another embedding"
    return None


def vocabulary_hash(metadata: Mapping[str, object]) -> str:
    """SHA-256 (hex) over the tokens of a file, each with its length before it, in id order.

    Raises:
        ModelFileError: it has none.
    """
    tokens = Metadata(metadata).get_strs("tokenizer.ggml.tokens")
    digest = hashlib.sha256(b"realm-vocabulary-v1")
    for raw in [token.encode(errors="surrogatepass") for token in tokens]:
        digest.update(len(raw).to_bytes(4, "little"))
        digest.update(raw)
    return digest.hexdigest()


def embedding_norms(file: GGUFFile) -> list[float]:
    """Euclidean lengths of a few embedding rows, evenly spread over the vocabulary.

    Raises:
        ModelFileError: the file has no embedding.
    """
    info = file.tensors.get("token_embd.weight")
    if info is None:
        raise ModelFileError(f"{file.path.name}: tensor token_embd.weight is missing", code="missing_tensor")
    num_rows = info.shape[0]
    rows = [i * (num_rows - 1) // (_NUM_NORMS - 1) for i in range(_NUM_NORMS)]
    values = dequantize(np.ascontiguousarray(info.data[rows]), info.quant_type, info.shape[-1])
    return [float(norm) for norm in np.linalg.norm(values, axis=1)]


def write_draft(
    path: str | Path,
    target: GGUFFile,
    layers: Sequence[int],
    tensors: Sequence[OutputTensor],
    token_ids: Sequence[int] | None,
    notes: Mapping[str, object],
) -> Path:
    """Write a draft file for `target`.

    Args:
        path: The file.
        target: The model it is for.
        layers: The target's layers that the blocks were made from.
        tensors: ``blk.i.*``, ``output_norm.weight`` and perhaps ``output.weight``.
        token_ids: Tokens it can propose, ascending; None for all.
        notes: More metadata: name, licence, source, ``realm.draft.recipe``.
    """
    architecture = target.metadata.get_str("general.architecture")
    sizes = {key: value for key, value in target.metadata.items() if key.startswith(f"{architecture}.")}
    metadata: dict[str, object] = {
        "general.architecture": architecture,
        "general.type": "draft",
        **notes,
        **sizes,
        f"{architecture}.block_count": len(layers),
        f"{PREFIX}version": VERSION,
        f"{PREFIX}vocabulary": vocabulary_hash(target.metadata),
        f"{PREFIX}layers": list(layers),
        f"{PREFIX}embedding_norms": embedding_norms(target),
    }
    if token_ids is not None:
        metadata[f"{PREFIX}token_ids"] = list(token_ids)
    write_gguf(path, metadata, tensors)
    return Path(path)


def _token_ids(metadata: Metadata, vocab_size: int) -> Int32Array | None:
    if f"{PREFIX}token_ids" not in metadata:
        return None
    ids = np.array(metadata.get_ints(f"{PREFIX}token_ids"), np.int64)
    if not len(ids) or ids[0] < 0 or ids[-1] >= vocab_size or (np.diff(ids) <= 0).any():
        raise ModelFileError(f"{PREFIX}token_ids must be ascending ids of the target's {vocab_size} tokens")
    return ids.astype(np.int32)


def _cut(head: Linear, token_ids: Int32Array) -> Linear:
    """The rows of `token_ids` only."""
    (part,), (bias,) = head.parts, head.biases
    data = part.data.reshape(part.num_rows, row_bytes(part.quant_type, part.num_cols))[token_ids]
    cut = QuantTensor(f"{part.name}#draft", part.quant_type, len(token_ids), part.num_cols, data.reshape(-1))
    cut_bias: Float32Array | None = None if bias is None else bias[token_ids]
    return Linear((cut,), (cut_bias,))


def _mismatch(draft: GGUFFile, problem: str) -> ModelFileError:
    return ModelFileError(
        f"{draft.path.name} can't draft for this model: {problem}",
        code="draft_mismatch",
        hint="a draft is a GGUF with the same tokens, or made by `realm draft make`",
    )

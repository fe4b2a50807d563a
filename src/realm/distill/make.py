"""Draft files made from a target's own layers. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from realm.core.errors import InvalidRequest
from realm.core.quant import LAYOUTS, QuantType
from realm.core.types import Float32Array
from realm.gguf import names
from realm.gguf.quantize import quantize
from realm.gguf.reader import GGUFFile, TensorInfo
from realm.gguf.writer import OutputTensor
from realm.models.config import ModelSpec, read_spec
from realm.models.draft import is_draft_file, write_draft
from realm.models.weights import load_weights, rope_factors

Counts = NDArray[np.int64]
"""[V] how often each token occurs."""
Trained = Callable[[str], Float32Array]
"""Values of a target's tensor after training, by its name."""
STORED_TYPE = QuantType.Q4_1
"""What trained matrices are stored as: a draft is as quick as it is small."""


def read_target(file: GGUFFile) -> ModelSpec:
    """The spec of a model that a draft can be made for.

    Raises:
        InvalidRequest: the file is a draft itself.
        ModelFileError: it isn't a whole model that can be served.
    """
    if is_draft_file(file.metadata):
        raise InvalidRequest(
            f"{file.path.name} is a draft itself, made from layers of another model",
            param="target",
            hint="give the model that the draft is to serve",
        )
    spec = read_spec(file.metadata, rope_factors(file))
    load_weights(file, spec)  # checks that everything is there
    return spec


def default_layers(num_layers: int, keep: int) -> tuple[int, ...]:
    """`keep` of `num_layers` layers, evenly spread, the first and the last among them.

    Raises:
        InvalidRequest: fewer than 1 or more than the target has.
    """
    if not 1 <= keep <= num_layers:
        raise InvalidRequest(f"a draft keeps between 1 and {num_layers} layers, got {keep}", param="layers")
    if keep == 1:
        return (0,)
    return tuple(round(i * (num_layers - 1) / (keep - 1)) for i in range(keep))


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Raise InvalidRequest unless `layers` names layers of the target, each once and in order."""
    for layer in layers:
        if not 0 <= layer < num_layers:
            raise InvalidRequest(
                f"layer {layer} is out of range: the target has layers 0 to {num_layers - 1}", param="layers"
            )
    if not layers or any(b <= a for a, b in pairwise(layers)):
        raise InvalidRequest(
            f"layers must be in ascending order, each once, got {','.join(map(str, layers)) or 'none'}", param="layers"
        )


def check_vocabulary(num_tokens: int, vocab_size: int) -> None:
    """Raise InvalidRequest unless a draft can propose `num_tokens` of the target's tokens."""
    if not 1 <= num_tokens <= vocab_size:
        raise InvalidRequest(
            f"a draft proposes between 1 and {vocab_size} tokens, the target's vocabulary; got {num_tokens}",
            param="vocab",
        )


def most_frequent(counts: Counts, num_tokens: int) -> list[int]:
    """The `num_tokens` tokens that occur most in `counts` [V], ascending; the lower id among equals."""
    order = np.argsort(-counts, kind="stable")
    return sorted(order[:num_tokens].tolist())


def count_tokens(rows: Sequence[NDArray[np.int32]], vocab_size: int) -> Counts:
    """[V] how often each token occurs in `rows`."""
    counts = np.zeros(vocab_size, np.int64)
    for row in rows:
        counts += np.bincount(row.reshape(-1), minlength=vocab_size)
    return counts


def make_draft(
    target: GGUFFile,
    out: str | Path,
    layers: Sequence[int],
    token_ids: Sequence[int] | None = None,
    *,
    trained: Trained | None = None,
    recipe: str = "",
) -> Path:
    """Write a draft of `target` that has only `layers`.

    Args:
        target: The model it is for.
        out: The file to write.
        layers: The target's layers to keep.
        token_ids: Tokens it can propose, ascending; None for all.
        trained: Values to store, as `STORED_TYPE`, instead of the target's own bytes; with `token_ids` also a head's,
            [V_draft, C], under the name that heads have in files.
        recipe: How it was trained, for people.

    Raises:
        InvalidRequest: layers that the target doesn't have.
    """
    check_layers(layers, target.metadata.get_int(f"{target.metadata.get_str('general.architecture')}.block_count"))
    notes: dict[str, object] = {"general.name": f"{target.metadata.get_str('general.name', target.path.stem)} draft"}
    license_name = target.metadata.get_str("general.license", "")
    if license_name:
        notes["general.license"] = license_name
    if recipe:
        notes["realm.draft.recipe"] = recipe
    tensors = _tensors(target.tensors, layers, trained)
    if trained is not None and token_ids is not None:
        name = f"{names.OUTPUT}.weight"
        tensors.append(_trained(name, trained(name)))
    return write_draft(out, target, layers, tensors, token_ids, notes)


def _tensors(tensors: Mapping[str, TensorInfo], layers: Sequence[int], trained: Trained | None) -> list[OutputTensor]:
    norm = f"{names.OUTPUT_NORM}.weight"
    kept = [_tensor(norm, tensors[norm], trained)]
    for index, layer in enumerate(layers):
        prefix = f"blk.{layer}."
        for name, info in tensors.items():
            part = name.removeprefix(prefix)
            if part != name and part.partition(".")[0] not in names.IGNORED_LAYER_TENSORS:
                kept.append(_tensor(f"blk.{index}.{part}", info, trained))
    return kept


def _tensor(name: str, info: TensorInfo, trained: Trained | None) -> OutputTensor:
    if trained is None:
        return OutputTensor(name, info.quant_type, info.shape, info.data.reshape(-1).view(np.uint8))
    return _trained(name, trained(info.name).reshape(info.shape))


def _trained(name: str, values: Float32Array) -> OutputTensor:
    quant_type = STORED_TYPE if is_stored_in_blocks(values.shape) else QuantType.F32
    return OutputTensor(name, quant_type, values.shape, quantize(np.atleast_2d(values), quant_type))


def is_stored_in_blocks(shape: Sequence[int]) -> bool:
    """Whether a trained tensor is stored as `STORED_TYPE`, rather than as float32."""
    return len(shape) == 2 and shape[-1] % LAYOUTS[STORED_TYPE].block_elements == 0

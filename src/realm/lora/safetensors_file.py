"""Read a safetensors file one tensor at a time: the library checks the header, the values are read where it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from realm.core.errors import ModelFileError

MAX_HEADER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as the file has it."""

    name: str
    dtype: str
    """As the format names it: ``F32``, ``BF16``, ..."""
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


def read_safetensors(
    path: Path, max_bytes: int, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[StoredTensor]:
    """The tensors of a file with a `wanted` name, in no order that means anything; others are not read.

    Raises:
        ModelFileError: missing, larger than `max_bytes`, truncated, corrupt or hostile.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size > max_bytes:
                raise _invalid(path, f"has {size} bytes, the limit is {max_bytes}")
            header_bytes, header = _header(path, file)
            for name, entry in header.items():
                if not wanted(name):
                    continue
                begin, end = entry["data_offsets"]
                file.seek(8 + header_bytes + begin)
                data = np.fromfile(file, np.uint8, end - begin)
                if len(data) < end - begin:
                    raise _invalid(path, "became shorter while it was read")
                yield StoredTensor(name, entry["dtype"], tuple(entry["shape"]), data)
    except OSError as error:
        raise ModelFileError(f"{path.name} cannot be read: {error.strerror}", code="adapter_not_found") from None


def _header(path: Path, file: BinaryIO) -> tuple[int, dict[str, dict[str, Any]]]:
    """Length of the header, and its entries by tensor name."""
    file.seek(0)
    num_bytes = int.from_bytes(file.read(8), "little")
    if num_bytes > MAX_HEADER_BYTES:
        raise _invalid(path, f"is truncated or corrupt: a header of {num_bytes} bytes")
    raw = file.read(num_bytes)
    try:
        with safe_open(path, "np"):  # checks types, shapes, offsets and that they leave no holes
            pass
        header = json.loads(raw, object_pairs_hook=_unique)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise _invalid(path, f"is truncated or corrupt: {str(error)[:200]}") from None
    header.pop("__metadata__", None)
    return num_bytes, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name is there twice")
    return entries


def _invalid(path: Path, message: str) -> ModelFileError:
    return ModelFileError(f"{path.name} {message}", code="invalid_adapter")

"""Open GGUF files: mmapped, read-only, split files as one."""

from __future__ import annotations

import hashlib
import mmap
import stat
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from realm.core.errors import ModelFileError
from realm.core.quant import LAYOUTS, QuantType
from realm.gguf.format import MAX_SPLITS, SPLIT_NAME, ValueType, tensor_type_name
from realm.gguf.header import Header, TensorHeader, parse_header
from realm.gguf.metadata import Metadata

_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor in an open file. `shape` is in numpy order: (rows N, columns K) for a matrix."""

    name: str
    type_id: int
    shape: tuple[int, ...]
    num_bytes: int
    """0 for a tensor type whose size is not known."""
    _raw: NDArray[np.uint8] = field(repr=False, compare=False)

    @property
    def type_name(self) -> str:
        """ggml's name of the tensor type, supported or not."""
        return tensor_type_name(self.type_id)

    @property
    def supported(self) -> bool:
        """True if Realm can compute with this tensor type."""
        return self.type_id in LAYOUTS

    @property
    def quant_type(self) -> QuantType:
        """The tensor type.

        Raises:
            ModelFileError: a type that Realm cannot compute with.
        """
        if not self.supported:
            raise ModelFileError(
                f"tensor {self.name} is of type {self.type_name}, which is not supported",
                code="unsupported_tensor_type",
                hint=f"use a file with these types only: {', '.join(sorted(t.name for t in QuantType))}",
            )
        return QuantType(self.type_id)

    @property
    def data(self) -> NDArray[np.uint8]:
        """Read-only view of the stored bytes, [N, bytes per row]; dimensions before the last are flattened into N.

        Valid after `GGUFFile.close` too: the map lives until its last view is gone.

        Raises:
            ModelFileError: a type that Realm cannot compute with.
        """
        layout = LAYOUTS[self.quant_type]
        return self._raw.reshape(-1, self.shape[-1] // layout.block_elements * layout.block_bytes)


class GGUFFile:
    """One model: a GGUF file, or all parts of a split one. The files must not change while it is open."""

    def __init__(self, path: Path, parts: list[_Part]) -> None:
        first = parts[0].header
        self.path = path
        self.version = first.version
        self.alignment = first.alignment
        self.metadata: Metadata = first.metadata
        self.value_types: dict[str, ValueType] = first.value_types
        self.size_bytes = sum(part.raw.size for part in parts)
        self.tensors: dict[str, TensorInfo] = {}
        for part in parts:
            for tensor in part.header.tensors:
                if tensor.name in self.tensors:
                    raise ModelFileError(f"{part.path.name}: tensor {tensor.name} is in an earlier part too")
                self.tensors[tensor.name] = part.tensor_info(tensor)
        self._parts = parts

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Open `path`; the first part of a split model opens all parts.

        Raises:
            ModelFileError: missing, unreadable, truncated, corrupt or unsupported.
        """
        path = Path(path)
        first = _Part.open(path)
        count = first.header.metadata.get_int("split.count", 0)
        if count <= 1:
            return cls(path, [first])
        parts = [first, *(_open_split(path, number, count) for number in range(1, count))] if _is_first(first) else []
        _check_split_total(parts)
        return cls(path, parts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) that identifies the model.

        Over each part's size, its whole header and, of each tensor, the first, middle and last 4 KiB. So it costs
        milliseconds whatever the model's size, and differs between models that differ in any metadata, tensor name,
        shape or type, or, for fine-tunes of one base, in the sampled weights.
        """
        digest = hashlib.sha256(b"realm-gguf-fingerprint-v1")
        for part in self._parts:
            digest.update(part.raw.size.to_bytes(8, "little"))
            digest.update(part.raw[: part.header.num_bytes].data)
            for tensor in part.header.tensors:
                _hash_samples(digest, part.raw[tensor.offset : tensor.offset + (tensor.num_bytes or 0)])
        return digest.hexdigest()

    def close(self) -> None:
        """Drop the maps; views of tensor data taken before stay valid."""
        self.tensors = {}
        self._parts = []

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Part:
    """One mapped file."""

    def __init__(self, path: Path, header: Header, raw: NDArray[np.uint8]) -> None:
        self.path = path
        self.header = header
        self.raw = raw

    @classmethod
    def open(cls, path: Path) -> _Part:
        mapped = _map(path)
        header = parse_header(mapped, path.name)
        return cls(path, header, np.frombuffer(mapped, np.uint8))

    def tensor_info(self, tensor: TensorHeader) -> TensorInfo:
        num_bytes = tensor.num_bytes or 0
        raw = self.raw[tensor.offset : tensor.offset + num_bytes]
        return TensorInfo(tensor.name, tensor.type_id, tensor.shape, num_bytes, raw)


def _map(path: Path) -> bytes | mmap.mmap:
    try:
        # Anything but a regular file could block (a pipe) or cannot be mapped.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelFileError(f"{path} is not a file", code="model_file_not_found")
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                return b""
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist", code="model_file_not_found") from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}", code="model_file_unreadable") from None
    return mapped


def _is_first(part: _Part) -> bool:
    """True for the first part of a split model, by its metadata and by its name."""
    metadata = part.header.metadata
    number, count = metadata.get_int("split.no", 0), metadata.get_int("split.count")
    match = SPLIT_NAME.match(part.path.name)
    if count > MAX_SPLITS:
        raise ModelFileError(f"{part.path.name}: split.count is {count}, the limit is {MAX_SPLITS}")
    if match is None or int(match["count"]) != count or int(match["number"]) != number + 1:
        raise ModelFileError(
            f"{part.path.name} is part {number + 1} of {count}, so it must be named "
            f"NAME-{number + 1:05}-of-{count:05}.gguf",
            code="invalid_split",
        )
    if number:
        raise ModelFileError(
            f"{part.path.name} is part {number + 1} of {count}",
            code="invalid_split",
            hint=f"open {_split_path(part.path, 0, count).name}",
        )
    return True


def _split_path(path: Path, number: int, count: int) -> Path:
    match = SPLIT_NAME.match(path.name)
    assert match is not None
    return path.with_name(f"{match['stem']}-{number + 1:05}-of-{count:05}.gguf")


def _open_split(first: Path, number: int, count: int) -> _Part:
    path = _split_path(first, number, count)
    if not path.exists():
        raise ModelFileError(
            f"{path.name} is missing: {first.name} is the first of {count} parts",
            code="model_file_not_found",
            hint="download all parts into one directory",
        )
    part = _Part.open(path)
    metadata = part.header.metadata
    got = (metadata.get_int("split.no"), metadata.get_int("split.count"))
    if got != (number, count):
        raise ModelFileError(f"{path.name}: split.no, split.count are {got}, not {number, count}", code="invalid_split")
    return part


def _check_split_total(parts: list[_Part]) -> None:
    found = sum(len(part.header.tensors) for part in parts)
    total = parts[0].header.metadata.get_int("split.tensors.count", found)
    if total != found:
        raise ModelFileError(
            f"{parts[0].path.name}: split.tensors.count is {total}, the {len(parts)} parts hold {found}",
            code="invalid_split",
        )


def _hash_samples(digest: hashlib._Hash, raw: NDArray[np.uint8]) -> None:
    middle = raw.size // 2
    for start in (0, middle, max(0, raw.size - _SAMPLE_BYTES)):
        digest.update(raw[start : start + _SAMPLE_BYTES].data)

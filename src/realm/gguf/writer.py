"""Write GGUF version 3 files: metadata and tensors whose bytes are stored already. Streams; can split the output."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from realm.core.errors import InvalidRequest
from realm.core.quant import QuantType, row_bytes
from realm.core.texts import Texts
from realm.gguf.dequant import Bytes
from realm.gguf.format import DEFAULT_ALIGNMENT, MAGIC, MAX_SPLITS, NUMERIC_FORMATS, ValueType, align_up

_VERSION = 3


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor to write. `shape` is in numpy order, (rows N, columns K)."""

    name: str
    quant_type: QuantType
    shape: tuple[int, ...]
    data: Bytes | Callable[[], Bytes]
    """The stored bytes, or a function that makes them when their turn comes."""

    @property
    def num_bytes(self) -> int:
        """Bytes in the file, without padding."""
        return int(np.prod(self.shape[:-1], dtype=np.int64)) * row_bytes(self.quant_type, self.shape[-1])


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, object],
    tensors: Sequence[OutputTensor],
    *,
    value_types: Mapping[str, ValueType] | None = None,
    max_part_bytes: int | None = None,
) -> list[Path]:
    """Write a model; a file appears under its name only when it is whole.

    Args:
        path: The file; with `max_part_bytes` parts get ``-00001-of-0000N`` before its suffix if there are several.
        metadata: bool, int, float, str, or lists of one of these. ``general.alignment`` is obeyed.
        tensors: Written in this order.
        value_types: Types of values (of elements, for lists) where the smallest 32-bit type that fits is not wanted;
            pass `GGUFFile.value_types` to copy a file's metadata exactly.
        max_part_bytes: Tensor bytes per part of a split model, at least one tensor in each.

    Returns:
        The files written.

    Raises:
        InvalidRequest: a metadata value that GGUF cannot hold.
    """
    path = Path(path)
    types = dict(value_types or {})
    parts = _split(tensors, max_part_bytes)
    if len(parts) == 1:
        _write_file(path, metadata, types, parts[0], _alignment(metadata))
        return [path]
    if len(parts) > MAX_SPLITS:
        raise InvalidRequest(f"{len(parts)} parts, the limit is {MAX_SPLITS}", param="max_part_bytes")
    types |= {"split.no": ValueType.UINT16, "split.count": ValueType.UINT16, "split.tensors.count": ValueType.INT32}
    paths = []
    for number, part in enumerate(parts):
        split = {"split.no": number, "split.count": len(parts), "split.tensors.count": len(tensors)}
        part_path = path.with_name(f"{path.stem}-{number + 1:05}-of-{len(parts):05}.gguf")
        part_metadata = {**metadata, **split} if number == 0 else split
        _write_file(part_path, part_metadata, types, part, _alignment(part_metadata))
        paths.append(part_path)
    return paths


def _split(tensors: Sequence[OutputTensor], max_part_bytes: int | None) -> list[list[OutputTensor]]:
    parts: list[list[OutputTensor]] = [[]]
    used_bytes = 0
    for tensor in tensors:
        if parts[-1] and max_part_bytes is not None and used_bytes + tensor.num_bytes > max_part_bytes:
            parts.append([])
            used_bytes = 0
        parts[-1].append(tensor)
        used_bytes += tensor.num_bytes
    return parts


def _alignment(metadata: Mapping[str, object]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise InvalidRequest(f"general.alignment must be a power of two, at least 8, got {alignment!r}")
    return alignment


def _write_file(
    path: Path,
    metadata: Mapping[str, object],
    types: Mapping[str, ValueType],
    tensors: Sequence[OutputTensor],
    alignment: int,
) -> None:
    header = _header(metadata, types, tensors, alignment)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(header)
            for tensor in tensors:
                _pad(file, alignment)
                data = tensor.data() if callable(tensor.data) else tensor.data
                assert data.nbytes == tensor.num_bytes, f"{tensor.name}: {data.nbytes} bytes, not {tensor.num_bytes}"
                file.write(np.ascontiguousarray(data).data)
            _pad(file, alignment)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(align_up(file.tell(), alignment) - file.tell()))


def _header(
    metadata: Mapping[str, object], types: Mapping[str, ValueType], tensors: Sequence[OutputTensor], alignment: int
) -> bytes:
    out = [MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    out += [_string(key) + _typed_value(key, value, types.get(key)) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        dims = tuple(reversed(tensor.shape))
        out.append(_string(tensor.name))
        out.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, int(tensor.quant_type), offset))
        offset = align_up(offset + tensor.num_bytes, alignment)
    return b"".join(out)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed_value(key: str, value: object, value_type: ValueType | None) -> bytes:
    if not isinstance(value, list | tuple | Texts):
        value_type = value_type if value_type is not None else _infer(key, [value])
        return struct.pack("<I", value_type) + _values(key, [value], value_type)
    element_type = value_type if value_type is not None else _infer(key, value)
    return struct.pack("<IIQ", ValueType.ARRAY, element_type, len(value)) + _values(key, value, element_type)


def _infer(key: str, values: Sequence[object]) -> ValueType:
    """The type that holds all of `values`: 32 bits wide unless more are needed."""
    if all(isinstance(value, bool) for value in values) and values:
        return ValueType.BOOL
    if all(isinstance(value, str) for value in values):
        return ValueType.STRING
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != len(values):
        raise _not_storable(key, values)
    if any(isinstance(number, float) for number in numbers):
        return ValueType.FLOAT32
    signed = min(numbers) < 0
    if max(numbers) < 2 ** (31 if signed else 32) and min(numbers) >= -(2**31):
        return ValueType.INT32 if signed else ValueType.UINT32
    return ValueType.INT64 if signed else ValueType.UINT64


def _values(key: str, values: Sequence[object], value_type: ValueType) -> bytes:
    if value_type is ValueType.STRING and all(isinstance(value, str) for value in values):
        return b"".join(_string(str(value)) for value in values)
    if value_type is ValueType.BOOL and all(isinstance(value, bool) for value in values):
        return bytes(values)  # type: ignore[arg-type]  # checked to be booleans
    if value_type not in NUMERIC_FORMATS:
        raise _not_storable(key, values)
    try:
        return np.array(values, NUMERIC_FORMATS[value_type]).tobytes()
    except (OverflowError, ValueError, TypeError):
        raise _not_storable(key, values) from None


def _not_storable(key: str, values: Sequence[object]) -> InvalidRequest:
    return InvalidRequest(f"metadata key {key}: GGUF cannot hold {str(list(values))[:80]}", param=key)

"""Parse and check the header of one GGUF file: metadata and tensor table. Touches no tensor data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from realm.gguf.cursor import Buffer, Cursor
from realm.gguf.format import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_ALIGNMENT,
    MAX_DIMS,
    MAX_KEY_BYTES,
    MAX_METADATA_KEYS,
    MAX_TENSOR_NAME_BYTES,
    MAX_TENSORS,
    VERSIONS,
    ValueType,
    align_up,
    tensor_layout,
    tensor_type_name,
)
from realm.gguf.metadata import Metadata


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One row of the tensor table, checked against the file's size."""

    name: str
    type_id: int
    shape: tuple[int, ...]
    """numpy order: rows first, i.e. ggml's dimensions reversed."""
    offset: int
    """From the start of the file."""
    num_bytes: int | None
    """None for a tensor type whose size is not known."""


@dataclass(frozen=True, slots=True)
class Header:
    """Everything before the tensor data."""

    version: int
    metadata: Metadata
    value_types: dict[str, ValueType]
    """Type of each metadata value; the element type for an array."""
    tensors: list[TensorHeader]
    num_bytes: int
    """Bytes of the header without the padding behind it."""
    alignment: int


def parse_header(buffer: Buffer, file_name: str) -> Header:
    """Parse the header at the start of `buffer`, which holds the whole file.

    Raises:
        ModelFileError: not GGUF, an unsupported version or byte order, or anything that is not as the format says.
    """
    cursor = Cursor(buffer, file_name)
    version = _read_version(cursor)
    num_tensors = cursor.count("tensor count", MAX_TENSORS, 0)
    num_keys = cursor.count("metadata count", MAX_METADATA_KEYS, 13)
    metadata, value_types = _read_metadata(cursor, num_keys)
    cursor.need(num_tensors * 32, "tensor table")
    alignment = _alignment(cursor, metadata)
    raw = [_read_tensor(cursor) for _ in range(num_tensors)]
    data_start = align_up(cursor.position, alignment)
    tensors = [_place(cursor, tensor, data_start, alignment, len(buffer)) for tensor in raw]
    _check_distinct(cursor, tensors)
    return Header(version, metadata, value_types, tensors, cursor.position, alignment)


def _read_version(cursor: Cursor) -> int:
    magic = cursor.take(4, "magic")
    if magic != MAGIC:
        raise cursor.error(f"not a GGUF file: it starts with {magic!r}, not {MAGIC!r}", code="not_gguf")
    version = cursor.u32("version")
    if version not in VERSIONS:
        big_endian = version & 0xFFFF == 0 and version >> 24 in (1, *VERSIONS)
        got = "big-endian GGUF" if big_endian else f"GGUF version {version}"
        raise cursor.error(
            f"{got} is not supported, only little-endian versions 2 and 3",
            code="unsupported_gguf_version",
            hint="convert the model again with a current llama.cpp",
        )
    return version


def _read_metadata(cursor: Cursor, num_keys: int) -> tuple[Metadata, dict[str, ValueType]]:
    metadata = Metadata()
    value_types: dict[str, ValueType] = {}
    for _ in range(num_keys):
        key = cursor.string("metadata key", MAX_KEY_BYTES)
        if not key or key in metadata:
            raise cursor.error(f"metadata key {key[:100]!r} is {'duplicated' if key else 'empty'}")
        value_type = cursor.value_type(key[:100])
        if value_type is ValueType.ARRAY:
            value_types[key], metadata[key] = cursor.array(key[:100])
        else:
            value_types[key], metadata[key] = value_type, cursor.value(value_type, key[:100])
    return metadata, value_types


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    alignment = metadata.get_int("general.alignment", DEFAULT_ALIGNMENT)
    if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.error(f"general.alignment must be a power of two between 8 and {MAX_ALIGNMENT}, got {alignment}")
    return alignment


def _read_tensor(cursor: Cursor) -> TensorHeader:
    name = cursor.string("tensor name", MAX_TENSOR_NAME_BYTES)
    num_dims = cursor.u32(f"dimension count of {name}")
    if not name or not 1 <= num_dims <= MAX_DIMS:
        raise cursor.error(f"tensor {name!r} has {num_dims} dimensions, 1 to {MAX_DIMS} and a name are needed")
    dims = [cursor.u64(f"dimensions of {name}") for _ in range(num_dims)]
    if min(dims) < 1 or math.prod(dims) >= 2**63:
        raise cursor.error(
            f"tensor {name} has dimensions {dims}, each must be at least 1 and their product below 2**63"
        )
    type_id = cursor.u32(f"type of {name}")
    return TensorHeader(name, type_id, tuple(reversed(dims)), cursor.u64(f"offset of {name}"), None)


def _place(cursor: Cursor, tensor: TensorHeader, data_start: int, alignment: int, file_bytes: int) -> TensorHeader:
    """Turn the offset into one from the start of the file; check size and place."""
    name, offset = tensor.name, tensor.offset
    if offset % alignment:
        raise cursor.error(f"tensor {name} starts at {offset}, not a multiple of the alignment {alignment}")
    num_bytes = _tensor_bytes(cursor, tensor)
    end = data_start + offset + (num_bytes or 0)
    if end > file_bytes:
        raise cursor.error(
            f"truncated: tensor {name} ends at byte {end}, the file at {file_bytes}",
            code="truncated_model_file",
            hint="download the file again",
        )
    return TensorHeader(name, tensor.type_id, tensor.shape, data_start + offset, num_bytes)


def _tensor_bytes(cursor: Cursor, tensor: TensorHeader) -> int | None:
    layout = tensor_layout(tensor.type_id)
    if layout is None:
        return None
    num_cols = tensor.shape[-1]
    if num_cols % layout.block_elements:
        raise cursor.error(
            f"tensor {tensor.name} has rows of {num_cols} values, "
            f"{tensor_type_name(tensor.type_id)} needs a multiple of {layout.block_elements}"
        )
    return math.prod(tensor.shape) // layout.block_elements * layout.block_bytes


def _check_distinct(cursor: Cursor, tensors: list[TensorHeader]) -> None:
    """No two tensors may share a name or a byte."""
    names: set[str] = set()
    previous: TensorHeader | None = None
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.name in names:
            raise cursor.error(f"tensor {tensor.name} is duplicated")
        names.add(tensor.name)
        if previous is not None and tensor.offset < previous.offset + (previous.num_bytes or 1):
            raise cursor.error(f"tensors {previous.name} and {tensor.name} overlap at byte {tensor.offset}")
        previous = tensor

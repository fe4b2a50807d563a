"""A bounds-checked cursor over the header of a GGUF file. No count from the file is used before it is checked."""

from __future__ import annotations

import mmap
import struct
from typing import TypeAlias

import numpy as np

from realm.core.errors import ModelFileError
from realm.core.texts import Texts
from realm.gguf.format import (
    MAX_ARRAY_DEPTH,
    MAX_ARRAY_ELEMENTS,
    MAX_HEADER_BYTES,
    NUMERIC_FORMATS,
    ValueType,
)

Buffer: TypeAlias = bytes | mmap.mmap

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Cursor:
    """Reads little-endian primitives from `buffer` in order.

    Raises:
        ModelFileError: from every method, when the file ends early or holds what the format does not allow.
    """

    def __init__(self, buffer: Buffer, file_name: str) -> None:
        self._buffer = buffer
        self._end = min(len(buffer), MAX_HEADER_BYTES)
        self._file_name = file_name
        self._array_budget = MAX_ARRAY_ELEMENTS
        self.position = 0

    def error(self, message: str, *, code: str = "invalid_model_file", hint: str | None = None) -> ModelFileError:
        """A ModelFileError that names this file."""
        return ModelFileError(f"{self._file_name}: {message}", code=code, hint=hint)

    def need(self, num_bytes: int, what: str) -> None:
        """Raise unless `num_bytes` more bytes exist."""
        if num_bytes <= self._end - self.position:
            return
        if self._end < len(self._buffer):
            raise self.error(
                f"{what} at byte {self.position} ends past {MAX_HEADER_BYTES} bytes, the largest header allowed",
                code="model_header_too_large",
            )
        raise self.error(
            f"truncated: {what} at byte {self.position} needs {num_bytes} bytes, {self._end - self.position} are left",
            code="truncated_model_file",
            hint="download the file again",
        )

    def take(self, num_bytes: int, what: str) -> bytes:
        """The next `num_bytes` bytes."""
        self.need(num_bytes, what)
        start = self.position
        self.position += num_bytes
        return self._buffer[start : self.position]

    def u32(self, what: str) -> int:
        """An unsigned 32-bit integer."""
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        """An unsigned 64-bit integer."""
        return int(_U64.unpack(self.take(8, what))[0])

    def count(self, what: str, limit: int, min_bytes_each: int) -> int:
        """A 64-bit count of things that take at least `min_bytes_each` bytes, at most `limit`."""
        count = self.u64(what)
        if count > limit:
            raise self.error(f"{what} is {count}, the limit is {limit}")
        self.need(count * min_bytes_each, what)
        return count

    def string(self, what: str, limit: int | None = None) -> str:
        """A length-prefixed UTF-8 string of at most `limit` bytes."""
        length = self.u64(f"length of {what}")
        if limit is not None and length > limit:
            raise self.error(f"{what} is {length} bytes long, the limit is {limit}")
        return self._decode(self.take(length, what), what)

    def value_type(self, what: str) -> ValueType:
        """A metadata value type id."""
        type_id = self.u32(f"type of {what}")
        if type_id > ValueType.FLOAT64:
            raise self.error(f"{what} has unknown value type {type_id}, the highest known is {int(ValueType.FLOAT64)}")
        return ValueType(type_id)

    def value(self, value_type: ValueType, what: str) -> object:
        """One scalar or string."""
        if value_type is ValueType.STRING:
            return self.string(what)
        if value_type is ValueType.BOOL:
            return self._bools(1, what)[0]
        return self._numbers(value_type, 1, what)[0]

    def array(self, what: str, depth: int = 1) -> tuple[ValueType, list[object] | Texts]:
        """An array and the type of its elements; arrays may be nested up to `MAX_ARRAY_DEPTH`."""
        if depth > MAX_ARRAY_DEPTH:
            raise self.error(f"{what}: arrays nested deeper than {MAX_ARRAY_DEPTH}")
        element_type = self.value_type(what)
        count = self.count(f"length of array {what}", self._array_budget, _MIN_BYTES[element_type])
        self._array_budget -= count
        if element_type is ValueType.STRING:
            return element_type, self._strings(count, what)
        if element_type is ValueType.ARRAY:
            return element_type, [self.array(what, depth + 1)[1] for _ in range(count)]
        if element_type is ValueType.BOOL:
            return element_type, self._bools(count, what)
        return element_type, self._numbers(element_type, count, what)

    def _numbers(self, value_type: ValueType, count: int, what: str) -> list[object]:
        dtype = np.dtype(NUMERIC_FORMATS[value_type])
        numbers: list[object] = np.frombuffer(self.take(count * dtype.itemsize, what), dtype).tolist()
        return numbers

    def _bools(self, count: int, what: str) -> list[object]:
        raw = self.take(count, what)
        if raw.strip(b"\0\1"):
            raise self.error(f"{what} holds a boolean that is neither 0 nor 1")
        return [byte == 1 for byte in raw]

    def _strings(self, count: int, what: str) -> Texts:
        # The hot loop of opening a file: vocabularies hold 2**18 strings, so no calls into this class per string.
        buffer, end, unpack = self._buffer, self._end, _U64.unpack_from
        strings = Texts()
        position = self.position
        try:
            for _ in range(count):
                start = position + 8
                position = start + unpack(buffer, position)[0]
                if position > end:
                    break
                strings.append_utf8(buffer[start:position])
        except struct.error:
            position = end + 1
        except UnicodeDecodeError as error:
            raise self._not_utf8(f"{what}[{len(strings)}]", error) from None
        if position > end:
            self.position = end
            self.need(1, f"{what}[{len(strings)}]")
        self.position = position
        return strings

    def _decode(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self._not_utf8(what, error) from None

    def _not_utf8(self, what: str, error: UnicodeDecodeError) -> ModelFileError:
        return self.error(f"{what} is not UTF-8: {error.reason} at its byte {error.start}")


_MIN_BYTES: dict[ValueType, int] = {
    **{value_type: np.dtype(fmt).itemsize for value_type, fmt in NUMERIC_FORMATS.items()},
    ValueType.BOOL: 1,
    ValueType.STRING: 8,
    ValueType.ARRAY: 12,
}

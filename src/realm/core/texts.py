"""Many short texts in little memory: the tokens and merges of a vocabulary."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload


class Texts(Sequence[str]):
    """Texts in one UTF-8 buffer: a seventh of the memory that a list of str takes. Equal to a list of the same texts.

    Raises:
        UnicodeEncodeError: a text holds a lone surrogate.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._data = bytearray()
        self._ends = array("Q", [0])
        for text in texts:
            self._append(text.encode())

    def append_utf8(self, raw: bytes) -> None:
        """Add a text at the end; UnicodeDecodeError if `raw` is no UTF-8."""
        raw.decode()
        self._append(raw)

    def _append(self, raw: bytes) -> None:
        self._data += raw
        self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._data[self._ends[index] : self._ends[index + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        return (self._data[start:end].decode() for start, end in pairwise(self._ends))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return (self._data, self._ends) == (other._data, other._ends)
        return isinstance(other, list) and list(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Texts({list(self)!r})"

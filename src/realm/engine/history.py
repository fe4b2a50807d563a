"""Which tokens a request has seen, for its penalties."""

from __future__ import annotations

import numpy as np

from realm.core.types import Int32Array, SamplingParams


class History:
    """Distinct tokens with their count in the output, in arrays that grow with the request."""

    __slots__ = ("_counts", "_ids", "_index", "_size")

    def __init__(self, prompt: tuple[int, ...] = ()) -> None:
        distinct = dict.fromkeys(prompt)
        self._index = {token: i for i, token in enumerate(distinct)}
        self._size = len(distinct)
        self._ids = np.zeros(self._size + 64, np.int32)
        self._ids[: self._size] = list(distinct)
        self._counts = np.zeros(self._size + 64, np.int32)

    @classmethod
    def of(cls, params: SamplingParams, prompt: tuple[int, ...]) -> History | None:
        """The history that these parameters need: with the prompt, of the output only, or none."""
        if params.repetition_penalty != 1.0:
            return cls(prompt)
        if params.presence_penalty or params.frequency_penalty:
            return cls()
        return None

    @property
    def ids(self) -> Int32Array:
        """Distinct tokens [N]; a view."""
        return self._ids[: self._size]

    @property
    def counts(self) -> Int32Array:
        """Their counts in the output [N]; a view."""
        return self._counts[: self._size]

    def add(self, token: int) -> None:
        """Count one output token."""
        i = self._index.get(token)
        if i is None:
            i = self._size
            if i == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._index[token] = i
            self._ids[i] = token
            self._counts[i] = 0
            self._size += 1
        self._counts[i] += 1

    def with_drafts(self, drafts: list[int]) -> list[tuple[Int32Array, Int32Array]]:
        """(ids, counts) at each of the `len(drafts) + 1` positions, as if the drafts before it were output."""
        if not drafts:
            return [(self.ids, self.counts)]
        states = [(self.ids.copy(), self.counts.copy())]
        size = self._size
        for token in drafts:
            self.add(token)
            states.append((self.ids.copy(), self.counts.copy()))
        for token in drafts:
            self._counts[self._index[token]] -= 1
        for token in self._ids[size : self._size].tolist():
            del self._index[token]
        self._size = size
        return states

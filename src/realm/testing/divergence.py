"""How far one model's predictions are from another's."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from realm.core.types import Float32Array

_ROWS_AT_ONCE = 64  # float64 copies of wide vocabularies are large


@dataclass
class Divergence:
    """Sums over positions; feed it with `add`, in as many pieces as there are."""

    num_positions: int = 0
    max_relative_error: float = 0.0
    """Largest over positions of max |actual - expected| / max |expected|, each over the vocabulary."""
    _kl_sum: float = field(default=0.0, repr=False)
    _same_top: int = field(default=0, repr=False)

    @property
    def mean_kl(self) -> float:
        """Mean over positions of KL(expected || actual) in nats."""
        return self._kl_sum / self.num_positions

    @property
    def top1_agreement(self) -> float:
        """Share of positions at which both have the same likeliest token."""
        return self._same_top / self.num_positions

    def add(self, actual: Float32Array, expected: Float32Array) -> None:
        """Count the positions of two sets of logits [S, V]."""
        assert actual.shape == expected.shape
        for start in range(0, len(actual), _ROWS_AT_ONCE):
            self._add(actual[start : start + _ROWS_AT_ONCE], expected[start : start + _ROWS_AT_ONCE])

    def _add(self, actual: Float32Array, expected: Float32Array) -> None:
        error = np.abs(actual - expected).max(axis=1) / np.abs(expected).max(axis=1)
        # A NaN must not hide behind max().
        self.max_relative_error = float(np.maximum(self.max_relative_error, error.max()))
        p, q = log_softmax(expected), log_softmax(actual)
        self._kl_sum += float((np.exp(p) * (p - q)).sum())
        self._same_top += int((actual.argmax(axis=1) == expected.argmax(axis=1)).sum())
        self.num_positions += len(actual)


def log_softmax(logits: Float32Array) -> NDArray[np.float64]:
    """Natural log-probabilities [S, V]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result

"""Counts and histograms of one engine loop: written by its thread only, read by anyone."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
BETWEEN_TOKENS_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
REQUEST_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TOKENS_PER_STEP = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Histogram:
    """Fixed buckets, a sum and a count: a tenth of the cost of a Prometheus object, which matters once a token."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value in the first bucket whose upper bound is not below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, values at or below it), as Prometheus wants them."""
        rows, seen = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            rows.append((bound, float(seen)))
        return rows


@dataclass(slots=True)
class LoopStats:
    """Since the loop began."""

    requests: Counter[str] = field(default_factory=Counter)
    """Ended requests by outcome: a finish reason, or the code of the error."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    step_seconds: Histogram = field(default_factory=lambda: Histogram(STEP_SECONDS))
    batch_size: Histogram = field(default_factory=lambda: Histogram(BATCH_SIZES))
    tokens_per_step: Histogram = field(default_factory=lambda: Histogram(TOKENS_PER_STEP))
    """Of one request; more than 1 where drafts were right."""
    first_token_seconds: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_SECONDS))
    between_tokens_seconds: Histogram = field(default_factory=lambda: Histogram(BETWEEN_TOKENS_SECONDS))
    request_seconds: Histogram = field(default_factory=lambda: Histogram(REQUEST_SECONDS))

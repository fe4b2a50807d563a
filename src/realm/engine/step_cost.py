"""What a step of some rows takes, from the steps that were timed."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate, pairwise

MAX_OUTLIER = 2.0
"""A step that takes longer than this many times the usual was disturbed: it counts as this."""

# Until steps of different sizes were timed: a row more is taken to cost this part of a step's fixed cost.
_PRIOR_ROW_COST = 0.05
_HOPE = 0.7  # rows of sizes not yet timed may cost this part of what others do: kernels like large tiles
_SMOOTHING = 0.1
# An interrupted step says little: what is far above the average counts as this part of it more.
_MAX_RISE = 0.2
_LEAST_WEIGHT = 0.08  # of the latest step in the average of its size
# A size that was timed once, and found to be dear, is tried again soon: something may have interrupted that step.
_FIRST_PATIENCE_STEPS, _MAX_PATIENCE_STEPS, _PATIENCE_GROWTH = 32, 2048, 4
_FIRST_STEPS = 3  # of a size: the quickest counts, as the first ones touch new memory
_SORT_STEPS, _STALE_STEPS, _MAX_BASE_AGE_STEPS = 16, 32, 100
_MIN_CHANGE = 0.02


@dataclass(slots=True)
class _Timing:
    """Averages over the steps of one size class."""

    num_rows: float
    seconds: float
    num_steps: int = 0
    last_step: int = 0
    known_seconds: float = 0.0
    """As the estimates have it."""
    patience_steps: int = _FIRST_PATIENCE_STEPS // _PATIENCE_GROWTH
    """Steps for which it counts, once the size isn't timed any more: longer, the more often it was."""


class StepCost:
    """Seconds that a step takes, by its number of rows, from those that were timed.

    Sizes not timed lately are interpolated, or extrapolated with `_PRIOR_ROW_COST`: hopefully, so that they get tried.
    """

    def __init__(self) -> None:
        self._timings: dict[int, _Timing] = {}  # by size class
        self._num_steps = 0
        self._sizes: list[float] = []
        self._levels: list[float] = []  # by place in `_sizes`: the most that this or a smaller size takes
        self._cache: dict[int, float] = {}
        self.version = 0
        """Changes when estimates do."""

    def observe(self, num_rows: int, seconds: float) -> None:
        """One step of `num_rows` rows took `seconds`."""
        self._num_steps += 1
        size = _size_class(num_rows)
        timing = self._timings.get(size)
        if timing is None:
            usual = self.seconds(num_rows) if self._sizes else seconds
            timing = self._timings[size] = _Timing(num_rows, min(seconds, MAX_OUTLIER * usual))
        was_forgotten = self._num_steps - timing.last_step > timing.patience_steps
        timing.last_step = self._num_steps
        timing.num_rows += _SMOOTHING * (num_rows - timing.num_rows)
        timing.num_steps += 1
        change = min(seconds - timing.seconds, _MAX_RISE * timing.seconds)
        if timing.num_steps <= _FIRST_STEPS:
            timing.seconds += min(change, 0.0)
        else:
            timing.seconds += change * max(_LEAST_WEIGHT, 1.0 / timing.num_steps)
        timing.patience_steps = min(_PATIENCE_GROWTH * timing.patience_steps, _MAX_PATIENCE_STEPS)
        # Sorting anew at each step would cost more than it tells.
        is_changed = abs(timing.seconds - timing.known_seconds) > _MIN_CHANGE * timing.known_seconds
        if is_changed or was_forgotten or self._num_steps % _SORT_STEPS == 0:
            self._sort()

    def _sort(self) -> None:
        now = self._num_steps
        timings = [t for _, t in sorted(self._timings.items()) if now - t.last_step <= t.patience_steps]
        for smaller, larger in reversed(list(pairwise(timings))):
            # A larger size that is quicker, and was timed later, tells that everything has become quicker.
            if smaller.seconds > larger.seconds and now - smaller.last_step > _STALE_STEPS > now - larger.last_step:
                smaller.seconds = larger.seconds
        for timing in timings:
            timing.known_seconds = timing.seconds
        self._sizes = [timing.num_rows for timing in timings]
        self._levels = list(accumulate((timing.seconds for timing in timings), max))
        self._cache.clear()
        self.version += 1

    def is_stale(self, num_rows: int) -> bool:
        """Whether steps of this size have not been timed for long, or never."""
        timing = self._timings.get(_size_class(num_rows))
        return timing is None or self._num_steps - timing.last_step > _MAX_BASE_AGE_STEPS

    @property
    def measured(self) -> bool:
        """Whether any step was timed."""
        return bool(self._sizes)

    def seconds(self, num_rows: int) -> float:
        """Expected seconds of a step; in arbitrary units before the first observation. Never falls with more rows."""
        cached = self._cache.get(num_rows)
        if cached is None:
            cached = self._cache[num_rows] = self._estimate(num_rows)
        return cached

    def cheapest_row(self, num_rows: int, num_more: int) -> float:
        """Seconds for each row beyond `num_rows`, with as many of `num_more` as make them cheapest."""
        most = num_rows + num_more
        between = [end for size in self._sizes for end in (int(size), int(size) + 1) if num_rows < end < most]
        least = self.seconds(num_rows)
        # Estimates are straight between sizes, so an extreme is at one of these.
        return min((self.seconds(end) - least) / (end - num_rows) for end in (num_rows + 1, *between, most))

    def _estimate(self, num_rows: int) -> float:
        sizes = self._sizes
        if not sizes:
            return 1.0 + _PRIOR_ROW_COST * num_rows
        index = bisect_left(sizes, num_rows)
        if index == 0 or index == len(sizes):
            nearest = min(index, len(sizes) - 1)
            row_seconds = self._levels[nearest] * _PRIOR_ROW_COST / (1.0 + _PRIOR_ROW_COST * sizes[nearest])
            if index:
                row_seconds = max(
                    row_seconds, _HOPE * (self._levels[-1] - self._levels[0]) / max(1.0, sizes[-1] - sizes[0])
                )
            return self._levels[nearest] + row_seconds * (num_rows - sizes[nearest])
        below, above = sizes[index - 1], sizes[index]
        part = (num_rows - below) / (above - below)
        return self._levels[index - 1] * (1.0 - part) + self._levels[index] * part


def _size_class(num_rows: int) -> int:
    """Exact up to 16 rows, then to 4 significant bits: kernels work in tiles, so small sizes differ abruptly."""
    if num_rows <= 16:
        return num_rows
    step = 1 << (num_rows.bit_length() - 4)
    return round(num_rows / step) * step

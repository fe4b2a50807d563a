"""How long a draft should be: as long as it makes the whole step yield more tokens per second, down to none.

A draft token that is right saves a step and one that is wrong costs a row. What a row costs depends on how full the
step is already (not much while weights are the bottleneck, its full share later), so it is measured, not assumed.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

# Until steps of different sizes were timed: a row more is taken to cost this part of a step's fixed cost.
_PRIOR_ROW_COST = 0.05
_SMOOTHING = 0.1
# What disturbs a step only ever makes it slower: averages fall quickly and rise slowly, towards an undisturbed step.
_FALL, _RISE = 0.3, 0.05
_MAX_OUTLIER = 2.0
# A size that was timed once, and found to be dear, is tried again soon: something may have interrupted that step.
_FIRST_PATIENCE_STEPS, _MAX_PATIENCE_STEPS = 16, 512
_MIN_CHANGE = 0.01
_MIN_GAIN = 1.03  # estimates are noisy, and guessing has a cost of its own
_MIN_CHANCE = 0.02


@dataclass(slots=True)
class _Timing:
    """Averages over the steps of one size class."""

    num_rows: float
    seconds: float
    last_step: int = 0
    known_seconds: float = 0.0
    """As the estimates have it."""
    patience_steps: int = _FIRST_PATIENCE_STEPS
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

    def observe(self, num_rows: int, seconds: float) -> None:
        """One step of `num_rows` rows took `seconds`."""
        self._num_steps += 1
        size = _size_class(num_rows)
        timing = self._timings.get(size)
        if timing is None:
            usual = self.seconds(num_rows) if self._sizes else seconds
            timing = self._timings[size] = _Timing(num_rows, min(seconds, _MAX_OUTLIER * usual))
        was_forgotten = self._num_steps - timing.last_step > timing.patience_steps
        timing.last_step = self._num_steps
        timing.num_rows += _SMOOTHING * (num_rows - timing.num_rows)
        change = min(seconds, _MAX_OUTLIER * timing.seconds) - timing.seconds
        timing.seconds += change * (_FALL if change < 0.0 else _RISE)
        timing.patience_steps = min(2 * timing.patience_steps, _MAX_PATIENCE_STEPS)
        # Sorting anew at each step would cost more than it tells.
        is_changed = abs(timing.seconds - timing.known_seconds) > _MIN_CHANGE * timing.known_seconds
        if is_changed or was_forgotten or self._num_steps % _FIRST_PATIENCE_STEPS == 0:
            self._sort()

    def _sort(self) -> None:
        now = self._num_steps
        timings = [t for _, t in sorted(self._timings.items()) if now - t.last_step <= t.patience_steps]
        for timing in timings:
            timing.known_seconds = timing.seconds
        self._sizes = [timing.num_rows for timing in timings]
        self._levels = list(accumulate((timing.seconds for timing in timings), max))
        self._cache.clear()

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

    def _estimate(self, num_rows: int) -> float:
        sizes = self._sizes
        if not sizes:
            return 1.0 + _PRIOR_ROW_COST * num_rows
        index = bisect_left(sizes, num_rows)
        if index == 0 or index == len(sizes):
            nearest = min(index, len(sizes) - 1)
            growth = (1.0 + _PRIOR_ROW_COST * num_rows) / (1.0 + _PRIOR_ROW_COST * sizes[nearest])
            return self._levels[nearest] * growth
        below, above = sizes[index - 1], sizes[index]
        part = (num_rows - below) / (above - below)
        return self._levels[index - 1] * (1.0 - part) + self._levels[index] * part


def _size_class(num_rows: int) -> int:
    """Exact up to 16 rows, then to 4 significant bits: kernels work in tiles, so small sizes differ abruptly."""
    if num_rows <= 16:
        return num_rows
    step = 1 << (num_rows.bit_length() - 4)
    return round(num_rows / step) * step


class AcceptanceRate:
    """How often a drafted token was right, the latest counting most.

    Args:
        prior: The rate to start from.
        weight: Observations that the prior counts for.
        memory: Observations after which an old one counts 1/e.
    """

    __slots__ = ("_decay", "_hits", "_trials")

    def __init__(self, prior: float, weight: float = 4.0, memory: float = 50.0) -> None:
        self._hits = prior * weight
        self._trials = weight
        self._decay = 1.0 - 1.0 / memory

    @property
    def value(self) -> float:
        """The rate, between 0 and 1."""
        return self._hits / self._trials

    def observe(self, num_right: int, num_wrong: int) -> None:
        """`num_right` tokens in a row were right; `num_wrong` (0 or 1) ended the row."""
        decay: float = self._decay ** (num_right + num_wrong)
        self._hits = self._hits * decay + num_right
        self._trials = self._trials * decay + num_right + num_wrong


class DraftLength:
    """Chooses draft lengths within one step after another.

    Call `begin_step` with what the step holds without drafts, `choose` for each request in turn (each choice counts as
    part of the step for the next), then `end_step`.

    Args:
        max_draft_tokens: Longest draft.
    """

    def __init__(self, max_draft_tokens: int) -> None:
        self.cost = StepCost()
        self._max_draft_tokens = max_draft_tokens
        self._num_rows = 1
        self._num_tokens = 1.0
        self._num_choices = 0
        self._usual_choices = 0.0
        self.hopeful = True
        """Whether drafts that are always right would pay in this step; if not, making guesses is a waste."""
        self.rival = 0.0
        """How often another source, which a request without a draft goes to, was right lately; 0 if it is silent."""

    def begin_step(self, num_rows: int, num_tokens: float) -> None:
        """A step has `num_rows` rows without drafts, which will yield `num_tokens` (one for each request decoding)."""
        self._num_rows = num_rows
        self._num_tokens = num_tokens
        self._usual_choices += _SMOOTHING * (self._num_choices - self._usual_choices)
        self._num_choices = 0
        self.hopeful = any(self.choose(1.0, num_drafts) for num_drafts in (1, self._max_draft_tokens))
        self._num_rows, self._num_tokens, self._num_choices = num_rows, num_tokens, 0

    def choose(self, acceptance: float, max_tokens: int) -> int:
        """Draft tokens for one request of the step, 0 to `max_tokens`.

        Args:
            acceptance: Probability that a draft token is right, given that those before it are.
            max_tokens: Tokens that could be drafted.
        """
        # Those still to come will want rows too: look for what is best if they all choose the same.
        num_equal = max(1, round(self._usual_choices) - self._num_choices)
        self._num_choices += 1
        best, best_tokens = 0, 0.0
        threshold = self._num_tokens / self.cost.seconds(self._num_rows) * _MIN_GAIN
        right, gained = 1.0, 0.0
        for length in range(1, min(max_tokens, self._max_draft_tokens) + 1):
            right *= acceptance
            if right < _MIN_CHANCE:
                break
            gained += right
            num_drafts = num_equal * length
            speed = (self._num_tokens + num_equal * gained) / self.cost.seconds(self._num_rows + num_drafts)
            if speed > threshold:
                best, best_tokens, threshold = length, gained, speed
        self._num_rows += best
        self._num_tokens += best_tokens
        return best

    def speed(self, num_drafts: int = 0, num_right: float = 0.0, draft_seconds: float = 0.0) -> float:
        """Tokens per second of the step as planned so far, with `num_drafts` more rows of which `num_right` are right.

        `draft_seconds` is what these drafts cost.
        """
        return (self._num_tokens + num_right) / (self.cost.seconds(self._num_rows + num_drafts) + draft_seconds)

    def row_seconds(self, num_rows: int) -> float:
        """What each of `num_rows` more rows would cost."""
        return (self.cost.seconds(self._num_rows + num_rows) - self.cost.seconds(self._num_rows)) / num_rows

    @property
    def step_seconds(self) -> float:
        """What the step as planned so far takes."""
        return self.cost.seconds(self._num_rows)

    def end_step(self, num_rows: int, seconds: float) -> None:
        """The step had `num_rows` rows, drafts included, and took `seconds`.

        Leave steps out that held prompts: rows that aren't judged cost less than drafts do.
        """
        self.cost.observe(num_rows, seconds)


class Probing:
    """When to draft although it doesn't seem to pay, to notice a change: whenever it costs a small share of the time.

    Args:
        share: Of all time that may go into probes.
    """

    __slots__ = ("_saved_seconds", "_share")

    def __init__(self, share: float = 0.015) -> None:
        self._share = share
        self._saved_seconds = 0.0

    def due(self, step_seconds: float, probe_seconds: float) -> bool:
        """Called once for each step without a draft: whether to spend `probe_seconds` in it."""
        self._saved_seconds = min(self._saved_seconds + self._share * step_seconds, probe_seconds)
        if self._saved_seconds < probe_seconds:
            return False
        self._saved_seconds = 0.0
        return True

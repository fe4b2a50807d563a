"""How long a draft should be: as long as it makes the whole step yield more tokens per second, down to none.

A draft token that is right saves a step and one that is wrong costs a row. What a row costs depends on how full the
step is already (not much while weights are the bottleneck, its full share later), so it is measured, not assumed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate, pairwise

# Until steps of different sizes were timed: a row more is taken to cost this part of a step's fixed cost.
_PRIOR_ROW_COST = 0.05
_HOPE = 0.7  # rows of sizes not yet timed may cost this part of what others do: kernels like large tiles
_SMOOTHING = 0.1
# An interrupted step says little: what is far above the average counts as this part of it more.
_MAX_RISE = 0.2
_LEAST_WEIGHT = 0.08  # of the latest step in the average of its size
_MAX_OUTLIER = 2.0
# A size that was timed once, and found to be dear, is tried again soon: something may have interrupted that step.
_FIRST_PATIENCE_STEPS, _MAX_PATIENCE_STEPS, _PATIENCE_GROWTH = 32, 2048, 4
_SORT_STEPS, _STALE_STEPS, _MAX_BASE_AGE_STEPS = 16, 32, 100
_MIN_CHANGE = 0.02
_MIN_GAIN = 1.03  # estimates are noisy, and guessing has a cost of its own
_MAX_BIAS = 1.5
_FORGIVENESS = 0.01
_MIN_CHANCE, _HIGHEST_CHANCE = 0.02, 0.92


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
            timing = self._timings[size] = _Timing(num_rows, min(seconds, _MAX_OUTLIER * usual))
        was_forgotten = self._num_steps - timing.last_step > timing.patience_steps
        timing.last_step = self._num_steps
        timing.num_rows += _SMOOTHING * (num_rows - timing.num_rows)
        timing.num_steps += 1
        change = min(seconds - timing.seconds, _MAX_RISE * timing.seconds)
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


class Bias:
    """How what came compares with what was expected, the latest counting most; 1 until something was expected.

    Choosing the best of many estimates picks those that are too good.

    Args:
        prior: What counts as having come as expected.
        memory: Of what was expected, after how much an old part counts 1/e.
    """

    __slots__ = ("_came", "_expected", "_memory", "_prior")

    def __init__(self, prior: float, memory: float) -> None:
        self._prior = self._expected = self._came = prior
        self._memory = memory

    @property
    def value(self) -> float:
        """What came, for each that was expected."""
        return self._came / self._expected

    def observe(self, came: float, expected: float) -> None:
        """In one step."""
        decay = math.exp(-expected / self._memory)
        self._came = self._came * decay + came
        self._expected = self._expected * decay + expected

    def forgive(self) -> None:
        """Nothing was expected, perhaps because of old mistakes: forget a bit of them."""
        self._came += (self._prior - self._came) * _FORGIVENESS
        self._expected += (self._prior - self._expected) * _FORGIVENESS


class DraftLength:
    """Chooses draft lengths within one step after another.

    Call `begin_step` with what the step holds without drafts, `choose` with the requests that have guesses, then
    `end_step`.

    Args:
        max_draft_tokens: Longest draft.
    """

    def __init__(self, max_draft_tokens: int) -> None:
        self.cost = StepCost()
        self._max_draft_tokens = max_draft_tokens
        self._base_rows = self._num_rows = 1
        self._base_tokens = self._num_tokens = 1.0
        self._is_planned = False
        self._seconds_bias = Bias(prior=10.0, memory=50.0)  # of what drafts add to a step, in steps
        self._least_chances: dict[tuple[int, float], float] = {}  # by rows and tokens of a step
        self._version = 0
        self._least_chance = 0.0  # where no token is likelier than this, none is worth its row
        self.rival = 0.0
        """How often another source, which a request without a draft goes to, was right lately; 0 if it is silent."""

    def begin_step(self, num_rows: int, num_tokens: float) -> None:
        """A step has `num_rows` rows without drafts, which will yield `num_tokens` (one for each request decoding)."""
        self._base_rows = self._num_rows = num_rows
        self._base_tokens = self._num_tokens = num_tokens
        self._is_planned = True
        if self._version != self.cost.version:
            self._version = self.cost.version
            self._least_chances.clear()
        key = (num_rows, num_tokens)
        if key not in self._least_chances:
            num_more = max(1, round(num_tokens)) * self._max_draft_tokens
            seconds = self.cost.cheapest_row(num_rows, num_more)
            self._least_chances[key] = seconds * num_tokens / self.cost.seconds(num_rows)
        self._least_chance = self._least_chances[key]

    @property
    def hopeful(self) -> bool:
        """Whether drafts that are nearly always right would pay in this step; if not, making guesses is a waste."""
        return self._least_chance < _HIGHEST_CHANCE

    def choose(self, rates: list[float], limits: list[int], trust: float = 1.0) -> tuple[list[int], float]:
        """Draft tokens for each of some requests of the step: those together that make it yield most per second.

        Args:
            rates: Probability of each that a draft token is right, given that those before it are.
            limits: Tokens that could be drafted.
            trust: Part of the drafts thought to be right that turned out so.

        Returns:
            The lengths, and how many tokens they should gain if all trust were deserved.
        """
        price = max(1.0, self._seconds_bias.value)
        if trust * max(rates, default=0.0) < self._least_chance * price:
            return [0] * len(rates), 0.0
        chances: list[tuple[float, int]] = []
        for index, (rate, limit) in enumerate(zip(rates, limits, strict=True)):
            chance = trust
            for _ in range(min(limit, self._max_draft_tokens)):
                chance *= rate
                if chance < _MIN_CHANCE:
                    break
                chances.append((chance, index))
        chances.sort(reverse=True)
        rows, cost = self._num_rows, self.cost.seconds
        seconds = cost(rows)
        best, best_tokens, tokens = 0, self._num_tokens, self._num_tokens
        threshold = tokens / seconds * _MIN_GAIN
        for size, (chance, _) in enumerate(chances, 1):
            tokens += chance
            speed = tokens / (seconds + (cost(rows + size) - seconds) * price)
            if speed > threshold:
                best, best_tokens, threshold = size, tokens, speed
        lengths = [0] * len(rates)
        for _, index in chances[:best]:
            lengths[index] += 1
        expected = (best_tokens - self._num_tokens) / trust
        self._num_rows += best
        self._num_tokens = best_tokens
        return lengths, expected

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

    def end_step(self, num_rows: int, seconds: float) -> float:
        """The step had `num_rows` rows, drafts included, and took `seconds`.

        Leave steps out that held prompts: rows that aren't judged cost less than drafts do.

        Returns:
            Seconds that drafts added to it.
        """
        added = 0.0
        if self._is_planned and num_rows > self._base_rows and self.cost.measured:
            without = self.cost.seconds(self._base_rows)
            expected = self.cost.seconds(num_rows) - without
            added = min(seconds, _MAX_OUTLIER * (without + expected)) - without
            counted = min(added, _MAX_BIAS * expected)  # the first step of a size touches new memory
            self._seconds_bias.observe(counted / without, expected / without)
        else:
            self._seconds_bias.forgive()
        self._is_planned = False
        self.cost.observe(num_rows, seconds)
        return added

    @property
    def token_seconds(self) -> float:
        """What a token of the step takes without drafts."""
        return self.cost.seconds(self._base_rows) / self._base_tokens

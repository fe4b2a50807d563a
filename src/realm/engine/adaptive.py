"""How long a draft should be: as long as it makes the whole step yield more tokens per second, down to none.

A draft token that is right saves a step and one that is wrong costs a row. What a row costs depends on how full the
step is already (not much while weights are the bottleneck, its full share later), so it is measured, not assumed.
"""

from __future__ import annotations

import math

from realm.engine.step_cost import MAX_OUTLIER, StepCost

_MIN_GAIN = 1.005  # estimates are noisy
_MAX_BIAS = 1.5
_FORGIVENESS = 0.01
_MIN_CHANCE, _HIGHEST_CHANCE = 0.02, 0.92
_MANY_REQUESTS = 4


class Bias:
    """How what came compares with what was expected, the latest counting most; 1 until something was expected.

    Choosing what looks best picks estimates that are too good.

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
        self._sunk_seconds = 0.0  # of prompts: they take it anyway, and tokens of others aren't worth more for that
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
        num_judged = max(1, round(num_tokens))
        self._sunk_seconds = self.cost.seconds(num_rows) - self.cost.seconds(min(num_rows, num_judged))
        if self._version != self.cost.version:
            self._version = self.cost.version
            self._least_chances.clear()
        key = (num_rows, num_tokens)
        if key not in self._least_chances:
            num_more = num_judged * self._max_draft_tokens
            seconds = self.cost.cheapest_row(num_rows, num_more)
            self._least_chances[key] = seconds * num_tokens / (self.cost.seconds(num_rows) - self._sunk_seconds)
        self._least_chance = self._least_chances[key]

    @property
    def hopeful(self) -> bool:
        """Whether drafts that are nearly always right would pay in this step; if not, making guesses is a waste."""
        return self._least_chance < _HIGHEST_CHANCE

    def choose(self, chances: list[list[float]]) -> list[int]:
        """Draft tokens for each of some requests of the step: those together that make it yield most per second.

        Args:
            chances: Of each, the probability of each token of its guess that this and all before it are right.

        Returns:
            The lengths.
        """
        lengths = [0] * len(chances)
        price = max(1.0, self._seconds_bias.value)
        if max([row[0] for row in chances if row], default=0.0) < self._least_chance * price:
            return lengths
        rows, seconds_of = self._num_rows, self.cost.seconds
        planned = seconds_of(rows)
        without = planned - self._sunk_seconds
        likeliest = self._worth_considering(chances, without / self._num_tokens, price)
        likeliest.sort(reverse=True)
        best, best_tokens, tokens = 0, self._num_tokens, self._num_tokens
        threshold = tokens / without * _MIN_GAIN
        for size, (chance, _) in enumerate(likeliest, 1):
            tokens += chance
            speed = tokens / (without + (seconds_of(rows + size) - planned) * price)
            if speed > threshold:
                best, best_tokens, threshold = size, tokens, speed
        for _, index in likeliest[:best]:
            lengths[index] += 1
        self._num_rows += best
        self._num_tokens = best_tokens
        return lengths

    def _worth_considering(
        self, chances: list[list[float]], token_seconds: float, price: float
    ) -> list[tuple[float, int]]:
        """Chances, and whose they are. Of a few requests all, as rows of one tile may cost nothing.

        In larger batches those that make the request's own tokens come faster, if it pays its part of the step
        without drafts, `token_seconds`, and for rows what the cheapest cost. A token not drafted is another step's:
        that others gain little in this one makes it worth no more.
        """
        row_seconds = self._least_chance * token_seconds * price if self._num_tokens >= _MANY_REQUESTS else 0.0
        found: list[tuple[float, int]] = []
        for index, row in enumerate(chances):
            tokens, seconds, speed = 1.0, token_seconds, 1.0 / token_seconds
            for chance in row[: self._max_draft_tokens]:
                if chance < _MIN_CHANCE:
                    break
                tokens += chance
                seconds += row_seconds
                if tokens > speed * seconds:
                    speed = tokens / seconds
                elif chance < row_seconds * speed:
                    break
                found.append((chance, index))
        return found

    def speed(self, num_drafts: int = 0, num_right: float = 0.0, draft_seconds: float = 0.0) -> float:
        """Tokens per second of the step as planned so far, with `num_drafts` more rows of which `num_right` are right.

        `draft_seconds` is what these drafts cost.
        """
        seconds = self.cost.seconds(self._num_rows + num_drafts) - self._sunk_seconds
        return (self._num_tokens + num_right) / (seconds + draft_seconds)

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
            added = min(seconds, MAX_OUTLIER * (without + expected)) - without
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

"""What is expected of a draft model: how often it is right, and what a round of drafting takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from realm.engine.rates import ClassRates
from realm.engine.step_cost import StepCost
from realm.kernels.drafting import DraftRound

_PRIOR_RATES = (0.1, 0.25, 0.4, 0.55, 0.65, 0.8, 0.9, 0.97)
_PRIOR_MEAN = 0.65
_PRIOR_WEIGHT = 4.0
_CURIOSITY = 0.3
MAX_USUAL_FEED_TOKENS = 4
"""Known tokens for each request, at most, that a usual first step feeds; one that feeds more catches up."""


class DraftRates(ClassRates):
    """How often guesses of a tenant or a request are right: by class of sureness, and at last of all together."""

    __slots__ = ()

    def __init__(self, parent: DraftRates | None, memory: float) -> None:
        super().__init__((*_PRIOR_RATES, _PRIOR_MEAN) if parent is None else parent.values(), _PRIOR_WEIGHT, memory)

    @property
    def mean(self) -> float:
        """The rate of all."""
        return self._hits[-1] / self._trials[-1]

    @property
    def hope(self) -> float:
        """What the rate of all may well be: to find out costs a few drafts, not to know it a whole answer."""
        return min(1.0, self.mean + _CURIOSITY / math.sqrt(self._trials[-1]))

    def observe(self, classes: Sequence[int], num_right: int, wrong: bool) -> None:
        """See `ClassRates`."""
        super().observe(classes, num_right, wrong)
        super().observe([-1] * len(classes), num_right, wrong)


class DraftCosts:
    """Seconds that the parts of a round take, by rows."""

    def __init__(self) -> None:
        self.first = StepCost()
        """The first step and all that is around it: nothing is in the caches."""
        self.catch_up = StepCost()
        """The same of steps that feed many known tokens: their rows cost less each."""
        self.later = StepCost()
        """Each step after it."""
        self._is_warm = False

    def observe(self, done: DraftRound, num_requests: int, seconds: float) -> None:
        """A round for so many requests took so long."""
        if not self._is_warm:
            self._is_warm = True  # the first round reads everything from memory never touched before
            return
        later = float(done.step_seconds[1 : done.num_steps].sum())
        num_fed = int(done.step_rows[0])
        is_usual = num_fed <= MAX_USUAL_FEED_TOKENS * num_requests
        (self.first if is_usual else self.catch_up).observe(num_fed, seconds - later)
        if done.num_steps > 1:
            self.later.observe(int(done.step_rows[1]), float(done.step_seconds[1]))

    @property
    def measured(self) -> bool:
        """Whether any round was timed."""
        return self.first.measured or self.later.measured

    def first_seconds(self, num_rows: int) -> float:
        """What a round takes up to its first guesses."""
        return (self.first if self.first.measured else self.later).seconds(max(1, num_rows))

    def later_seconds(self, num_rows: int) -> float:
        """What each guess after them takes, for so many requests together."""
        return (self.later if self.later.measured else self.first).seconds(num_rows)

    def catch_up_seconds(self, lags: Sequence[int]) -> float:
        """What it takes to feed those who are far behind, by so many tokens, once."""
        num_tokens = sum([lag for lag in lags if lag > MAX_USUAL_FEED_TOKENS])
        return self.catch_up.seconds(num_tokens) if num_tokens and self.catch_up.measured else 0.0

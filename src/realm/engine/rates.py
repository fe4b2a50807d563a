"""How often guesses are right, by what is known of them when they are made."""

from __future__ import annotations

from collections.abc import Sequence


class ClassRates:
    """The rate of right guesses in each of some classes, the latest guesses of a class counting most.

    Args:
        priors: The rates to start from.
        weight: Guesses that a prior counts for.
        memory: Guesses of a class after which an old one counts 1/e.
    """

    __slots__ = ("_decay", "_hits", "_trials")

    def __init__(self, priors: Sequence[float], weight: float, memory: float) -> None:
        self._hits = [prior * weight for prior in priors]
        self._trials = [weight] * len(priors)
        self._decay = 1.0 - 1.0 / memory

    def values(self) -> list[float]:
        """The rates, by class."""
        return [hits / trials for hits, trials in zip(self._hits, self._trials, strict=True)]

    def observe(self, classes: Sequence[int], num_right: int, wrong: bool) -> None:
        """Of guesses in a row, of these classes, the first `num_right` were right; if `wrong`, the next one was not."""
        hits, trials, decay = self._hits, self._trials, self._decay
        for which in classes[:num_right]:
            hits[which] = hits[which] * decay + 1.0
            trials[which] = trials[which] * decay + 1.0
        if wrong:
            which = classes[num_right]
            hits[which] *= decay
            trials[which] = trials[which] * decay + 1.0


def count_right(guess: Sequence[int], came: Sequence[int]) -> tuple[int, bool]:
    """Tokens of `guess` that came, from the first; and whether another one came in place of the next."""
    num_right = 0
    for guessed, token in zip(guess, came, strict=False):
        if guessed != token:
            return num_right, True
        num_right += 1
    return num_right, False

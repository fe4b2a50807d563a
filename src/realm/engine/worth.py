"""Whether it is worth looking for drafts: what looking costs, what drafts gained, and when to look again."""

from __future__ import annotations

_MEMORY_LOOKS = 100.0


class Ledger:
    """What a source of drafts costs and gains, the latest steps counting most."""

    __slots__ = ("_balance", "_spent", "num_accepted", "num_drafted")

    def __init__(self) -> None:
        self._balance = 0.0
        self._spent = 0.0
        self.num_drafted = self.num_accepted = 0
        """In the step under way."""

    def spend(self, seconds: float) -> None:
        """A look for drafts took so long."""
        self._spent += seconds

    def settle(self, gained_seconds: float) -> None:
        """The step has ended: its drafts saved so much time, if they did."""
        if self._spent:
            self._balance += gained_seconds - self._spent - self._balance / _MEMORY_LOOKS
            self._spent = 0.0
        self.num_drafted = self.num_accepted = 0

    @property
    def pays(self) -> bool:
        """Whether the source gains more than it costs; assumed until the contrary is seen."""
        return self._balance >= 0.0


class Rest:
    """Lets steps pass after looks that found nothing: one, then two, then four, up to a bound."""

    __slots__ = ("_left", "_pause")

    def __init__(self) -> None:
        self._left = self._pause = 0

    def is_over(self) -> bool:
        """Called once for each step: whether to look."""
        self._left -= 1
        return self._left < 0

    def after(self, found: bool, longest: int) -> None:
        """There was a look; if it found nothing, let up to `longest` steps pass."""
        self._pause = 0 if found else min(2 * self._pause or 1, longest)
        self._left = self._pause


class Probing:
    """When to draft although it doesn't seem to pay, to notice a change: whenever it costs a small share of the time.

    Args:
        share: Of all time that may go into probes.
    """

    __slots__ = ("_saved_seconds", "_share")

    def __init__(self, share: float = 0.01) -> None:
        self._share = share
        self._saved_seconds = 0.0

    def due(self, seconds: float, probe_seconds: float) -> bool:
        """Called with the time of each step, or of a few, without a draft: whether to spend `probe_seconds` now."""
        self._saved_seconds = min(self._saved_seconds + self._share * seconds, probe_seconds)
        if self._saved_seconds < probe_seconds:
            return False
        self._saved_seconds = 0.0
        return True

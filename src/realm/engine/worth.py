"""Whether it is worth looking for drafts: what looking costs, what drafts gained, and when to look again."""

from __future__ import annotations

_MEMORY_LOOKS = 100.0
_UNSEEN_COST = 1.5  # longer batches take longer to make and to hand out, and what looks touch drives others from caches
_FIRST_CREDIT_STEPS, _CREDIT_STEPS = 12.0, 4.0
_FIRST_WAIT_STEPS, _LONGEST_WAIT_STEPS = 500, 8000


class Ledger:
    """What a source of drafts costs and gains, the latest steps counting most.

    It begins with a credit of a few steps' time. When that is used up the source doesn't pay, until it gains more than
    it costs again, or gets another credit after a while: after longer and longer, if it uses them up, too.
    """

    __slots__ = ("_balance", "_credit", "_num_waited", "_spent", "_wait", "num_accepted", "num_drafted")

    def __init__(self) -> None:
        self._balance = self._credit = self._spent = 0.0
        self._num_waited, self._wait = 0, _FIRST_WAIT_STEPS
        self.num_drafted = self.num_accepted = 0
        """In the step under way."""

    def spend(self, seconds: float) -> None:
        """A look for drafts took so long."""
        self._spent += _UNSEEN_COST * seconds

    def settle(self, gained_seconds: float, step_seconds: float, num_steps: int = 1) -> None:
        """The last of `num_steps` steps has ended: its drafts saved so much time, if they did."""
        self.num_drafted = self.num_accepted = 0
        if not self._credit:
            self._credit = _CREDIT_STEPS * step_seconds
            self._balance = _FIRST_CREDIT_STEPS * step_seconds  # engines learn what steps cost
        if self._spent:
            self._balance += gained_seconds - self._spent - self._balance / _MEMORY_LOOKS
            self._spent = 0.0
        if self.pays:
            self._num_waited = 0
            if self._balance > 2.0 * self._credit:
                self._wait = _FIRST_WAIT_STEPS
            return
        self._num_waited += num_steps
        if self._num_waited >= self._wait:
            self._balance, self._num_waited = self._credit, 0
            self._wait = min(2 * self._wait, _LONGEST_WAIT_STEPS)

    @property
    def pays(self) -> bool:
        """Whether the source gains what it costs."""
        return self._balance >= 0.0


class Rest:
    """Steps to let pass after looks that found nothing: one, then two, then four, up to a bound."""

    __slots__ = ("num_steps",)

    def __init__(self) -> None:
        self.num_steps = 0
        """To let pass now."""

    def after(self, found: bool, longest: int) -> None:
        """There was a look; if it found nothing, up to `longest` steps should pass before the next."""
        self.num_steps = 0 if found else min(2 * self.num_steps or 1, longest)


class Probing:
    """When to draft although it doesn't seem to pay, to notice a change: whenever it costs a small share of the time.

    Args:
        share: Of all time that may go into probes.
    """

    __slots__ = ("_saved_seconds", "_share")

    def __init__(self, share: float = 0.004) -> None:
        self._share = share
        self._saved_seconds = 0.0

    def due(self, seconds: float, probe_seconds: float) -> bool:
        """Called with the time of each step, or of a few, without a draft: whether to spend `probe_seconds` now."""
        self._saved_seconds = min(self._saved_seconds + self._share * seconds, probe_seconds)
        if self._saved_seconds < probe_seconds:
            return False
        self._saved_seconds = 0.0
        return True

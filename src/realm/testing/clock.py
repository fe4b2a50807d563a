"""A clock that moves only when a test says so."""

from __future__ import annotations


class FakeClock:
    """Stands in for `time.monotonic`: call it for the time in seconds, `advance` it by hand."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Seconds since the clock's own start."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move forward; time never runs back."""
        assert seconds >= 0.0
        self.now += seconds

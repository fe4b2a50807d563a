"""The scheduler's side of adapters: which resident slot a request computes with."""

from __future__ import annotations

from typing import Protocol

from realm.core.errors import UnsupportedParameter
from realm.core.types import AdapterRef


class AdapterSlots(Protocol):
    """A pool of resident adapters with a limited number of slots."""

    def check(self, ref: AdapterRef) -> None:
        """Called when a request arrives.

        Raises:
            RealmError: the adapter can never be served; the request is refused.
        """

    def acquire(self, ref: AdapterRef) -> int | None:
        """Pin the adapter and give its slot; None if it isn't resident and no slot is free at this time.

        Raises:
            RealmError: it can't be loaded; the request ends with this error.
        """

    def release(self, slot: int) -> None:
        """Take back one `acquire` of this slot. The adapter may stay resident."""


class NoAdapters:
    """For an engine without adapters."""

    def check(self, ref: AdapterRef) -> None:
        """Refuse."""
        raise UnsupportedParameter(
            f"adapter {ref.name!r} asked for, but this engine serves the base model only",
            param="adapter",
            code="adapters_not_supported",
            hint="ask for the base model",
        )

    def acquire(self, ref: AdapterRef) -> int | None:
        """Refuse; `check` has let none through."""
        self.check(ref)
        return None

    def release(self, slot: int) -> None:
        """Nothing is ever held."""
        raise AssertionError(f"slot {slot} was never given out")

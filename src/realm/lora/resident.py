"""The nouns of the adapter pool: where weights come from, what is resident, what is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from realm.core.errors import RealmError
from realm.kernels.ops import LoRALayer

Key: TypeAlias = tuple[str, float]
"""Content hash and scale: what decides the result."""


class Source(Protocol):
    """Where an adapter's weights come from: `LoRAWeights`, or a file that is read when they are needed."""

    @property
    def layers(self) -> Mapping[str, LoRALayer]:
        """Changes by module name. May read files.

        Raises:
            RealmError: they can't be read.
        """

    @property
    def outline(self) -> Mapping[str, LoRALayer]:
        """Layers of the same shapes, at once; their values say nothing."""


@dataclass(slots=True)
class Entry:
    """One adapter that is resident, or on its way."""

    slot: int
    num_bytes: int
    packed: Any | None = None
    """None while it is being packed."""
    installed: bool = False
    """Whether the executor knows it."""
    error: RealmError | None = None
    num_users: int = 0
    awaited: bool = False
    """Whether a request asked for it before it was ready, and has not had it yet."""
    unwanted: bool = False
    """It goes when its last user does."""

    @property
    def is_settled(self) -> bool:
        """Whether its load has ended, well or not."""
        return self.packed is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Gauges and counters."""

    num_resident: int
    resident_bytes: int
    capacity_bytes: int
    num_pinned: int
    num_loads: int
    num_evictions: int
    num_hits: int
    """Requests that found their adapter ready."""
    num_misses: int
    """Requests that had to wait for a load."""
    load_seconds: float
    """In reading and packing, all loads together; steps go on meanwhile."""

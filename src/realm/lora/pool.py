"""Adapters that a device holds ready: bounded memory, least recently used out first, packed beside the engine."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from realm.core.errors import Internal, InvalidRequest, NotFound, RealmError
from realm.core.types import AdapterRef
from realm.kernels.ops import Executor, LoRALayer
from realm.lora.adapter import LoRAWeights

_log = logging.getLogger(__name__)

Key: TypeAlias = tuple[str, float]
"""Content hash and scale: what decides the result."""
Job: TypeAlias = Callable[[], None]


@dataclass(slots=True)
class _Entry:
    slot: int
    num_bytes: int
    packed: Any | None = None  # None while it is being packed
    installed: bool = False  # the executor knows it
    error: RealmError | None = None
    num_users: int = 0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Gauges and counters."""

    num_resident: int
    resident_bytes: int
    capacity_bytes: int
    num_pinned: int
    num_loads: int
    num_evictions: int
    num_waits: int
    """Times that a request asked for an adapter which was not ready."""


class AdapterPool:
    """`engine.AdapterSlots` over an executor.

    `check`, `acquire` and `release` are for the engine's thread, between steps; the others may be called from any.

    Args:
        executor: Packs adapters and computes with them.
        find: Weights by content hash, bound to the model; KeyError if nobody holds them any more.
        capacity_bytes: Memory of the packed adapters, those being packed included.
        num_slots: Adapters at a time.
        submit: Runs a job elsewhere; on a thread of the pool's own if None.
    """

    def __init__(
        self,
        executor: Executor,
        find: Callable[[str], LoRAWeights],
        capacity_bytes: int,
        *,
        num_slots: int = 4096,
        submit: Callable[[Job], object] | None = None,
    ) -> None:
        self._executor = executor
        self._find = find
        self._capacity_bytes = capacity_bytes
        self._submit = submit
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.RLock()
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()  # least recently used first
        self._by_slot: dict[int, _Entry] = {}
        self._num_slots = num_slots
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._pinned: set[Key] = set()
        self._used_bytes = 0
        self._num_loads = self._num_evictions = self._num_waits = 0
        self.on_ready: Job = _nothing
        """Called, on any thread, when an adapter that a request waits for may be ready."""

    def check(self, ref: AdapterRef) -> None:
        """Called when a request arrives.

        Raises:
            NotFound: the adapter is gone.
            InvalidRequest: it takes more memory than the pool has.
        """
        with self._lock:
            if _key(ref) not in self._entries:
                self._size_of(ref)

    def acquire(self, ref: AdapterRef) -> int | None:
        """Hold the adapter and give its slot; None if it isn't ready, which starts getting it ready if there is room.

        Raises:
            RealmError: it can't be loaded; the request ends with this error.
        """
        with self._lock:
            entry = self._entries.get(_key(ref)) or self._load(ref)
            if entry is not None and entry.error is not None:
                self._remove(_key(ref))
                raise entry.error
            if entry is None or entry.packed is None:
                self._num_waits += 1
                return None
            if not entry.installed:
                self._executor.set_adapter(entry.slot, entry.packed)
                entry.installed = True
            entry.num_users += 1
            self._entries.move_to_end(_key(ref))
            return entry.slot

    def release(self, slot: int) -> None:
        """Take back one `acquire` of this slot. The adapter stays until its memory is needed."""
        with self._lock:
            entry = self._by_slot[slot]
            assert entry.num_users > 0, f"slot {slot} was released too often"
            entry.num_users -= 1

    def pin(self, ref: AdapterRef) -> None:
        """Keep an adapter resident from its next use on, whatever else is asked for. At most half of the memory.

        Raises:
            InvalidRequest: the pinned adapters would take more.
        """
        with self._lock:
            if _key(ref) in self._pinned:
                return
            num_bytes = self._pinned_bytes() + self._size_of(ref)
            if num_bytes > self._capacity_bytes // 2:
                raise InvalidRequest(
                    f"pinned adapters would take {num_bytes} bytes, half of the pool is {self._capacity_bytes // 2}",
                    code="adapter_pool_full",
                    hint="unpin another one, or give the pool more memory",
                )
            self._pinned.add(_key(ref))

    def unpin(self, ref: AdapterRef) -> None:
        """Treat an adapter like any other again."""
        with self._lock:
            self._pinned.discard(_key(ref))

    def is_pinned(self, ref: AdapterRef) -> bool:
        """Whether `pin` was called for it."""
        return _key(ref) in self._pinned

    def is_resident(self, ref: AdapterRef) -> bool:
        """Whether a request would get it at once."""
        entry = self._entries.get(_key(ref))
        return entry is not None and entry.packed is not None

    def stats(self) -> PoolStats:
        """A snapshot."""
        with self._lock:
            return PoolStats(
                num_resident=len(self._entries),
                resident_bytes=self._used_bytes,
                capacity_bytes=self._capacity_bytes,
                num_pinned=len(self._pinned),
                num_loads=self._num_loads,
                num_evictions=self._num_evictions,
                num_waits=self._num_waits,
            )

    def check_integrity(self) -> None:
        """Assert that slots, bytes and users agree."""
        with self._lock:
            slots = [entry.slot for entry in self._entries.values()]
            assert sorted(slots + self._free_slots) == list(range(self._num_slots)), "a slot is lost or shared"
            assert {slot: self._by_slot[slot] for slot in slots} == self._by_slot
            assert sum(entry.num_bytes for entry in self._entries.values()) == self._used_bytes <= self._capacity_bytes
            for entry in self._entries.values():
                assert entry.num_users >= 0
                assert entry.installed or not entry.num_users, "an adapter is used that the executor doesn't have"

    def close(self) -> None:
        """End the pool's thread, after the job it is at."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _size_of(self, ref: AdapterRef) -> int:
        num_bytes = self._executor.adapter_bytes(self._layers(ref))
        free = self._capacity_bytes - sum(e.num_bytes for k, e in self._entries.items() if k in self._pinned)
        if num_bytes > free:
            raise InvalidRequest(
                f"adapter {ref.name!r} takes {num_bytes} bytes, the pool has {free}",
                code="adapter_too_large",
                hint="give the pool more memory",
            )
        return num_bytes

    def _layers(self, ref: AdapterRef) -> Mapping[str, LoRALayer]:
        try:
            layers = self._find(ref.content_hash).layers
        except KeyError:
            raise NotFound(f"the adapter {ref.name!r} is gone", code="adapter_not_found", param="model") from None
        if ref.scale == 1.0:
            return layers
        return {name: replace(layer, scale=layer.scale * ref.scale) for name, layer in layers.items()}

    def _pinned_bytes(self) -> int:
        return sum(self._executor.adapter_bytes(self._layers(AdapterRef("", *key))) for key in self._pinned)

    def _load(self, ref: AdapterRef) -> _Entry | None:
        """Start packing an adapter, if what nobody uses makes enough room."""
        num_bytes = self._size_of(ref)
        if not self._make_room(num_bytes):
            return None
        entry = _Entry(self._free_slots.pop(), num_bytes)
        self._entries[_key(ref)] = entry
        self._by_slot[entry.slot] = entry
        self._used_bytes += num_bytes
        self._num_loads += 1
        layers = self._layers(ref)  # held by the job, whatever becomes of the name
        self._run(lambda: self._pack(entry, layers))
        return entry

    def _make_room(self, num_bytes: int) -> bool:
        victims: list[Key] = []
        free, slots = self._capacity_bytes - self._used_bytes, len(self._free_slots)
        for key, entry in self._entries.items():
            if free >= num_bytes and slots:
                break
            if entry.num_users == 0 and entry.packed is not None and key not in self._pinned:
                victims.append(key)
                free += entry.num_bytes
                slots += 1
        if free < num_bytes or not slots:
            return False
        for key in victims:
            self._remove(key)
            self._num_evictions += 1
        return True

    def _remove(self, key: Key) -> None:
        entry = self._entries.pop(key)
        if entry.installed:
            self._executor.set_adapter(entry.slot, None)
        del self._by_slot[entry.slot]
        self._free_slots.append(entry.slot)
        self._used_bytes -= entry.num_bytes

    def _run(self, job: Job) -> None:
        if self._submit is not None:
            self._submit(job)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix="realm-adapters")
        self._threads.submit(job)

    def _pack(self, entry: _Entry, layers: Mapping[str, LoRALayer]) -> None:
        try:
            packed = self._executor.pack_adapter(layers)
        except Exception:
            _log.exception("an adapter could not be packed")
            entry.error = Internal("the adapter could not be loaded", hint="see the server's log")
        else:
            entry.packed = packed
        self.on_ready()


def _key(ref: AdapterRef) -> Key:
    return ref.content_hash, ref.scale


def _nothing() -> None:
    pass

"""Adapters that a device holds ready: bounded memory, least recently used out first, packed beside the engine."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeAlias
from weakref import WeakKeyDictionary

from realm.core.errors import Internal, InvalidRequest, NotFound, RealmError
from realm.core.types import AdapterRef
from realm.kernels.ops import Executor
from realm.lora.resident import Entry, Key, PoolStats, Source

_log = logging.getLogger(__name__)

Job: TypeAlias = Callable[[], None]


class AdapterPool:
    """`engine.AdapterSlots` over an executor.

    `check`, `acquire` and `release` are for the engine's thread, between steps; the others may be called from any.

    Args:
        executor: Packs adapters and computes with them.
        find: Weights by content hash, bound to the model; KeyError if nobody holds them any more. Called often.
        capacity_bytes: Memory of the packed adapters, those being packed included.
        num_slots: Adapters at a time.
        submit: Runs a job elsewhere; on a thread of the pool's own if None.
    """

    def __init__(
        self,
        executor: Executor,
        find: Callable[[str], Source],
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
        self._entries: OrderedDict[Key, Entry] = OrderedDict()  # least recently used first
        self._by_slot: dict[int, Entry] = {}
        self._num_slots = num_slots
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._pinned: set[Key] = set()
        self._used_bytes = 0
        self._sizes: WeakKeyDictionary[Source, int] = WeakKeyDictionary()
        self._num_loads = self._num_evictions = self._num_hits = self._num_misses = 0
        self._load_seconds = 0.0
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
                self._check_size(ref)

    def acquire(self, ref: AdapterRef) -> int | None:
        """Hold the adapter and give its slot; None if it isn't ready, which starts getting it ready if there is room.

        Raises:
            RealmError: it can't be loaded; the request ends with this error.
        """
        with self._lock:
            entry = self._entries.get(_key(ref))
            if entry is None:
                entry = self._load(ref)
                if entry is None:
                    return None
                entry.awaited = True
            if entry.error is not None:
                self._remove(_key(ref))
                raise entry.error
            if entry.packed is None:
                entry.awaited = True
                return None
            if not entry.installed:
                self._executor.set_adapter(entry.slot, entry.packed)
                entry.installed = True
            self._num_misses += entry.awaited
            self._num_hits += not entry.awaited
            entry.awaited = False
            entry.num_users += 1
            self._entries.move_to_end(_key(ref))
            return entry.slot

    def release(self, slot: int) -> None:
        """Take back one `acquire` of this slot. The adapter stays until its memory is needed."""
        with self._lock:
            entry = self._by_slot[slot]
            assert entry.num_users > 0, f"slot {slot} was released too often"
            entry.num_users -= 1
            if entry.unwanted and not entry.num_users:
                self._remove(next(key for key, other in self._entries.items() if other is entry))

    def prefetch(self, ref: AdapterRef) -> bool:
        """Start getting an adapter ready before a request asks; False if there is no room. On the engine's thread.

        Raises:
            NotFound, InvalidRequest: as `check`.
        """
        with self._lock:
            entry = self._entries.get(_key(ref))
            if entry is not None and entry.error is not None:
                self._remove(_key(ref))
                entry = None
            entry = entry or self._load(ref)
            if entry is not None:
                entry.unwanted = False
            return entry is not None

    def discard(self, ref: AdapterRef) -> None:
        """Free an adapter's memory as soon as no request uses it. On the engine's thread."""
        with self._lock:
            entry = self._entries.get(_key(ref))
            if entry is None:
                return
            entry.unwanted = True
            if not entry.num_users and entry.is_settled:
                self._remove(_key(ref))

    def failure(self, ref: AdapterRef) -> RealmError | None:
        """Why its last load failed, until a request is told."""
        entry = self._entries.get(_key(ref))
        return None if entry is None else entry.error

    def check_fits(self, name: str, source: Source) -> None:
        """Refuse an adapter that could never be ready.

        Raises:
            InvalidRequest: it takes more memory than the pool has.
        """
        num_bytes = self._executor.adapter_bytes(source.outline)
        if num_bytes > self._capacity_bytes:
            raise _too_large(name, num_bytes, self._capacity_bytes)

    def settle(self) -> Future[None]:
        """Done when the loads that have been started by now have ended."""
        settled: Future[None] = Future()
        self._run(lambda: settled.set_result(None))
        return settled

    def num_users(self, ref: AdapterRef) -> int:
        """Requests in the batch that compute with it."""
        entry = self._entries.get(_key(ref))
        return 0 if entry is None else entry.num_users

    def packed_bytes(self, ref: AdapterRef) -> int:
        """Memory that it takes while it is ready.

        Raises:
            NotFound: the adapter is gone.
        """
        with self._lock:
            source = self._source(ref)
            if source not in self._sizes:
                self._sizes[source] = self._executor.adapter_bytes(source.outline)
            return self._sizes[source]

    def pin(self, ref: AdapterRef) -> None:
        """Keep an adapter resident, whatever else is asked for, from its next use or `prefetch` on.

        Raises:
            InvalidRequest: the pinned adapters would take more than half of the memory.
        """
        with self._lock:
            if _key(ref) in self._pinned:
                return
            num_bytes = self._pinned_bytes() + self._check_size(ref)
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
                num_hits=self._num_hits,
                num_misses=self._num_misses,
                load_seconds=self._load_seconds,
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

    def _check_size(self, ref: AdapterRef) -> int:
        num_bytes = self.packed_bytes(ref)
        free = self._capacity_bytes - sum(e.num_bytes for k, e in self._entries.items() if k in self._pinned)
        if num_bytes > free:
            raise _too_large(ref.name, num_bytes, free)
        return num_bytes

    def _source(self, ref: AdapterRef) -> Source:
        try:
            return self._find(ref.content_hash)
        except KeyError:
            raise NotFound(f"the adapter {ref.name!r} is gone", code="adapter_not_found", param="model") from None

    def _pinned_bytes(self) -> int:
        return sum(self.packed_bytes(AdapterRef("", *key)) for key in self._pinned)

    def _load(self, ref: AdapterRef) -> Entry | None:
        """Start packing an adapter, if what nobody uses makes enough room."""
        num_bytes = self._check_size(ref)
        if not self._make_room(num_bytes):
            return None
        entry = Entry(self._free_slots.pop(), num_bytes)
        self._entries[_key(ref)] = entry
        self._by_slot[entry.slot] = entry
        self._used_bytes += num_bytes
        self._num_loads += 1
        source = self._source(ref)  # held by the job, whatever becomes of the name
        self._run(lambda: self._pack(_key(ref), entry, source))
        return entry

    def _make_room(self, num_bytes: int) -> bool:
        victims: list[Key] = []
        free, slots = self._capacity_bytes - self._used_bytes, len(self._free_slots)
        for key, entry in self._entries.items():
            if free >= num_bytes and slots:
                break
            if entry.num_users == 0 and entry.is_settled and key not in self._pinned:
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

    def _pack(self, key: Key, entry: Entry, source: Source) -> None:
        began = time.perf_counter()
        scale = key[1]
        try:
            layers = source.layers
            if scale != 1.0:
                layers = {name: replace(layer, scale=layer.scale * scale) for name, layer in layers.items()}
            packed = self._executor.pack_adapter(layers)
        except RealmError as error:
            _log.error("an adapter could not be loaded: %s", error)
            entry.error = error
        except Exception:
            _log.exception("an adapter could not be packed")
            entry.error = Internal("the adapter could not be loaded", hint="see the server's log")
        else:
            entry.packed = packed
        with self._lock:
            self._load_seconds += time.perf_counter() - began
            if entry.unwanted and not entry.awaited and self._entries.get(key) is entry:
                self._remove(key)
        self.on_ready()


def _key(ref: AdapterRef) -> Key:
    return ref.content_hash, ref.scale


def _too_large(name: str, num_bytes: int, free: int) -> InvalidRequest:
    return InvalidRequest(
        f"adapter {name!r} takes {num_bytes} bytes, the pool has {free}",
        code="adapter_too_large",
        hint="give the pool more memory (--adapter-cache-bytes)",
    )


def _nothing() -> None:
    pass

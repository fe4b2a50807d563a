"""The adapters of one model over their whole life: uploaded, loaded, ready, pinned, unloaded, deleted."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Literal

from realm.core.errors import Conflict, InvalidRequest, NotFound, Overloaded, RealmError
from realm.core.types import AdapterRef
from realm.lora.adapter import LoRAWeights
from realm.lora.store import AdapterStore
from realm.lora.stored import Incoming, Record
from realm.runtime.adapters import Adapter, StoredAdapter, unknown_adapter
from realm.runtime.served import ServedModel

_log = logging.getLogger(__name__)

State = Literal["stored", "available", "resident"]


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """One adapter as its operator sees it."""

    name: str
    state: State
    """stored: on disk, requests can't name it; available: they can; resident: and it is ready to compute with."""
    pinned: bool
    uploaded: bool
    """False: given to the process at its start."""
    content_hash: str
    rank: int
    """The largest, where modules differ."""
    num_matrices: int
    modules: tuple[str, ...]
    """Kinds of matrices that it changes: attn_q, ffn_up, ..."""
    file_bytes: int
    resident_bytes: int
    """Memory that it takes while it is resident."""
    num_requests: int
    """Requests in the batch that compute with it."""
    created: int | None
    """When it was uploaded, in Unix seconds."""


class AdapterLibrary:
    """What an operator does with the adapters of a model. Methods block; safe to use from any thread.

    Args:
        model: The model that they change.
        store: Keeps uploaded adapters.
    """

    def __init__(self, model: ServedModel, store: AdapterStore) -> None:
        self._model = model
        self.store = store
        self._registry = model.adapters
        self._pool = model.adapter_pool
        self._lock = threading.RLock()

    def restore(self) -> None:
        """Bring back what the store says was loaded and pinned.

        Raises:
            Conflict: a stored adapter's name has been given to another one at the start.
        """
        for name, record in self.store.records.items():
            if name in self._registry.names():
                raise _configured(name)
            if record.loaded and self._fits(record):
                self._register(record)
                if record.pinned:
                    self._pin_again(name)

    def put(self, incoming: Incoming) -> tuple[AdapterInfo, bool]:
        """Check an upload that is complete, store it and make it known under its name; True if the name is new.

        Requests that began with what the name stood for before end with it.

        Raises:
            RealmError: it isn't an adapter of this model, or can never fit the pool; nothing has changed then.
        """
        incoming.check_complete()
        incoming.close(sync=True)
        name = incoming.name
        bound = LoRAWeights.load(incoming.path, name).bind(self._registry.base)
        self._pool.check_fits(name, bound)
        with self._lock:
            self.check_name(name)
            self._registry.check_room(name)
            before = self.store.find(name)
            old = self._registered(name)
            record, _ = self.store.commit(
                incoming, content_hash=bound.content_hash, fingerprint=self._model.fingerprint, ranks=bound.ranks
            )
            self._register(record)
            if old is not None and old.ref.content_hash != record.content_hash:
                release_adapter(self._model, old.ref)
            if before is not None and before.pinned:
                self._pin_again(name)
            return self.info(name), before is None

    def check_name(self, name: str) -> None:
        """Refuse to change, by upload or deletion, what the process was given at its start.

        Raises:
            Conflict: the name is one of those.
        """
        if self._registered(name) is not None and self.store.find(name) is None:
            raise _configured(name)

    def load(self, name: str) -> AdapterInfo:
        """Let requests name a stored adapter, and get it ready now.

        Raises:
            NotFound: no such adapter.
            Overloaded: the pool is full of adapters that requests use.
            RealmError: it can't be read, or belongs to another model.
        """
        with self._lock:
            adapter = self._registered(name)
            if adapter is None:
                record = self.store.record(name)
                if not self._fits(record):
                    raise InvalidRequest(
                        f"adapter {name} was uploaded for another model",
                        code="adapter_base_mismatch",
                        hint="upload it again",
                    )
                adapter = self._register(record)
                self.store.update(name, loaded=True)
        self._prefetch(adapter.ref)
        return self.info(name)

    def unload(self, name: str) -> AdapterInfo | None:
        """New requests can't name it any more; None if it isn't stored, and therefore gone.

        Raises:
            NotFound: no such adapter.
        """
        with self._lock:
            if self._registered(name) is not None:
                unload_adapter(self._model, name)
                if self.store.find(name) is None:
                    return None
            self.store.update(name, loaded=False, pinned=False)
            return self.info(name)

    def pin(self, name: str, pinned: bool = True) -> AdapterInfo:
        """Keep a loaded adapter resident, or let it give way to others again.

        Raises:
            NotFound: no such adapter is loaded.
            InvalidRequest: pinned adapters would take more than half of the pool.
        """
        with self._lock:
            ref = self._registry.get(name).ref
            if pinned:
                self._pool.pin(ref)
            else:
                self._pool.unpin(ref)
            if self.store.find(name) is not None:
                self.store.update(name, pinned=pinned)
        if pinned:
            self._model.loop.call(lambda: self._pool.prefetch(ref)).result()
        return self.info(name)

    def delete(self, name: str) -> None:
        """Forget an adapter and its files; streams that began with it end with it.

        Raises:
            NotFound: no such adapter.
            Conflict: it was not uploaded.
        """
        with self._lock:
            self.check_name(name)
            self.store.record(name)
            if self._registered(name) is not None:
                unload_adapter(self._model, name)
            self.store.remove(name)

    def names(self) -> set[str]:
        """All that there are, stored or loaded."""
        return {*self._registry.names(), *self.store.records}

    def infos(self) -> list[AdapterInfo]:
        """All of them, by name."""
        self.store.sweep()
        with self._lock:
            return [self.info(name) for name in sorted(self.names())]

    def info(self, name: str) -> AdapterInfo:
        """One of them.

        Raises:
            NotFound: no such adapter.
        """
        with self._lock:
            adapter, record = self._registered(name), self.store.find(name)
            if record is not None:
                ranks, content_hash = record.ranks, record.content_hash
            elif adapter is not None:
                ranks = {module: layer.rank for module, layer in adapter.weights.outline.items()}
                content_hash = adapter.ref.content_hash
            else:
                raise unknown_adapter(name)
            return AdapterInfo(
                name=name,
                state=self._state(adapter),
                pinned=adapter is not None and self._pool.is_pinned(adapter.ref),
                uploaded=record is not None,
                content_hash=content_hash,
                rank=max(ranks.values()),
                num_matrices=len(ranks),
                modules=tuple(sorted({module.rpartition(".")[2] for module in ranks})),
                file_bytes=record.num_bytes if record else 0,
                resident_bytes=self._pool.packed_bytes(adapter.ref) if adapter else 0,
                num_requests=self._pool.num_users(adapter.ref) if adapter else 0,
                created=record.created if record else None,
            )

    def check_integrity(self) -> None:
        """Assert that store, registry and pool agree."""
        with self._lock:
            self.store.check_integrity()
            loaded = {name for name, record in self.store.records.items() if record.loaded and self._fits(record)}
            assert loaded <= set(self._registry.names()), "a loaded adapter can't be named"
        self._model.loop.call(self._pool.check_integrity).result()

    def _pin_again(self, name: str) -> None:
        """Pin what was pinned before; it stays unpinned if the pool has no room for that any more."""
        try:
            self.pin(name)
        except InvalidRequest as error:
            self.store.update(name, pinned=False)
            _log.warning("adapter %s is not pinned any more: %s", name, error.message)

    def _registered(self, name: str) -> Adapter | None:
        try:
            return self._registry.get(name)
        except NotFound:
            return None

    def _state(self, adapter: Adapter | None) -> State:
        if adapter is None:
            return "stored"
        return "resident" if self._pool.is_resident(adapter.ref) else "available"

    def _fits(self, record: Record) -> bool:
        base = self._registry.base
        return record.fingerprint == self._model.fingerprint and None not in map(base.shape_of, record.ranks)

    def _register(self, record: Record) -> Adapter:
        files, base = self.store.files(record.name), self._registry.base
        source = StoredAdapter(files, record.content_hash, record.ranks, base)
        return self._registry.add(record.name, record.content_hash, source)

    def _prefetch(self, ref: AdapterRef) -> None:
        if not self._model.loop.call(lambda: self._pool.prefetch(ref)).result():
            raise Overloaded("the adapter pool is full of adapters in use", code="adapter_pool_busy")
        self._pool.settle().result()
        error: RealmError | None = self._pool.failure(ref)
        if error is not None:
            self._model.loop.call(lambda: self._pool.discard(ref)).result()
            raise error


def unload_adapter(model: ServedModel, name: str) -> None:
    """Forget a name. Requests that began with it end with it; then its memory is free.

    Raises:
        NotFound: no such adapter.
    """
    ref = model.adapters.get(name).ref
    model.adapters.unload(name)
    release_adapter(model, ref)


def release_adapter(model: ServedModel, ref: AdapterRef) -> None:
    """Free the memory of an adapter that a name stood for, unless another name does too."""
    if not model.adapters.holds(ref.content_hash):
        model.adapter_pool.unpin(ref)
        model.loop.call(lambda: model.adapter_pool.discard(ref)).result()


def _configured(name: str) -> Conflict:
    return Conflict(
        f"adapter {name} was given to the server at its start",
        code="adapter_configured",
        param="name",
        hint="take another name, or change the server's options",
    )

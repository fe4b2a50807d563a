"""Uploaded adapters on disk: bounded, written once, gone when nobody can need them any more.

    ROOT/names/pirate.json      what the name stands for: a record, replaced in one piece
    ROOT/objects/<random>/      the files of one upload; never changed
    ROOT/incoming/<random>/     an upload that is coming in
    ROOT/lock                   held by the process that uses the store

Whatever no record names is removed when the store is opened, so a crash leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import shutil
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from realm.core.config import StoreLimits
from realm.core.errors import Conflict, InvalidRequest, NotFound
from realm.lora.adapter import check_adapter_name
from realm.lora.stored import GGUF_FILE, Incoming, Record, StoredFiles, read_record, replace_json


class AdapterStore:
    """Uploaded adapters by name. Safe to use from any thread.

    Args:
        root: Its directory, made if it isn't there.
        limits: How much it may hold.

    Raises:
        InvalidRequest: the directory can't be used, or another process uses it.
    """

    def __init__(self, root: Path, limits: StoreLimits | None = None) -> None:
        self.root = root
        self.limits = limits or StoreLimits()
        self._lock = threading.RLock()
        self._incoming: dict[str, Incoming] = {}
        try:
            for directory in (self._names, self._objects, self._staging):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_file = (root / "lock").open("w")
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock_file.close()
            raise InvalidRequest(
                f"the adapter store {root} is in use by another server",
                code="adapter_store_in_use",
                hint="choose another --adapter-store",
            ) from None
        except OSError as error:
            raise InvalidRequest(f"the adapter store {root} can't be used: {error.strerror}") from None
        self._records: dict[str, Record] = {}
        self._files: dict[str, StoredFiles] = {}
        self._num_bytes = 0
        self._garbage: deque[tuple[Path, int]] = deque()
        self._open()

    @property
    def records(self) -> dict[str, Record]:
        """What is stored, by name."""
        with self._lock:
            return dict(sorted(self._records.items()))

    @property
    def num_bytes(self) -> int:
        """Of all files, those included that only an open stream needs."""
        return self._num_bytes

    def files(self, name: str) -> StoredFiles:
        """Files of a stored adapter.

        Raises:
            NotFound: no such adapter.
        """
        with self._lock:
            self.record(name)
            return self._files[name]

    def find(self, name: str) -> Record | None:
        """What a name stands for; None if nothing is stored under it."""
        return self._records.get(name)

    def record(self, name: str) -> Record:
        """What a name stands for.

        Raises:
            NotFound: nothing is stored under it.
        """
        record = self._records.get(name)
        if record is None:
            raise NotFound(f"no adapter {name[:200]!r} is stored", code="adapter_not_found", param="name")
        return record

    @contextmanager
    def receive(self, name: str) -> Iterator[Incoming]:
        """Make room for an upload. What `commit` has not taken by the end is removed.

        Raises:
            InvalidRequest: a bad name.
            Conflict: the store is full, or the name's last upload has not ended.
        """
        check_adapter_name(name)
        with self._lock:
            self.sweep()
            self._check_room(name)
            held = sum(incoming.room for incoming in self._incoming.values())
            left = self.limits.max_bytes - self._num_bytes - held
            room = min(left, self.limits.max_adapter_bytes)
            if room <= 0:
                raise Conflict(
                    f"the adapter store holds {self._num_bytes} bytes, the limit is {self.limits.max_bytes}",
                    code="adapter_store_full",
                    hint="delete an adapter first",
                )
            limit = "the limit of" if room == self.limits.max_adapter_bytes else "what the store has left,"
            directory = self._staging / secrets.token_hex(8)
            incoming = Incoming(name, directory, room, f"{limit} {room} bytes")
            self._incoming[name] = incoming
            directory.mkdir()
        try:
            yield incoming
        finally:
            incoming.close(sync=False)
            with self._lock:
                del self._incoming[name]
            shutil.rmtree(directory, ignore_errors=True)

    def commit(
        self, incoming: Incoming, *, content_hash: str, fingerprint: str, ranks: dict[str, int]
    ) -> tuple[Record, StoredFiles]:
        """Put a checked upload in its name's place, in one piece. The files of what was there go when unused."""
        incoming.close(sync=True)
        object_id = secrets.token_hex(8)
        record = Record(
            incoming.name, object_id, incoming.num_bytes, content_hash, fingerprint, ranks, int(time.time())
        )
        with self._lock:
            files = self._stored(object_id, incoming.path.name if incoming.path.is_file() else "", record.num_bytes)
            incoming.directory.rename(files.directory)
            old = self._files.get(record.name)
            self._write(record)
            self._files[record.name] = files
            self._num_bytes += record.num_bytes
            if old is not None:
                self._retire(old)
            del old
            self.sweep()
        return record, files

    def update(self, name: str, *, loaded: bool | None = None, pinned: bool | None = None) -> None:
        """Change what a restart brings back.

        Raises:
            NotFound: no such adapter.
        """
        with self._lock:
            record = self.record(name)
            changed = replace(
                record,
                loaded=record.loaded if loaded is None else loaded,
                pinned=record.pinned if pinned is None else pinned,
            )
            if changed != record:
                self._write(changed)

    def remove(self, name: str) -> None:
        """Forget an adapter; its files go when no stream needs them any more.

        Raises:
            NotFound: no such adapter.
        """
        with self._lock:
            self.record(name)
            (self._names / f"{name}.json").unlink()
            del self._records[name]
            self._retire(self._files.pop(name))
            self.sweep()

    def sweep(self) -> None:
        """Remove the files that nobody holds any more."""
        with self._lock:
            while self._garbage:
                directory, num_bytes = self._garbage.popleft()
                shutil.rmtree(directory, ignore_errors=True)
                self._num_bytes -= num_bytes

    def read_notes(self) -> dict[str, Any]:
        """What `write_notes` kept; nothing if that is unreadable."""
        try:
            notes = json.loads((self.root / "notes.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return notes if isinstance(notes, dict) else {}

    def write_notes(self, notes: dict[str, Any]) -> None:
        """Keep something beside the adapters, for the next start."""
        replace_json(self.root / "notes.json", notes)

    def check_integrity(self) -> None:
        """Assert that records, files and bytes agree."""
        with self._lock:
            assert self._records.keys() == self._files.keys()
            names = {path.name.removesuffix(".json") for path in self._names.iterdir()}
            assert names == self._records.keys(), "a record is lost"
            for name, record in self._records.items():
                files = self._files[name]
                assert sum(path.stat().st_size for path in files.directory.iterdir()) == record.num_bytes
            assert sum(record.num_bytes for record in self._records.values()) <= self._num_bytes
            assert len(list(self._staging.iterdir())) == len(self._incoming), "an upload left something behind"

    def close(self) -> None:
        """Let another process use the store."""
        self._lock_file.close()

    @property
    def _names(self) -> Path:
        return self.root / "names"

    @property
    def _objects(self) -> Path:
        return self.root / "objects"

    @property
    def _staging(self) -> Path:
        return self.root / "incoming"

    def _check_room(self, name: str) -> None:
        if name in self._incoming:
            raise Conflict(f"an upload of {name!r} is under way", code="adapter_busy", param="name")
        names = {*self._records, *self._incoming}
        if name not in names and len(names) >= self.limits.max_adapters:
            raise Conflict(
                f"{self.limits.max_adapters} adapters are stored, which is the limit",
                code="too_many_adapters",
                hint="delete one first",
            )

    def _open(self) -> None:
        """Read the records; remove what none of them names."""
        for path in self._names.iterdir():
            record = read_record(path)
            if record is None or not (self._objects / record.object_id).is_dir():
                path.unlink()
                continue
            self._records[record.name] = record
            gguf = (self._objects / record.object_id / GGUF_FILE).is_file()
            self._files[record.name] = self._stored(record.object_id, GGUF_FILE if gguf else "", record.num_bytes)
            self._num_bytes += record.num_bytes
        known = {record.object_id for record in self._records.values()}
        for directory in [*self._staging.iterdir(), *(d for d in self._objects.iterdir() if d.name not in known)]:
            shutil.rmtree(directory, ignore_errors=True)

    def _stored(self, object_id: str, file_name: str, num_bytes: int) -> StoredFiles:
        directory = self._objects / object_id
        return StoredFiles(directory / file_name if file_name else directory, directory, num_bytes)

    def _write(self, record: Record) -> None:
        replace_json(self._names / f"{record.name}.json", asdict(record))
        self._records[record.name] = record

    def _retire(self, files: StoredFiles) -> None:
        """Remove files once nobody holds them.

        The last one to let go may be the engine's thread, which shall not wait for a disk: `sweep` does it. What is
        left at exit is removed by the next start.
        """
        weakref.finalize(files, self._garbage.append, (files.directory, files.num_bytes)).atexit = False

"""Uploaded adapters on disk: limits, replacing, crashes."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from realm.core.config import StoreLimits
from realm.core.errors import Conflict, InvalidRequest, NotFound, PayloadTooLarge
from realm.lora.store import AdapterStore
from realm.lora.stored import GGUF_FILE, Record

LIMITS = StoreLimits(max_adapters=3, max_adapter_bytes=100, max_bytes=250)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def open_store(root: Path) -> Iterator[Callable[[], AdapterStore]]:
    """Opens the store; closes it at the end."""
    with ExitStack() as stack:

        def open_store() -> AdapterStore:
            store = AdapterStore(root, LIMITS)
            stack.callback(store.close)
            return store

        yield open_store


@pytest.fixture
def store(open_store: Callable[[], AdapterStore]) -> AdapterStore:
    return open_store()


def put(store: AdapterStore, name: str, data: bytes = b"x" * 60) -> Record:
    with store.receive(name) as incoming:
        incoming.write(incoming.create(GGUF_FILE), data)
        incoming.check_complete()
        return store.commit(incoming, content_hash=f"hash-{len(data)}", fingerprint="f", ranks={"output": 4})[0]


def objects(store: AdapterStore) -> set[str]:
    return {path.name for path in (store.root / "objects").iterdir()}


def test_survives_a_restart(store: AdapterStore, open_store: Callable[[], AdapterStore]) -> None:
    record = put(store, "a")
    store.update("a", loaded=False, pinned=True)
    store.write_notes({"tenants": {"t": 1}})
    store.close()
    again = open_store()
    assert again.records == {"a": Record(**{**vars_of(record), "loaded": False, "pinned": True})}
    assert again.files("a").path.read_bytes() == b"x" * 60
    assert again.num_bytes == 60
    assert again.read_notes() == {"tenants": {"t": 1}}
    again.check_integrity()


def vars_of(record: Record) -> dict[str, object]:
    return {name: getattr(record, name) for name in Record.__slots__}


def test_limits(store: AdapterStore) -> None:
    with pytest.raises(PayloadTooLarge, match="limit of 100"):
        put(store, "big", b"x" * 101)
    for name in "ab":
        put(store, name, b"x" * 100)
    with pytest.raises(PayloadTooLarge, match="what the store has left, 50"):
        put(store, "c")
    put(store, "c", b"x" * 50)
    with pytest.raises(Conflict) as full:
        put(store, "c", b"x" * 50)
    assert full.value.code == "adapter_store_full"
    with pytest.raises(Conflict) as full:
        put(store, "d")
    assert full.value.code == "too_many_adapters"
    store.remove("a")
    put(store, "d")
    store.check_integrity()
    assert len(objects(store)) == 3


def test_open_uploads_count(store: AdapterStore) -> None:
    with store.receive("a"), store.receive("b"), store.receive("c") as third:
        assert third.room == 50
        with pytest.raises(Conflict), store.receive("d"):
            pass
        with pytest.raises(Conflict) as busy, store.receive("a"):
            pass
        assert busy.value.code == "adapter_busy"
    store.check_integrity()
    assert put(store, "a").num_bytes == 60


def test_an_upload_that_fails_leaves_nothing(store: AdapterStore) -> None:
    put(store, "a")
    with store.receive("a") as incoming:
        file = incoming.create(GGUF_FILE)
        incoming.write(file, b"half")
        with pytest.raises(PayloadTooLarge):
            incoming.write(file, b"x" * 100)
    store.check_integrity()
    assert store.files("a").path.read_bytes() == b"x" * 60


def test_files_stay_while_somebody_holds_them(store: AdapterStore) -> None:
    put(store, "a")
    held = store.files("a")
    put(store, "a", b"y" * 70)
    store.remove("a")
    assert held.path.read_bytes() == b"x" * 60
    assert store.num_bytes == 60
    del held
    gc.collect()
    store.sweep()
    assert (store.num_bytes, objects(store)) == (0, set())


def test_a_crash_leaves_the_old_or_the_new(
    store: AdapterStore, root: Path, open_store: Callable[[], AdapterStore]
) -> None:
    put(store, "a")
    put(store, "b")
    kept = store.record("a").object_id
    (root / "incoming" / "half").mkdir()
    (root / "objects" / "orphan").mkdir()
    (root / "names" / "b.json").write_text('{"name": ')
    (root / "names" / "c.json").write_text(json.dumps({"name": "../c"}))
    (root / "names" / "d.json").write_text(json.dumps({**vars_of(store.record("a")), "name": "d", "object_id": ".."}))
    (root / "names" / ".e.json.new").write_text("")
    store.close()
    again = open_store()
    assert set(again.records) == {"a"}
    assert objects(again) == {kept}
    again.check_integrity()


def test_one_process_at_a_time(store: AdapterStore, root: Path) -> None:
    with pytest.raises(InvalidRequest) as error:
        AdapterStore(root, LIMITS)
    assert error.value.code == "adapter_store_in_use"
    store.close()
    AdapterStore(root, LIMITS).close()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest, match="can't be used"):
        AdapterStore(tmp_path / "file" / "store")


@pytest.mark.parametrize("name", ["", "..", "../a", "a/b", ".a", "a\0", "x" * 129, "a.json/../b"])
def test_names_that_could_be_paths(store: AdapterStore, name: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        put(store, name)
    assert error.value.code == "invalid_adapter_name"
    with pytest.raises(NotFound):
        store.record(name)


def test_half_an_adapter(store: AdapterStore) -> None:
    with store.receive("a") as incoming:
        with pytest.raises(InvalidRequest, match="got nothing"):
            incoming.check_complete()
        incoming.create("adapter_config.json")
        with pytest.raises(InvalidRequest, match="twice"):
            incoming.create("adapter_config.json")
        with pytest.raises(InvalidRequest, match=r"got adapter_config\.json"):
            incoming.check_complete()
        incoming.create(GGUF_FILE)
        with pytest.raises(InvalidRequest, match="or one"):
            incoming.check_complete()

"""Uploaded adapters under requests that wait for them: what a request began with, it ends with."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime_harness import assert_idle, fake_runtime

from realm.core.errors import NotFound
from realm.gguf.reader import GGUFFile
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.lora.gguf_format import write_gguf_adapter
from realm.lora.store import AdapterStore
from realm.lora.stored import GGUF_FILE
from realm.runtime.adapter_library import AdapterLibrary
from realm.runtime.manager import RuntimeManager
from realm.testing.tiny import TinyModel, write_tiny_model

OPTIONS: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True, "seed": 1}


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.gguf", TinyModel())


@pytest.fixture
def runtime(model_path: Path) -> Iterator[RuntimeManager]:
    with fake_runtime(path=model_path, tiny=TinyModel()) as runtime:
        yield runtime


@pytest.fixture
def library(runtime: RuntimeManager, tmp_path: Path) -> Iterator[AdapterLibrary]:
    library = AdapterLibrary(runtime.model(), AdapterStore(tmp_path / "store"))
    yield library
    library.check_integrity()
    assert_idle(runtime.model())
    library.store.close()


def put(library: AdapterLibrary, model_path: Path, name: str, value: float) -> None:
    with GGUFFile.open(model_path) as file:
        base = BaseModel.from_gguf(file)
    weights = LoRAWeights(name, 2, 2.0)
    rows, columns = base.modules["output"]
    weights.add_layer_weights("output", np.full((2, columns), value), np.ones((rows, 2)))
    path = model_path.with_name("upload.gguf")
    write_gguf_adapter(weights.bind(base), path)
    with library.store.receive(name) as incoming:
        incoming.write(incoming.create(GGUF_FILE), path.read_bytes())
        library.put(incoming)


@pytest.mark.parametrize("then", ["delete", "unload", "replace"])
def test_a_request_that_waits_for_its_adapter_gets_it_whatever_becomes_of_the_name(
    runtime: RuntimeManager, library: AdapterLibrary, model_path: Path, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(library, model_path, "style", 1.0)
    expected = str(runtime.generate("hello", adapter="style", **OPTIONS))
    library.unload("style")  # out of the pool; the next request has to wait for a load
    put(library, model_path, "style", 1.0)
    executor = runtime.model().adapter_pool._executor
    pack, asked, release = executor.pack_adapter, threading.Event(), threading.Event()

    def slow_pack(layers: Any) -> Any:
        asked.set()
        assert release.wait(60)
        return pack(layers)

    monkeypatch.setattr(executor, "pack_adapter", slow_pack)
    future = runtime.submit("hello", adapter="style", **OPTIONS)
    assert asked.wait(60)
    if then == "delete":
        library.delete("style")
    elif then == "unload":
        library.unload("style")
    else:
        put(library, model_path, "style", 2.0)
    release.set()
    assert str(future.result(60)) == expected
    if then == "replace":
        assert str(runtime.generate("hello", adapter="style", **OPTIONS)) != expected
    else:
        with pytest.raises(NotFound):
            runtime.generate("hello", adapter="style", **OPTIONS)
    del future
    runtime.model().loop.call(gc.collect).result()
    library.store.sweep()
    assert len(list((library.store.root / "objects").iterdir())) == (0 if then == "delete" else 1)


def test_a_name_out_of_two_keeps_the_content_ready(
    runtime: RuntimeManager, library: AdapterLibrary, model_path: Path
) -> None:
    for name in ("one", "two"):
        put(library, model_path, name, 1.0)
    assert library.load("one").content_hash == library.load("two").content_hash
    assert runtime.model().adapter_pool.stats().num_loads == 1
    library.delete("one")
    assert library.info("two").state == "resident"
    assert str(runtime.generate("hello", adapter="two", **OPTIONS))
    library.delete("two")
    assert runtime.model().adapter_pool.stats().num_resident == 0

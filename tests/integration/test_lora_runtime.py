"""Adapters through the runtime: names come and go, streams end on what they began with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from realm.core.config import EngineConfig, ModelConfig
from realm.core.errors import InvalidRequest, NotFound
from realm.gguf.reader import GGUFFile
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.runtime.manager import RuntimeManager
from realm.testing.tiny import TinyModel, write_tiny_model

pytest.importorskip("realm._cpu", reason="the native module is not built")

OPTIONS = {"max_tokens": 80, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf", TinyModel())


def adapter(path: Path, name: str, seed: int) -> LoRAWeights:
    rng = np.random.default_rng(seed)
    with GGUFFile.open(path) as file:
        base = BaseModel.from_gguf(file)
    made = LoRAWeights(name, rank=8, alpha=16.0)
    for module, (rows, columns) in base.modules.items():
        made.add_layer_weights(module, rng.normal(0, columns**-0.5, (8, columns)), rng.normal(0, 0.2, (rows, 8)))
    return made


def runtime_of(path: Path, **limits: int) -> RuntimeManager:
    runtime = RuntimeManager(EngineConfig(num_threads=1, kv_block_tokens=16, **limits))
    runtime.set_default_model(ModelConfig(path, "tiny"))
    return runtime


def test_a_reload_and_an_unload_leave_open_streams_as_they_began(path: Path):
    with runtime_of(path) as runtime:
        runtime.load_lora_adapter(adapter(path, "style", 1))
        old = str(runtime.generate("abc", adapter="style", **OPTIONS))
        stream = runtime.stream("abc", adapter="style", **OPTIONS)
        first = str(next(stream))
        runtime.load_lora_adapter(adapter(path, "style", 2))
        new = str(runtime.generate("abc", adapter="style", **OPTIONS))
        second = runtime.stream("abc", adapter="style", **OPTIONS)
        beginning = str(next(second))
        runtime.unload_lora_adapter("style")
        assert first + "".join(map(str, stream)) == old != new
        assert beginning + "".join(map(str, second)) == new
        with pytest.raises(NotFound):
            runtime.generate("abc", adapter="style", **OPTIONS)


def test_more_adapters_than_fit_take_turns(path: Path):
    adapters = [adapter(path, f"a{i}", i) for i in range(4)]
    with runtime_of(path) as roomy:
        for made in adapters:
            roomy.load_lora_adapter(made)
        expected = [str(roomy.generate("abc", adapter=made.adapter_id, **OPTIONS)) for made in adapters]
        num_bytes = roomy.model().adapter_pool.stats().resident_bytes // 4
    assert len(set(expected)) == 4
    with runtime_of(path, adapter_cache_bytes=num_bytes) as runtime:
        for made in adapters:
            runtime.load_lora_adapter(made)
        order = [0, 1, 0, 2, 0, 3, 1, 0] * 3
        futures = [runtime.submit("abc", adapter=f"a{i}", **OPTIONS) for i in order]
        assert [str(future.result(60)) for future in futures] == [expected[i] for i in order]
        pool = runtime.model().adapter_pool
        pool.check_integrity()
        assert pool.stats().num_evictions > 0


def test_an_adapter_that_can_never_fit_is_refused(path: Path):
    with runtime_of(path, adapter_cache_bytes=100) as runtime:
        runtime.load_lora_adapter(adapter(path, "big", 1))
        with pytest.raises(InvalidRequest, match="the pool has 100"):
            runtime.generate("abc", adapter="big", **OPTIONS)
        with pytest.raises(InvalidRequest, match="the pool has 100"):
            runtime.pin_lora_adapter("big")


def test_tenants_get_their_adapter_and_pins_stay(path: Path):
    with runtime_of(path) as runtime:
        runtime.load_lora_adapter(adapter(path, "style", 1))
        runtime.set_tenant_lora_adapter("acme", "style")
        runtime.pin_lora_adapter("style")
        named = str(runtime.generate("abc", adapter="style", **OPTIONS))
        assert str(runtime.generate("abc", tenant="acme", **OPTIONS)) == named
        assert str(runtime.generate("abc", **OPTIONS)) != named
        assert runtime.model().adapter_pool.stats().num_pinned == 1


def test_the_same_prompt_shares_no_cached_block_between_adapters(path: Path):
    """Nor with a tenant of the same adapter: `cached_tokens` is what a caller could learn of others."""
    prompt = "a prompt of several blocks, so that there is something to find in the cache" * 2
    with runtime_of(path) as runtime:
        for name, seed in (("one", 1), ("two", 2), ("same", 1)):
            runtime.load_lora_adapter(adapter(path, name, seed))

        def cached_tokens(**options: str) -> int:
            return runtime.generate(prompt, max_tokens=1, temperature=0.0, **options).usage.cached_tokens

        assert cached_tokens() == 0
        assert cached_tokens(adapter="one") == 0
        assert cached_tokens(adapter="two") == 0
        assert cached_tokens(adapter="one", tenant="acme") == 0
        assert cached_tokens() > 0
        assert cached_tokens(adapter="two") > 0
        assert cached_tokens(adapter="same") > 0, "a name is an alias: content decides"

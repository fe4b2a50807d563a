"""Rows with different adapters in one step: the same bits in any company, close to the reference, no residue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.engine_harness import Driver, Result

from realm.core.config import EngineConfig, KVType
from realm.core.domain import cache_domain
from realm.core.quant import QuantType
from realm.core.types import AdapterRef, Request, SamplingParams
from realm.engine.engine import Engine
from realm.gguf.reader import GGUFFile
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.lora.merge import merge_adapter
from realm.lora.pool import AdapterPool
from realm.models.loader import Device, load_model
from realm.testing.batches import logits_in_chunks
from realm.testing.tiny import TinyModel, write_tiny_model

pytest.importorskip("realm._cpu", reason="the native module is not built")

MODELS = {
    "llama": TinyModel("llama", QuantType.Q4_1, {"token_embd": QuantType.Q8_0}),
    "qwen3": TinyModel("qwen3", QuantType.Q4_K, {"ffn_down": QuantType.Q6_K}),
    "gemma3": TinyModel("gemma3", QuantType.Q5_0, sliding_window=24),
    "floats": TinyModel("llama", QuantType.F32),
}
RANKS = (1, 4, 7, 8, 16, 20)
CONFIG = EngineConfig(max_batch_size=40, max_seq_len=128, kv_block_tokens=16, kv_cache_tokens=8192, num_threads=1)


def random_adapter(base: BaseModel, seed: int) -> LoRAWeights:
    """All matrices, or some of them; ranks differ between adapters, and within some.

    The elements of a change have a standard deviation of 0.08 / sqrt(K); the two styles that examples/train_adapter.py
    trains have 0.06 / sqrt(K) and 0.08 / sqrt(K).
    """
    rng = np.random.default_rng(seed)
    rank = RANKS[seed % len(RANKS)]
    adapter = LoRAWeights(f"a{seed}", rank, 2.0 * rank, architecture=base.architecture)
    for name, (rows, columns) in base.modules.items():
        if seed % 3 and rng.random() < 0.4:
            continue
        own = max(1, rank // 2) if seed % 4 == 3 and rng.random() < 0.5 else rank
        a, b = rng.normal(0, columns**-0.5, (own, columns)), rng.normal(0, 0.04, (rows, own)) / own**0.5
        adapter.add_layer_weights(name, a, b, 2.0)
    if seed % 2 and base.embedding is not None:
        rows, columns = base.embedding
        a, b = rng.normal(0, 1, (rank, columns)), rng.normal(0, 0.02, (rows, rank)) / rank**0.5
        adapter.add_layer_weights("token_embd", a, b, 2.0)
    return adapter


@pytest.fixture(scope="module", params=list(MODELS))
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf", MODELS[request.param])


@pytest.fixture(scope="module")
def adapters(path: Path) -> list[LoRAWeights]:
    with GGUFFile.open(path) as file:
        base = BaseModel.from_gguf(file)
    return [random_adapter(base, seed).bind(base) for seed in range(8)]


def ref_of(adapter: LoRAWeights) -> AdapterRef:
    return AdapterRef(adapter.adapter_id, adapter.content_hash)


def engine_of(
    path: Path, adapters: list[LoRAWeights], capacity: int = 1 << 30, **limits: object
) -> tuple[Engine, AdapterPool]:
    config = replace(CONFIG, **limits)
    loaded = load_model(path, config)
    by_hash = {adapter.content_hash: adapter for adapter in adapters}
    pool = AdapterPool(loaded.executor, by_hash.__getitem__, capacity, submit=lambda job: job())
    return Engine(loaded.executor, config, adapters=pool), pool


def requests(adapters: list[LoRAWeights], num: int, seed: int = 0) -> list[Request]:
    """Each adapter in turn, and every second request without one."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(num):
        adapter = adapters[i // 2 % len(adapters)] if i % 2 else None
        prompt = tuple(rng.integers(0, 256, rng.integers(1, 40)).tolist())
        params = SamplingParams(max_tokens=12, temperature=0.8 * (i % 3 == 0), seed=i, logprobs=3)
        domain = cache_domain("t", "m", adapter.content_hash if adapter else "", 1.0, "f16")
        made.append(Request(f"r{seed}.{i}", prompt, params, domain, adapter=ref_of(adapter) if adapter else None))
    return made


def bits(results: dict[str, Result]) -> dict[str, tuple[object, ...]]:
    return {name: (r.token_ids, r.logprobs, r.reason) for name, r in results.items()}


def alone(engine: Engine, wanted: list[Request]) -> dict[str, tuple[object, ...]]:
    found = {}
    for request in wanted:
        driver = Driver(engine)
        driver.add(request)
        found |= bits(driver.drain())
    return found


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_same_bits_alone_and_among_31_others(path: Path, adapters: list[LoRAWeights], num_threads: int):
    wanted = requests(adapters, 32)
    expected = alone(engine_of(path, adapters, prefix_cache=False)[0], wanted)
    engine, pool = engine_of(path, adapters, num_threads=num_threads, max_batch_tokens=64)
    driver = Driver(engine)
    driver.add(*wanted)
    assert bits(driver.drain()) == expected
    pool.check_integrity()


def test_chunked_prefill_and_prefix_hits_with_one_prompt_under_every_adapter(path: Path, adapters: list[LoRAWeights]):
    """Two rounds of the same 40 tokens: the first finds nothing of other adapters, the second its own."""
    prompt = tuple(np.random.default_rng(5).integers(0, 256, 40).tolist())
    wanted = [replace(r, prompt_token_ids=prompt) for r in requests(adapters, 16)]
    wanted = list({r.cache_domain: r for r in wanted}.values())
    assert len(wanted) == len(adapters) + 1
    expected = alone(engine_of(path, adapters, prefix_cache=False)[0], wanted)
    engine, pool = engine_of(path, adapters, max_batch_tokens=24, max_batch_size=20)
    for cached_tokens in (0, 32):  # whole blocks of 16
        driver = Driver(engine)
        driver.add(*wanted)
        results = driver.drain()
        assert bits(results) == expected
        assert {r.usage.cached_tokens for r in results.values()} == {cached_tokens}
    pool.check_integrity()


def test_every_adapter_changes_the_output(path: Path, adapters: list[LoRAWeights]):
    engine, _ = engine_of(path, adapters)
    base = requests(adapters, 1)[0]
    outputs = {
        name: result
        for adapter in [None, *adapters]
        for name, result in alone(
            engine, [replace(base, request_id=str(adapter and adapter.adapter_id), adapter=adapter and ref_of(adapter),
                             cache_domain=str(adapter and adapter.adapter_id).encode())]
        ).items()
    }  # fmt: skip
    assert len({repr(output) for output in outputs.values()}) == len(adapters) + 1


def test_evicted_and_reloaded_without_residue(path: Path, adapters: list[LoRAWeights]):
    """A pool for about one adapter at a time: the sequence a, b, a, c, none, ... leaves every output as it was."""
    wanted = [r for seed in range(2) for r in requests(adapters, 16, seed)]
    expected = alone(engine_of(path, adapters, prefix_cache=False)[0], wanted)
    engine, pool = engine_of(path, adapters, prefix_cache=False)
    largest = max(engine._executor.adapter_bytes(adapter.layers) for adapter in adapters)
    engine, pool = engine_of(path, adapters, largest, prefix_cache=False)
    assert alone(engine, wanted) == expected
    assert pool.stats().num_evictions >= 8
    driver = Driver(engine)
    driver.add(*wanted)
    assert bits(driver.drain()) == expected
    pool.check_integrity()
    assert pool.stats().resident_bytes <= largest


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def test_close_to_the_reference(path: Path, adapters: list[LoRAWeights]):
    """Adapters change a lot, and then the logits are about as close as the base model's own, up to its quantising."""
    ids = np.random.default_rng(3).integers(0, 256, 60).tolist()
    config = replace(CONFIG, kv_type=KVType.F32)
    devices: tuple[Device, ...] = ("cpu", "reference")
    executors = {device: load_model(path, config, device).executor for device in devices}
    errors, changes, base = [], [], None
    for slot, adapter in enumerate([None, *adapters]):
        logits = {}
        for device, executor in executors.items():
            if adapter is not None:
                executor.set_adapter(slot, executor.pack_adapter(adapter.layers))
            chunks = logits_in_chunks(executor, ids, 16, 16, adapter_slot=-1 if adapter is None else slot)
            logits[device] = np.concatenate([chunk.copy() for chunk in chunks])
        exact = logits["reference"]
        base = exact if base is None else base
        errors.append(rms(logits["cpu"] - exact) / rms(exact))
        changes.append(rms(exact - base) / rms(base))
    assert min(changes[1:]) >= 0.1, changes
    assert max(errors[1:]) <= max(1e-6, 1.5 * errors[0]), errors


def test_merged_equals_the_side_path_on_floats(tmp_path: Path):
    path = write_tiny_model(tmp_path / "tiny.gguf", MODELS["floats"])
    ids = np.random.default_rng(3).integers(0, 256, 40).tolist()
    config = replace(CONFIG, kv_type=KVType.F32)
    with GGUFFile.open(path) as file:
        adapter = random_adapter(BaseModel.from_gguf(file), 5).bind(BaseModel.from_gguf(file))
        merge_adapter(file, adapter, tmp_path / "merged.gguf")
    for device in ("cpu", "reference"):
        side, merged = load_model(path, config, device), load_model(tmp_path / "merged.gguf", config, device)
        side.executor.set_adapter(3, side.executor.pack_adapter(adapter.layers))
        got = np.concatenate([c.copy() for c in logits_in_chunks(side.executor, ids, 16, 16, adapter_slot=3)])
        expected = np.concatenate([c.copy() for c in logits_in_chunks(merged.executor, ids, 16, 16)])
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()

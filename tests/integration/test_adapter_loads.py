"""Loads happen beside the steps: counted in steps, never in time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.engine_harness import Driver, request_of

from realm.core.config import EngineConfig
from realm.core.domain import cache_domain
from realm.core.types import AdapterRef, FinishReason, Request
from realm.engine.engine import Engine
from realm.lora.adapter import LoRAWeights
from realm.lora.pool import AdapterPool
from realm.testing.fake import FakeExecutor

NUM_ADAPTERS = 5


def adapter(seed: int) -> LoRAWeights:
    weights = LoRAWeights(f"a{seed}", rank=2, alpha=2)
    weights.add_layer_weights("x", np.full((2, 8), seed + 1.0), np.ones((8, 2)))
    return weights


class Bench:
    """An engine with a real pool, whose loads end when the test says so."""

    def __init__(self, num_resident: int, max_batch_size: int = 4) -> None:
        self.weights = [adapter(i) for i in range(NUM_ADAPTERS)]
        by_hash = {w.content_hash: w for w in self.weights}
        self.jobs: list[Callable[[], None]] = []
        executor = FakeExecutor(num_kv_blocks=256)
        size = executor.adapter_bytes(self.weights[0].layers)
        self.pool = AdapterPool(executor, by_hash.__getitem__, num_resident * size, submit=self.jobs.append)
        config = EngineConfig(max_batch_size=max_batch_size, kv_block_tokens=16, max_queued=1000, num_threads=1)
        self.driver = Driver(Engine(executor, config, adapters=self.pool))

    def request(self, name: str, number: int | None, **params: Any) -> Request:
        ref = None if number is None else AdapterRef(f"a{number}", self.weights[number].content_hash)
        domain = cache_domain("t", "m", ref.content_hash if ref else "", 1.0, "f16")
        return request_of(name, 20, adapter=ref, domain=domain, **params)

    def finish_loads(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()


def test_a_load_costs_other_streams_no_step() -> None:
    bench = Bench(2)
    driver = bench.driver
    driver.add(bench.request("base", None, max_tokens=100), bench.request("other", 0, max_tokens=100))
    driver.step()
    bench.finish_loads()
    driver.step()
    driver.add(bench.request("missing", 1))
    before = {name: len(driver.results[name].token_ids) for name in ("base", "other")}
    for _ in range(50):
        driver.step()  # the load goes on all the while
    assert {name: len(driver.results[name].token_ids) - n for name, n in before.items()} == {"base": 50, "other": 50}
    assert driver.results["missing"].token_ids == []
    bench.finish_loads()
    driver.step()
    assert len(driver.results["missing"].token_ids) == 1, "it is let in with the first step after its load"
    assert {name: len(driver.results[name].token_ids) - n for name, n in before.items()} == {"base": 51, "other": 51}
    driver.drain()


def test_all_waiting_for_a_load_is_a_stall_and_no_busy_loop() -> None:
    bench = Bench(2)
    bench.driver.add(bench.request("only", 0))
    bench.driver.step()
    assert bench.driver.engine.is_stalled
    bench.finish_loads()
    bench.driver.drain()


@pytest.mark.parametrize("seed", range(8))
def test_random_traces_end_with_the_right_output_and_nobody_waits_for_ever(seed: int) -> None:
    """More adapters than fit, loads of random length; some sequences are hot, so that the others could be starved."""
    rng = np.random.default_rng(seed)
    bench = Bench(int(rng.integers(1, 4)), max_batch_size=3)
    driver, arrived, began = bench.driver, {}, {}
    popularity = rng.dirichlet(np.full(NUM_ADAPTERS, 0.5))
    requests = {}
    for number in range(120):
        adapter = None if rng.random() < 0.2 else int(rng.choice(NUM_ADAPTERS, p=popularity))
        requests[f"r{number}"] = bench.request(f"r{number}", adapter, max_tokens=int(rng.integers(1, 6)))
    waiting = list(requests)
    for step in range(5000):
        while waiting and rng.random() < 0.4:
            arrived[waiting[0]] = step
            driver.add(requests[waiting.pop(0)])
        if bench.jobs and rng.random() < 0.3:
            bench.jobs.pop(0)()
        driver.step()
        bench.pool.check_integrity()
        for name, result in driver.results.items():
            if result.token_ids:
                began.setdefault(name, step)
        if not waiting and not driver.engine.has_work:
            break
    assert not driver.engine.has_work
    assert all(result.reason is FinishReason.LENGTH for result in driver.results.values())
    order = list(requests)
    for position, name in enumerate(order):
        passed_by = [other for other in order[position + 1 :] if began[other] < began[name]]
        loads_of_own = 3 * 2  # what was let in before it was overdue, and what had a place by then
        assert len([o for o in passed_by if requests[o].adapter]) <= loads_of_own + 3, (name, passed_by)
    alone = Bench(NUM_ADAPTERS)
    alone.driver.add(*requests.values())
    while alone.driver.engine.has_work:
        alone.finish_loads()
        alone.driver.step()
    assert {n: r.token_ids for n, r in alone.driver.results.items()} == {
        n: r.token_ids for n, r in driver.results.items()
    }


def test_a_load_that_blocks_its_thread_does_not_block_the_engines() -> None:
    """The same over the pool's own thread."""
    weights = adapter(0)
    release, executor = threading.Event(), FakeExecutor(num_kv_blocks=64)
    pack = executor.pack_adapter

    def slow_pack(layers: Any) -> str:
        assert release.wait(60)
        return pack(layers)

    executor.pack_adapter = slow_pack  # type: ignore[method-assign]
    pool = AdapterPool(executor, {weights.content_hash: weights}.__getitem__, 1 << 20)
    ready = threading.Event()
    pool.on_ready = ready.set
    config = EngineConfig(max_batch_size=4, kv_block_tokens=16, num_threads=1)
    driver = Driver(Engine(executor, config, adapters=pool))
    driver.add(request_of("base", max_tokens=40), request_of("a", adapter=AdapterRef("a", weights.content_hash)))
    for _ in range(30):
        driver.step()
    assert len(driver.results["base"].token_ids) == 30
    assert driver.results["a"].token_ids == []
    release.set()
    assert ready.wait(60)
    driver.drain()
    assert len(driver.results["a"].token_ids) == 8
    pool.close()

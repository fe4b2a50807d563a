from __future__ import annotations

import pytest
from tests.engine_harness import Driver, make_engine, request_of

from realm.core.config import EngineConfig
from realm.core.errors import NotFound
from realm.core.types import AdapterRef, FinishReason
from realm.testing.fake import FakeExecutor

A, B, C = (AdapterRef(name, name * 64) for name in "abc")


class Slots:
    """A pool of `num_slots`, which knows no adapter called c after its file was deleted."""

    def __init__(self, num_slots: int) -> None:
        self.resident: dict[int, str] = {}
        self.pins = [0] * num_slots
        self.deleted = False

    def check(self, ref: AdapterRef) -> None:
        if ref.name == "unknown":
            raise NotFound("no adapter 'unknown'")

    def acquire(self, ref: AdapterRef) -> int | None:
        if self.deleted and ref == C:
            raise NotFound("adapter 'c' is gone")
        for slot, content in self.resident.items():
            if content == ref.content_hash:
                self.pins[slot] += 1
                return slot
        for slot, pins in enumerate(self.pins):
            if pins == 0:
                self.resident[slot] = ref.content_hash
                self.pins[slot] = 1
                return slot
        return None

    def release(self, slot: int) -> None:
        self.pins[slot] -= 1


def driver_with(slots: Slots, max_batch_size: int = 4) -> Driver:
    config = EngineConfig(max_batch_size=max_batch_size, kv_block_tokens=16, max_queued=1000, num_threads=1)
    executor = FakeExecutor(num_kv_blocks=64, adapters=slots.resident)
    return Driver(make_engine(config, executor=executor, adapters=slots))


def test_steps_without_adapters_never_ask_the_pool():
    """So that a pool costs nothing where nobody uses it."""

    class Untouchable(Slots):
        def acquire(self, ref: AdapterRef) -> int | None:
            raise AssertionError("asked for an adapter")

        release = check = acquire  # type: ignore[assignment]

    driver = driver_with(Untouchable(2))
    driver.add(*(request_of(f"base {i}", 20) for i in range(6)))  # more than the batch has places
    assert {result.reason for result in driver.drain().values()} == {FinishReason.LENGTH}


def test_adapters_share_steps_and_slots_are_given_back():
    slots = Slots(2)
    driver = driver_with(slots)
    driver.add(request_of("a", 20, adapter=A), request_of("b", 20, adapter=B), request_of("base", 20))
    driver.step()
    assert slots.pins == [1, 1]
    driver.drain()
    assert slots.pins == [0, 0]
    assert driver.engine.stats().num_steps == 8


def test_adapters_change_the_output_and_never_share_kv():
    prompt = tuple(range(40))
    driver = driver_with(Slots(2))
    for name, adapter in (("a", A), ("b", B), ("base", None), ("again", A)):
        domain = adapter.content_hash.encode() if adapter else b""
        driver.add(request_of(name, prompt, adapter=adapter, domain=domain))
        driver.drain()
    results = driver.results
    assert results["a"].token_ids == results["again"].token_ids
    assert results["again"].usage.cached_tokens == 32
    assert results["b"].usage.cached_tokens == results["base"].usage.cached_tokens == 0
    assert len({tuple(results[name].token_ids) for name in ("a", "b", "base")}) == 3


def test_waiting_for_a_slot_doesnt_hold_up_others():
    driver = driver_with(Slots(1))
    driver.add(request_of("a", adapter=A, max_tokens=30), request_of("b", adapter=B), request_of("base"))
    while driver.results["base"].reason is None:
        driver.step()
    assert driver.results["b"].token_ids == []
    assert driver.results["a"].reason is None
    driver.drain()


def test_a_stream_of_one_adapter_cannot_starve_another():
    slots = Slots(1)
    driver = driver_with(slots, max_batch_size=2)
    driver.add(request_of("a0", adapter=A), request_of("b", adapter=B))
    num_admitted_before = 0
    for i in range(1, 40):
        driver.add(request_of(f"a{i}", adapter=A))
        for _ in range(4):
            driver.step()
        if driver.results["b"].token_ids:
            break
        num_admitted_before = i
    assert driver.results["b"].token_ids, "b was starved"
    assert num_admitted_before < 12
    driver.drain()
    assert slots.pins == [0]


def test_an_adapter_that_vanishes_ends_its_requests_only():
    slots = Slots(1)
    driver = driver_with(slots)
    driver.add(request_of("c", adapter=C), request_of("a", adapter=A))
    slots.deleted = True
    results = driver.drain()
    assert (results["c"].reason, results["c"].error.code) == (FinishReason.ERROR, "not_found")
    assert results["a"].reason is FinishReason.LENGTH


def test_unknown_adapters_are_refused_on_arrival():
    driver = driver_with(Slots(1))
    with pytest.raises(NotFound):
        driver.engine.add(request_of("r", adapter=AdapterRef("unknown", "0")))
    assert not driver.engine.has_work


def test_preempted_requests_release_their_slot():
    slots = Slots(4)
    config = EngineConfig(max_batch_size=4, kv_block_tokens=16, num_threads=1)
    executor = FakeExecutor(num_kv_blocks=8, adapters=slots.resident)
    driver = Driver(make_engine(config, executor=executor, adapters=slots))
    driver.add(*[request_of(f"r{i}", 20, max_tokens=60, adapter=ref) for i, ref in enumerate((A, B, C, A))])
    while not driver.engine.stats().num_preemptions:
        driver.step()
        assert sum(slots.pins) == driver.engine.stats().num_running
    driver.drain()
    assert slots.pins == [0, 0, 0, 0]

"""The pool over an executor without weights: what is ready, what gives way, what is counted."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest

from realm.core.errors import InvalidRequest, ModelFileError, NotFound
from realm.core.types import AdapterRef
from realm.kernels.ops import LoRALayer
from realm.lora.adapter import LoRAWeights
from realm.lora.pool import AdapterPool
from realm.testing.fake import FakeExecutor

SIZE = 4 * (2 * 8 + 8 * 2)  # bytes of one adapter


class Stored:
    """Weights that can fail to be read."""

    def __init__(self, weights: LoRAWeights, fails: bool = False) -> None:
        self.weights, self.fails = weights, fails

    @property
    def outline(self) -> object:
        return self.weights.outline

    @property
    def layers(self) -> object:
        if self.fails:
            raise ModelFileError("the file is gone", code="adapter_corrupt")
        return self.weights.layers


def adapter(value: float) -> LoRAWeights:
    weights = LoRAWeights("a", rank=2, alpha=2)
    weights.add_layer_weights("x", np.full((2, 8), value), np.ones((8, 2)))
    return weights


class Bench:
    """A pool whose jobs run when the test says so."""

    def __init__(self, capacity: int, **options: int) -> None:
        self.jobs: list[Callable[[], None]] = []
        self.sources: dict[str, Stored] = {}
        self.executor = FakeExecutor()
        self.pool = AdapterPool(
            self.executor, self.sources.__getitem__, capacity * SIZE, submit=self.jobs.append, **options
        )

    def add(self, name: str, fails: bool = False) -> AdapterRef:
        weights = adapter(sum(name.encode()))
        self.sources[weights.content_hash] = Stored(weights, fails)
        return AdapterRef(name, weights.content_hash)

    def run(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()
        self.pool.check_integrity()

    def use(self, ref: AdapterRef) -> int:
        """Acquire, waiting for the load."""
        slot = self.pool.acquire(ref)
        if slot is None:
            self.run()
            slot = self.pool.acquire(ref)
        assert slot is not None
        return slot


def test_a_load_waits_for_nobody_and_is_counted_once() -> None:
    bench = Bench(2)
    a = bench.add("a")
    for _ in range(5):
        assert bench.pool.acquire(a) is None
    assert len(bench.jobs) == 1
    bench.run()
    slots = [bench.pool.acquire(a), bench.pool.acquire(a)]
    assert slots[0] == slots[1] is not None
    stats = bench.pool.stats()
    assert (stats.num_misses, stats.num_hits, stats.num_loads, stats.resident_bytes) == (1, 1, 1, SIZE)
    assert bench.pool.num_users(a) == 2


def test_the_least_recently_used_gives_way_and_what_is_in_use_does_not() -> None:
    bench = Bench(2)
    a, b, c, d = (bench.add(name) for name in "abcd")
    held = bench.use(a)
    bench.pool.release(bench.use(b))
    assert bench.pool.acquire(c) is None
    bench.run()
    assert not bench.pool.is_resident(b)
    bench.pool.acquire(c)
    assert bench.pool.acquire(d) is None, "both are in use"
    assert not bench.jobs
    bench.pool.release(held)
    assert bench.pool.acquire(d) is None
    assert len(bench.jobs) == 1
    bench.run()
    assert bench.pool.is_resident(d)
    assert bench.pool.stats().num_evictions == 2
    assert set(bench.executor.adapters) == {s for s, e in bench.pool._by_slot.items() if e.installed}


def test_a_failed_load_is_told_once_and_leaves_nothing() -> None:
    bench = Bench(1)
    bad, good = bench.add("bad", fails=True), bench.add("good")
    assert bench.pool.acquire(bad) is None
    bench.run()
    assert bench.pool.failure(bad).code == "adapter_corrupt"
    with pytest.raises(ModelFileError):
        bench.pool.acquire(bad)
    assert bench.pool.stats().resident_bytes == 0
    assert bench.pool.acquire(bad) is None  # a later request tries again; nobody comes back for the result
    bench.run()
    assert bench.use(good) >= 0


def test_pins_stay_and_take_half_at_most() -> None:
    bench = Bench(4)
    refs = [bench.add(name) for name in "abcdefg"]
    bench.pool.pin(refs[0])
    bench.pool.pin(refs[1])
    bench.pool.pin(refs[1])
    with pytest.raises(InvalidRequest) as error:
        bench.pool.pin(refs[2])
    assert error.value.code == "adapter_pool_full"
    assert bench.pool.prefetch(refs[0])
    bench.run()
    for ref in refs[2:]:
        bench.pool.release(bench.use(ref))
    assert bench.pool.is_resident(refs[0])
    bench.pool.unpin(refs[0])
    for ref in refs[2:]:
        bench.pool.release(bench.use(ref))
    assert not bench.pool.is_resident(refs[0])


def test_discard_waits_for_the_last_user() -> None:
    bench = Bench(2)
    a, b = bench.add("a"), bench.add("b")
    slot = bench.use(a)
    bench.pool.discard(a)
    assert bench.pool.is_resident(a)
    bench.pool.release(slot)
    assert not bench.pool.is_resident(a)
    assert bench.executor.adapters == {}
    assert bench.pool.prefetch(b)
    bench.pool.discard(b)  # while it is being loaded
    bench.run()
    assert bench.pool.stats().num_resident == 0
    bench.pool.discard(b)


def test_a_discard_does_not_take_what_a_request_waits_for() -> None:
    bench = Bench(2)
    a = bench.add("a")
    assert bench.pool.acquire(a) is None
    bench.pool.discard(a)
    bench.run()
    slot = bench.pool.acquire(a)
    assert slot is not None
    bench.pool.release(slot)
    assert bench.pool.stats().num_resident == 0


def test_what_can_never_fit_is_refused_when_it_arrives() -> None:
    bench = Bench(1)
    weights = LoRAWeights("big", rank=2, alpha=2)
    weights.add_layer_weights("x", np.ones((2, 80)), np.ones((8, 2)))
    bench.sources["big"] = Stored(weights)
    with pytest.raises(InvalidRequest) as error:
        bench.pool.check(AdapterRef("big", "big"))
    assert error.value.code == "adapter_too_large"
    with pytest.raises(InvalidRequest):
        bench.pool.check_fits("big", bench.sources["big"])
    with pytest.raises(NotFound):
        bench.pool.check(AdapterRef("gone", "gone"))


def test_a_scale_is_another_adapter() -> None:
    bench = Bench(4)
    a = bench.add("a")
    twice = AdapterRef("a", a.content_hash, 2.0)
    slots = {bench.use(a), bench.use(twice)}
    assert len(slots) == 2
    assert len(set(bench.executor.adapters.values())) == 2


def test_slots_run_out_like_bytes() -> None:
    bench = Bench(100, num_slots=2)
    refs = [bench.add(name) for name in "abc"]
    slots = [bench.use(ref) for ref in refs[:2]]
    assert bench.pool.acquire(refs[2]) is None
    assert not bench.pool.prefetch(refs[2])
    bench.pool.release(slots[0])
    assert bench.use(refs[2]) == slots[0]


def test_sizes_are_not_kept_for_what_is_gone() -> None:
    bench = Bench(4)
    a = bench.add("a")
    assert bench.pool.packed_bytes(a) == SIZE
    bench.sources.clear()
    gc.collect()
    with pytest.raises(NotFound):
        bench.pool.packed_bytes(a)


def test_an_outline_has_the_shapes_of_the_layers() -> None:
    weights = adapter(1)
    shapes = [{k: (x.a.shape, x.b.shape) for k, x in y.items()} for y in (weights.outline, weights.layers)]
    assert shapes[0] == shapes[1]
    assert isinstance(weights.outline["x"], LoRALayer)

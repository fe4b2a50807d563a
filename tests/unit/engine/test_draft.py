"""A draft model beside a target: what it drafts, what it keeps, and what is left when requests end."""

from __future__ import annotations

import numpy as np
import pytest
from tests.engine_harness import Driver, alone, make_engine, request_of
from tests.speculation_harness import FakeDraft, always_draft, draft_proposer_of

from realm.core.config import EngineConfig, SpeculativeConfig
from realm.core.types import Batch, FinishReason, Request
from realm.engine.engine import Engine
from realm.models.draft import DraftModel
from realm.testing.clock import FakeClock
from realm.testing.fake import FakeExecutor

DRAFT_ONLY = SpeculativeConfig(lookup=False, draft_k=4, max_draft_tokens=8)
CONFIG = EngineConfig(kv_block_tokens=16, num_threads=1, speculative=DRAFT_ONLY)


def engine_with(draft: FakeDraft, config: EngineConfig = CONFIG, **options: object) -> Engine:
    token_ids = options.pop("token_ids", None)
    return always_draft(make_engine(config, draft=DraftModel(draft, token_ids), **options))


def run(draft: FakeDraft, *requests: Request, **options: object) -> Driver:
    driver = Driver(engine_with(draft, **options))
    driver.add(*requests)
    driver.drain()
    assert not draft.failures
    proposer = draft_proposer_of(driver.engine)
    assert proposer.kv.pool.num_used == 0, "draft KV is left"
    assert not proposer._states
    return driver


def tokens(driver: Driver) -> dict[str, list[int]]:
    return {name: result.token_ids for name, result in driver.results.items()}


REQUESTS = [request_of(f"r{i}", 5 + 7 * i, max_tokens=40, ignore_eos=True) for i in range(5)]
EXPECTED = {request.request_id: alone(request).token_ids for request in REQUESTS}


def test_a_draft_that_is_always_right_saves_steps():
    driver = run(FakeDraft(), *REQUESTS)
    assert tokens(driver) == EXPECTED
    stats = driver.engine.stats()
    assert stats.num_accepted_tokens == stats.num_drafted_tokens > 0
    assert stats.num_steps <= 1 + -(-(39 - 5) // 9) + 2
    assert stats.drafted_by("draft") == stats.num_drafted_tokens


def test_a_draft_that_is_always_wrong_changes_nothing():
    driver = run(FakeDraft(wrong=True), *REQUESTS)
    assert tokens(driver) == EXPECTED
    stats = driver.engine.stats()
    assert stats.num_drafted_tokens > 0
    assert stats.num_accepted_tokens == 0
    assert stats.num_steps == 40


def test_a_draft_of_few_tokens_proposes_only_those():
    """Its logits cover 16 tokens of the target's 64, which have other ids there."""
    token_ids = np.arange(3, 64, 4, dtype=np.int32)
    drafted: set[int] = set()

    def on_step(batch: Batch) -> None:
        drafted.update(batch.token_ids.tolist())

    draft = FakeDraft(num_proposable=16)
    driver = run(draft, REQUESTS[0], token_ids=token_ids, executor=FakeExecutor(on_step=on_step))
    assert tokens(driver)["r0"] == EXPECTED["r0"]
    assert driver.engine.stats().num_drafted_tokens > 0
    seen = {*REQUESTS[0].prompt_token_ids, *EXPECTED["r0"]}
    assert drafted - seen <= set(token_ids.tolist())


def test_the_first_draft_of_a_request_is_of_draft_k_tokens_at_most():
    longest: list[int] = []
    executor = FakeExecutor(on_step=lambda batch: longest.append(int(np.diff(batch.query_starts).max())))
    run(FakeDraft(), REQUESTS[0], executor=executor)
    assert longest[1:4] == [5, 9, 9]


def test_a_request_may_have_shorter_drafts():
    request = request_of("r", 20, max_tokens=20, max_draft_tokens=2)
    widths: list[int] = []
    run(FakeDraft(), request, executor=FakeExecutor(on_step=lambda batch: widths.append(len(batch.token_ids))))
    assert max(widths[1:]) == 3


def test_a_small_pool_is_shared_in_turns():
    """Room for two requests at a time: the others go on without drafts, and all end as they would alone."""
    driver = run(FakeDraft(num_kv_blocks=6), *REQUESTS)
    assert tokens(driver) == EXPECTED
    assert driver.engine.stats().num_accepted_tokens > 0


def test_a_pool_too_small_for_anyone_gives_no_drafts():
    driver = run(FakeDraft(num_kv_blocks=1), *REQUESTS[2:])
    assert tokens(driver) == {name: EXPECTED[name] for name in ("r2", "r3", "r4")}
    assert driver.engine.stats().num_drafted_tokens == 0


def test_preemption_in_the_target_leaves_the_draft_right():
    """9 blocks of 16 for five requests that come to need 21: they are preempted, come back, and draft on."""
    draft = FakeDraft()
    driver = run(draft, *REQUESTS, num_kv_blocks=9)
    assert driver.engine.stats().num_preemptions > 0
    assert tokens(driver) == EXPECTED
    stats = driver.engine.stats()
    assert stats.num_accepted_tokens == stats.num_drafted_tokens > 0, "drafts were made from the wrong KV"


@pytest.mark.parametrize("end", ["cancel", "finish", "deadline", "shut_down", "device"])
def test_a_request_that_ends_in_the_middle_leaves_nothing(end: str):
    """Ended right after a step that verified drafts, or by the step itself."""
    failing = False

    def on_step(batch: Batch) -> None:
        if failing:
            raise RuntimeError("device lost")

    clock = FakeClock()
    draft = FakeDraft()
    engine = engine_with(draft, clock=clock, executor=FakeExecutor(on_step=on_step))
    driver = Driver(engine)
    driver.add(*[request_of(r.request_id, r.prompt_token_ids, max_tokens=40, deadline=50.0) for r in REQUESTS])
    for _ in range(4):
        driver.step()
    assert engine.stats().num_accepted_tokens > 0
    assert draft_proposer_of(engine).kv.pool.num_used > 0
    if end == "cancel":
        for name in driver.results:
            engine.cancel(name)
    elif end == "finish":
        for name in driver.results:
            engine.finish(name)
    elif end == "deadline":
        clock.advance(100.0)
    elif end == "device":
        failing = True
        driver.step()
    else:
        outputs = engine.shut_down()
        assert [output.finish_reason for output in outputs] == [FinishReason.ERROR] * len(REQUESTS)
        engine.check_integrity()
        assert engine.stats().kv_blocks_used == 0
    if end != "shut_down":
        driver.drain()
        for name, result in driver.results.items():
            assert result.token_ids == EXPECTED[name][: len(result.token_ids)]
    proposer = draft_proposer_of(engine)
    assert proposer.kv.pool.num_used == 0
    assert not proposer._states
    assert not draft.failures


def test_a_draft_model_that_fails_costs_only_its_drafts(caplog: pytest.LogCaptureFixture):
    calls = 0

    class Failing(FakeDraft):
        def step(self, batch: Batch) -> np.ndarray:
            nonlocal calls
            calls += 1
            if calls % 3 == 0:
                raise RuntimeError("out of memory")
            return super().step(batch)

    driver = run(Failing(), *REQUESTS)
    assert tokens(driver) == EXPECTED
    stats = driver.engine.stats()
    assert stats.num_accepted_tokens == stats.num_drafted_tokens > 0, "what a failed step left was used"
    assert "the source 'draft' failed" in caplog.text


def test_logits_that_are_not_finite_are_no_drafts_to_trust():
    class Broken(FakeDraft):
        def step(self, batch: Batch) -> np.ndarray:
            return np.full_like(super().step(batch), np.nan)

    assert tokens(run(Broken(), *REQUESTS)) == EXPECTED


def test_lookup_goes_first_and_the_draft_model_fills_in():
    config = EngineConfig(kv_block_tokens=16, num_threads=1, speculative=SpeculativeConfig())
    repeated = request_of("same", [5, 6] * 10, max_tokens=40, logit_bias={9: 100.0})
    draft = FakeDraft()
    driver = run(draft, repeated, *REQUESTS, config=config)
    stats = driver.engine.stats()
    assert stats.accepted_by("lookup") > 0
    assert stats.accepted_by("draft") > 0
    assert driver.results["same"].token_ids == [9] * 40
    assert {name: tokens(driver)[name] for name in EXPECTED} == EXPECTED


def test_a_request_that_refuses_drafts_is_not_computed_by_the_draft_model():
    draft = FakeDraft()
    run(draft, request_of("r", 20, max_tokens=20, speculate=False))
    assert draft.num_steps == 0

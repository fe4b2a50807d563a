from __future__ import annotations

import pytest
from tests.engine_harness import Driver, ScriptedProposer, alone, assert_idle, make_engine, prompt_of, request_of
from tests.speculation_harness import always_draft

from realm.core.config import EngineConfig, SpeculativeConfig
from realm.core.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
    Unavailable,
    UnsupportedParameter,
)
from realm.core.types import AdapterRef, Batch, FinishReason, Request
from realm.engine.sequence import Sequence
from realm.testing.clock import FakeClock
from realm.testing.fake import FakeExecutor

SMALL = EngineConfig(max_batch_size=4, max_batch_tokens=24, kv_block_tokens=16, max_queued=3, num_threads=1)
SAMPLED = {"temperature": 0.9, "top_p": 0.9, "seed": 7, "repetition_penalty": 1.2, "logprobs": 2}


def run(*requests: Request, **options: object) -> Driver:
    driver = Driver(make_engine(**options))  # type: ignore[arg-type]
    driver.add(*requests)
    driver.drain()
    return driver


def test_batched_equals_alone_in_far_fewer_steps():
    requests = [request_of(f"r{i}", 10 + 2 * i, max_tokens=24, **({} if i % 2 else SAMPLED)) for i in range(16)]
    driver = run(*requests)
    num_steps_alone = 0
    for request in requests:
        single = run(request)
        assert single.results == {request.request_id: driver.results[request.request_id]}
        num_steps_alone += single.engine.stats().num_steps
    assert driver.engine.stats().num_steps * 8 <= num_steps_alone


@pytest.mark.parametrize("max_batch_tokens", [4, 7, 16, 33, 512])
def test_chunked_prefill_changes_nothing(max_batch_tokens: int):
    requests = [request_of(f"r{i}", 50 + i, **SAMPLED) for i in range(3)]
    config = EngineConfig(max_batch_size=3, max_batch_tokens=max_batch_tokens, kv_block_tokens=16, num_threads=1)
    driver = run(*requests, config=config)
    for request in requests:
        assert driver.results[request.request_id] == alone(request)


def test_preemption_changes_nothing():
    requests = [request_of(f"r{i}", 20, max_tokens=60, **SAMPLED) for i in range(4)]
    driver = run(*requests, config=SMALL, num_kv_blocks=8)
    assert driver.engine.stats().num_preemptions > 0
    for request in requests:
        result, expected = driver.results[request.request_id], alone(request)
        assert (result.token_ids, result.logprobs) == (expected.token_ids, expected.logprobs)


def test_prefix_hit_changes_nothing_but_the_work():
    prompt = prompt_of(1, 70)
    first, second = (request_of(name, prompt, **SAMPLED) for name in ("first", "second"))
    driver = run(first)
    num_tokens = driver.engine.stats().num_scheduled_tokens
    driver.add(second)
    driver.drain()
    assert driver.results["second"].token_ids == driver.results["first"].token_ids
    assert driver.results["second"].logprobs == driver.results["first"].logprobs
    assert driver.results["first"].usage.cached_tokens == 0
    assert driver.results["second"].usage.cached_tokens == 64  # 4 blocks of 16
    assert driver.engine.stats().num_scheduled_tokens - num_tokens == num_tokens - 64


def test_a_hit_never_covers_the_whole_prompt():
    driver = run(request_of("first", prompt_of(1, 64)))
    driver.add(request_of("second", prompt_of(1, 64)))
    driver.drain()
    assert driver.results["second"].usage.cached_tokens == 48
    assert driver.results["second"].token_ids == driver.results["first"].token_ids


def test_another_domain_never_hits():
    driver = run(request_of("a", prompt_of(1, 64), domain=b"a"))
    driver.add(request_of("b", prompt_of(1, 64), domain=b"b"))
    driver.drain()
    assert driver.results["b"].usage.cached_tokens == 0


def test_outputs_are_found_by_the_next_turn():
    driver = run(request_of("turn1", prompt_of(1, 30), max_tokens=40))
    history = prompt_of(1, 30) + tuple(driver.results["turn1"].token_ids)
    driver.add(request_of("turn2", (*history, 3, 4, 5)))
    driver.drain()
    assert driver.results["turn2"].usage.cached_tokens == 64


def test_without_prefix_cache_nothing_hits():
    config = EngineConfig(kv_block_tokens=16, prefix_cache=False, num_threads=1)
    driver = run(request_of("first", prompt_of(1, 64)), config=config)
    driver.add(request_of("second", prompt_of(1, 64)))
    driver.drain()
    assert driver.results["second"].usage.cached_tokens == 0
    assert driver.engine.stats().kv_blocks_cached == 0


@pytest.mark.parametrize("kind", ["perfect", "random", "hopeless"])
@pytest.mark.parametrize("params", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_speculation_is_invisible(kind: str, params: dict[str, object]):
    requests = [request_of(f"r{i}", 10 + i, max_tokens=40, **params) for i in range(5)]
    right = {request.request_id: alone(request) for request in requests}
    proposer = ScriptedProposer({name: result.token_ids for name, result in right.items()}, kind)
    driver = run(*requests, proposer=proposer)
    for name, result in driver.results.items():
        assert result.token_ids == right[name].token_ids
        assert result.logprobs == right[name].logprobs
    stats = driver.engine.stats()
    assert stats.num_drafted_tokens == sum(drafted for drafted, _ in proposer.observed) > 0
    assert stats.num_accepted_tokens == sum(result.usage.accepted_tokens for result in driver.results.values())
    if kind == "perfect":
        assert stats.num_accepted_tokens == stats.num_drafted_tokens
        assert stats.num_steps < 10
    if kind == "hopeless":
        assert stats.num_accepted_tokens == 0


def test_rejected_drafts_are_never_published():
    request = request_of("r", 10, max_tokens=60)
    right = alone(request)
    proposer = ScriptedProposer({"r": right.token_ids}, "hopeless")
    driver = run(request, proposer=proposer)
    driver.add(request_of("next", request.prompt_token_ids + tuple(right.token_ids)))
    driver.engine.check_integrity()
    driver.drain()
    expected = alone(request_of("next", request.prompt_token_ids + tuple(right.token_ids)))
    assert driver.results["next"].token_ids == expected.token_ids
    assert driver.results["next"].usage.cached_tokens == 64


def test_a_request_may_refuse_drafts():
    request = request_of("r", 10, max_tokens=20, speculate=False)
    driver = run(request, proposer=ScriptedProposer({"r": alone(request).token_ids}, "perfect"))
    assert driver.results["r"].usage.drafted_tokens == 0


def test_a_broken_proposer_costs_only_its_drafts():
    class Broken:
        source = "broken"

        def propose(self, seq: object, max_tokens: int) -> list[int]:
            raise RuntimeError("no idea")

        def observe(self, seq: object, num_drafted: int, num_accepted: int) -> None:
            raise RuntimeError("no idea")

        def finish(self, seq: object) -> None:
            raise RuntimeError("no idea")

    request = request_of("r")
    assert run(request, proposer=Broken()).results["r"] == alone(request)


def test_end_tokens_end_and_are_not_handed_out():
    request = request_of("r", max_tokens=20)
    tokens = alone(request).token_ids
    end = next(i for i in range(3, 20) if tokens[i] not in tokens[:i])
    result = alone(request, end_ids=[tokens[end]])
    assert result.reason is FinishReason.STOP
    assert result.token_ids == tokens[:end]
    assert result.usage.completion_tokens == end + 1
    stopped = request_of("r", max_tokens=20, stop_token_ids=(tokens[end],))
    assert alone(stopped) == result
    ignoring = request_of("r", max_tokens=20, ignore_eos=True)
    assert alone(ignoring, end_ids=[tokens[end]]).token_ids == tokens


def test_length_and_context_limits():
    result = alone(request_of("r", 20, max_tokens=5))
    assert (len(result.token_ids), result.reason, result.usage.completion_tokens) == (5, FinishReason.LENGTH, 5)
    config = EngineConfig(kv_block_tokens=16, max_seq_len=50, num_threads=1)
    unlimited = alone(request_of("r", 20, max_tokens=None), config=config)
    assert (len(unlimited.token_ids), unlimited.reason) == (30, FinishReason.LENGTH)


def test_what_can_never_fit_is_refused():
    engine = make_engine(SMALL, num_kv_blocks=4)  # 64 tokens
    for request in (request_of("r", 64), request_of("r", 60, max_tokens=5), request_of("r", 64, max_tokens=None)):
        with pytest.raises(ContextLengthExceeded, match="the limit is 64"):
            engine.add(request)
    engine.add(request_of("r", 60, max_tokens=4))
    assert not engine.cancel("another")


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (request_of("r", ()), "prompt"),
        (request_of("r", (1, 64)), "prompt"),
        (request_of("r", (-1,)), "prompt"),
        (request_of("r", stop_token_ids=(64,)), "stop_token_ids"),
        (request_of("r", logit_bias={64: 1.0}), "logit_bias"),
    ],
)
def test_bad_requests_are_refused(request_: Request, param: str):
    engine = make_engine()
    with pytest.raises(InvalidRequest) as info:
        engine.add(request_)
    assert info.value.param == param
    assert not engine.has_work


def test_ids_are_unique_and_adapters_refused():
    engine = make_engine()
    engine.add(request_of("r"))
    with pytest.raises(InvalidRequest, match="in use"):
        engine.add(request_of("r"))
    with pytest.raises(UnsupportedParameter, match="poet"):
        engine.add(request_of("s", adapter=AdapterRef("poet", "00")))


def test_the_queue_is_bounded():
    driver = Driver(make_engine(SMALL))
    driver.add(*[request_of(f"r{i}") for i in range(7)])  # 4 places, 3 waiting
    with pytest.raises(Overloaded):
        driver.add(request_of("r7"))
    driver.drain()
    driver.add(request_of("r7"))
    assert len(driver.drain()) == 8


def test_cancel_and_finish_anywhere():
    driver = Driver(make_engine(SMALL))
    driver.add(*[request_of(f"r{i}", 30, max_tokens=20) for i in range(6)])
    assert driver.engine.cancel("r5")  # waiting
    driver.step()
    assert driver.engine.cancel("r2")  # computing its prompt
    while not driver.results["r0"].token_ids:
        driver.step()
    assert driver.engine.finish("r0")  # decoding
    assert not driver.engine.finish("r0")
    results = driver.drain()
    assert [results[f"r{i}"].reason for i in (0, 2, 5)] == [
        FinishReason.STOP,
        FinishReason.CANCELLED,
        FinishReason.CANCELLED,
    ]
    assert results["r0"].usage.completion_tokens == len(results["r0"].token_ids)
    for name in ("r1", "r3", "r4"):
        assert results[name] == alone(request_of(name, 30, max_tokens=20))


def test_deadlines():
    clock = FakeClock()
    driver = Driver(make_engine(SMALL, clock=clock))
    driver.add(*[request_of(f"r{i}", max_tokens=20, deadline=5.0 + i) for i in range(6)])
    driver.step()
    driver.step()
    clock.advance(6.5)
    driver.step()
    assert {n: r.reason for n, r in driver.results.items() if r.reason} == dict.fromkeys(("r0", "r1"), "timeout")
    assert isinstance(driver.results["r0"].error, DeadlineExceeded)
    clock.advance(3.0)
    driver.drain()
    assert driver.results["r4"].reason is FinishReason.TIMEOUT
    assert driver.results["r5"].reason is FinishReason.LENGTH


def test_a_reused_id_doesnt_inherit_the_old_deadline():
    clock = FakeClock()
    driver = Driver(make_engine(clock=clock))
    driver.add(request_of("r", deadline=5.0))
    driver.drain()
    driver.add(request_of("r"))
    clock.advance(10.0)
    assert driver.drain()["r"].reason is FinishReason.LENGTH


def test_a_failing_executor_ends_its_step_only():
    def fail(batch: Batch) -> None:
        if len(batch.context_lens) == 3:
            raise RuntimeError("device lost")

    driver = Driver(make_engine(executor=FakeExecutor(on_step=fail, num_kv_blocks=64)))
    driver.add(request_of("a"), request_of("b"))
    driver.step()
    driver.add(request_of("c"))
    driver.drain()
    for result in driver.results.values():
        assert result.reason is FinishReason.ERROR
        assert isinstance(result.error, Internal)
        assert "device" not in str(result.error)
    driver.add(request_of("d"))
    assert driver.drain()["d"] == alone(request_of("d"))


def test_logits_that_are_not_finite_end_their_request_only():
    class Poisoned(FakeExecutor):
        def step(self, batch: Batch):
            logits = super().step(batch)
            logits[batch.token_ids[batch.logit_rows] == 13] = float("nan")
            return logits

    for params in ({}, SAMPLED):
        driver = Driver(make_engine(executor=Poisoned()))
        driver.add(request_of("bad", (1, 2, 13), **params), request_of("good", (1, 2, 3), max_tokens=1, **params))
        results = driver.drain()
        assert results["bad"].error.code == "non_finite_logits"
        assert results["good"] == alone(request_of("good", (1, 2, 3), max_tokens=1, **params))


def test_shut_down_ends_everything():
    driver = Driver(make_engine(SMALL))
    driver.add(*[request_of(f"r{i}") for i in range(6)])
    driver.step()
    driver.engine.cancel("r1")
    outputs = driver.engine.shut_down()
    assert sorted(output.request_id for output in outputs) == [f"r{i}" for i in range(6)]
    assert all(output.finish_reason is not None for output in outputs)
    assert_idle(driver.engine)
    with pytest.raises(Unavailable):
        driver.engine.add(request_of("late"))


def test_a_long_prompt_doesnt_stall_others():
    config = EngineConfig(max_batch_size=4, max_batch_tokens=64, kv_block_tokens=16, num_threads=1)
    driver = Driver(make_engine(config))
    driver.add(request_of("talker", 5, max_tokens=50))
    driver.step()
    driver.add(request_of("book", 700, max_tokens=2), request_of("short", 10, max_tokens=2))
    num_steps = 0
    while driver.results["book"].reason is None:
        assert driver.step()[0].request_id == "talker"  # gets a token every step
        num_steps += 1
        if num_steps == 2:
            assert driver.results["short"].reason is FinishReason.LENGTH
    assert num_steps > 10


def test_logprobs_are_the_models_own():
    result = alone(request_of("r", max_tokens=4, temperature=0.7, seed=3, logprobs=3, logit_bias={5: 100.0}))
    assert result.token_ids == [5, 5, 5, 5]
    for entry in result.logprobs:
        assert entry.token_id == 5
        assert len(entry.top) == 3
        assert entry.logprob < entry.top[0][1] or entry.top[0][0] == 5
        assert [p for _, p in entry.top] == sorted((p for _, p in entry.top), reverse=True)


def test_lookup_is_on_when_the_config_asks_and_is_invisible():
    config = EngineConfig(kv_block_tokens=16, speculative=SpeculativeConfig(), num_threads=1)
    prompt = prompt_of(1, 6) * 8  # repetition makes guesses
    requests = [request_of(f"r{i}", prompt, max_tokens=60, temperature=0.4, seed=i, logprobs=1) for i in range(4)]
    driver = Driver(always_draft(make_engine(config)))
    driver.add(*requests)
    driver.drain()
    for request in requests:
        right = alone(request)
        result = driver.results[request.request_id]
        assert (result.token_ids, result.logprobs) == (right.token_ids, right.logprobs)
    assert driver.engine.stats().drafted_by("lookup") > 0
    off = EngineConfig(kv_block_tokens=16, speculative=SpeculativeConfig(lookup=False), num_threads=1)
    assert run(*requests, config=off).engine.stats().num_drafted_tokens == 0


def test_proposers_hear_of_every_end():
    class Listener(ScriptedProposer):
        ended: list[str] = []  # noqa: RUF012

        def finish(self, seq: Sequence) -> None:
            self.ended.append(seq.request_id)

    driver = Driver(make_engine(SMALL, proposer=Listener({}, "perfect")))
    driver.add(*[request_of(f"r{i}") for i in range(6)], request_of("private", speculate=False))
    driver.engine.cancel("r5")
    driver.drain()
    assert sorted(Listener.ended) == [f"r{i}" for i in range(6)]

"""The engine's thread: one last event each, whatever happens to the request, the engine or the loop."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest
from tests.runtime_harness import assert_idle, fake_runtime

from realm.core.errors import ContextLengthExceeded, DeadlineExceeded, Internal, Overloaded, Unavailable
from realm.core.types import FinishReason, SamplingParams
from realm.runtime.events import Closed, Event, QueueConsumer
from realm.runtime.model import Model

FOREVER = SamplingParams(max_tokens=400, ignore_eos=True)


@pytest.fixture
def model():
    with fake_runtime() as runtime:
        yield runtime.model()


def last_events(consumer: QueueConsumer, count: int) -> dict[int, Event]:
    """Read until `count` choices have ended."""
    ended: dict[int, Event] = {}
    while len(ended) < count:
        event = consumer.get()
        assert event.index not in ended, "an event after the last one"
        if event.finish_reason is not None:
            ended[event.index] = event
    return ended


def test_stream_and_whole_agree(model: Model) -> None:
    prompt = model.encode("hello world")
    params = SamplingParams(max_tokens=40, ignore_eos=True, logprobs=2)
    events = list(model.open([prompt], params, seed=7))
    [whole] = model.open([prompt], params, seed=7, stream=False).collect()
    assert len(events) > 10
    assert "".join(e.text for e in events) == whole.text
    assert [t for e in events for t in e.token_ids] == list(whole.token_ids)
    assert [r for e in events for r in e.logprobs] == list(whole.logprobs)
    assert len(whole.logprobs) == 40
    assert whole.finish_reason is FinishReason.LENGTH
    assert whole.usage.completion_tokens == 40


def test_many_callers_share_steps(model: Model) -> None:
    prompts = [model.encode(f"caller {i}") for i in range(8)]
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    alone = [model.open([p], params, seed=1, stream=False).collect()[0].token_ids for p in prompts]
    steps_alone = model.loop.engine_stats().num_steps
    together = model.open(prompts, params, seed=1, stream=False).collect()
    steps_together = model.loop.engine_stats().num_steps - steps_alone
    assert [c.token_ids for c in together] == alone
    assert steps_together * 4 < steps_alone
    assert_idle(model)


def test_stop_string_across_tokens_ends_the_request(model: Model) -> None:
    prompt = model.encode("say")
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    [free] = model.open([prompt], params, seed=3, stream=False).collect()
    stop = free.text[7:10]
    cut = SamplingParams(max_tokens=60, ignore_eos=True, stop=(stop,))
    events = list(model.open([prompt], cut, seed=3))
    text = "".join(e.text for e in events)
    assert text == free.text[: free.text.index(stop)]
    assert events[-1].finish_reason is FinishReason.STOP
    assert events[-1].matched_stop == stop
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == sum(len(e.token_ids) for e in events)
    assert_idle(model)


def test_closing_cancels(model: Model) -> None:
    generation = model.open([model.encode("x")] * 2, FOREVER)
    next(generation)
    generation.close()
    assert_idle(model)
    assert model.loop.stats.requests == Counter(cancelled=2)


def test_dropping_cancels(model: Model) -> None:
    generation = model.open([model.encode("x")], FOREVER)
    next(generation)
    del generation
    assert_idle(model)


def test_deadline() -> None:
    running, passed = threading.Event(), threading.Event()

    def wait(batch: object) -> None:
        running.set()
        passed.wait()

    with fake_runtime(on_step=wait) as runtime:
        model = runtime.model()
        generation = model.open([model.encode("x")], FOREVER, timeout=1e-9)
        passed.set()
        with pytest.raises(DeadlineExceeded):
            list(generation)
        assert_idle(model)


def test_queue_full_is_told_to_the_one_who_came_last() -> None:
    hold = threading.Event()
    with fake_runtime(on_step=lambda batch: hold.wait() and None, max_batch_size=1, max_queued=1) as runtime:
        model = runtime.model()
        short = SamplingParams(max_tokens=2, ignore_eos=True)
        calls = [QueueConsumer() for _ in range(3)]
        for consumer in calls:
            model.start([model.encode("x")], short, consumer)
        hold.set()
        errors = [last_events(consumer, 1)[0].error for consumer in calls]
        assert errors[:2] == [None, None]
        assert isinstance(errors[2], Overloaded)


def test_engine_refusal_ends_one_request_only(model: Model) -> None:
    with pytest.raises(ContextLengthExceeded):
        model.open([model.encode("x")], SamplingParams(max_tokens=10_000))
    assert model.generate("x", max_tokens=3, ignore_eos=True).finish_reason is FinishReason.LENGTH


def test_a_failing_step_ends_its_requests_and_the_engine_goes_on() -> None:
    broken = [True]

    def fail_once(batch: object) -> None:
        if broken.pop() if broken else False:
            raise RuntimeError("device lost")

    with fake_runtime(on_step=fail_once) as runtime:
        model = runtime.model()
        with pytest.raises(Internal):
            model.generate("x", max_tokens=3)
        assert model.generate("x", max_tokens=3, ignore_eos=True).usage.completion_tokens == 3
        assert model.loop.failure is None


def test_engine_breakdown_ends_everything_and_is_told(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer, late = QueueConsumer(), QueueConsumer()

    def explode() -> None:
        model.start([model.encode("x")], FOREVER, late)  # comes while the step runs, and is never added
        raise AssertionError("bug")

    monkeypatch.setattr(model.loop._engine, "step", explode)
    model.start([model.encode("x")] * 3, FOREVER, consumer)
    events = last_events(consumer, 3)
    assert {type(e.error) for e in events.values()} == {Internal}
    model.loop._thread.join()
    assert late._events.get_nowait().error is not None
    assert model.loop.failure == "AssertionError: bug"
    with pytest.raises(Unavailable):
        model.open([model.encode("x")], FOREVER)


def test_close_ends_what_is_open() -> None:
    runtime = fake_runtime()
    model = runtime.model()
    consumer = QueueConsumer()
    model.start([model.encode("x")] * 3, FOREVER, consumer)
    runtime.close()
    assert {e.error.code for e in last_events(consumer, 3).values()} == {"shutting_down"}
    runtime.close()


async def test_async_events_and_closing_from_another_task(model: Model) -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    prompt = model.encode("hello")
    events = [e async for e in model.aopen([prompt], params, seed=5)]
    [whole] = model.open([prompt], params, seed=5, stream=False).collect()
    assert "".join(map(str, events)) == str(whole)

    generation = model.aopen([prompt], FOREVER)
    await generation.next_event()

    async def drain() -> None:
        while not generation.done:
            await generation.next_event()

    waiter = asyncio.create_task(drain())
    await asyncio.sleep(0)
    generation.close()
    with pytest.raises(Closed):
        await waiter
    assert_idle(model)


def test_a_closed_event_loop_does_not_hold_requests(model: Model) -> None:
    async def begin() -> None:
        generation = model.aopen([model.encode("x")], FOREVER)
        await generation.next_event()
        generation._open.clear()  # so that dropping it doesn't cancel: the loop itself has to notice

    asyncio.run(begin())
    while model.loop.num_open:
        model.loop.call(lambda: None).result()
    assert_idle(model)

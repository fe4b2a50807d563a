"""One call's choices, as they grow: iterate over it from a thread or from a coroutine, or wait for the whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from realm.core.types import FinishReason, TokenLogprobs, Usage
from realm.runtime.events import AsyncConsumer, Closed, Event, QueueConsumer
from realm.runtime.loop import EngineLoop


@dataclass(slots=True)
class Completion:
    """A choice that has ended. `str(completion)` is its text."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprobs, ...] = ()
    matched_stop: str | None = None

    def __str__(self) -> str:
        return self.text


class Generation(Iterator[Event], AsyncIterator[Event]):
    """Events of one call, in the order they happen, until every choice has had its last one.

    `for` if it was made with a QueueConsumer, `async for` with an AsyncConsumer. Closing it, or dropping it,
    cancels what is still running.
    """

    def __init__(self, loop: EngineLoop, consumer: QueueConsumer | AsyncConsumer, request_ids: list[str]) -> None:
        self.request_ids = request_ids
        """One for each choice."""
        self._loop = loop
        self._consumer = consumer
        self._open = set(range(len(request_ids)))

    @property
    def done(self) -> bool:
        """Whether every choice has had its last event."""
        return not self._open

    def close(self) -> None:
        """Cancel the choices that are still running; their last events are not waited for."""
        if self._open:
            self._loop.cancel([self.request_ids[i] for i in self._open])
            self._open.clear()
            if isinstance(self._consumer, AsyncConsumer):
                self._consumer.close()

    __del__ = close

    def __next__(self) -> Event:
        """The next event, or the error that it carries."""
        if not self._open:
            raise StopIteration
        assert isinstance(self._consumer, QueueConsumer), "made for `async for`"
        return _or_raise(self._account(self._consumer.get()))

    async def __anext__(self) -> Event:
        """The next event, or the error that it carries."""
        if not self._open:
            raise StopAsyncIteration
        return _or_raise(await self.next_event())

    async def next_event(self) -> Event:
        """The next event, also one that carries an error. Only while not `done`.

        Raises:
            Closed: the generation was closed, by another task perhaps.
        """
        assert isinstance(self._consumer, AsyncConsumer), "made for a plain `for`"
        return self._account(await self._consumer.get())

    def __iter__(self) -> Generation:
        return self

    def __aiter__(self) -> Generation:
        return self

    def collect(self) -> list[Completion]:
        """Wait for all choices, in order.

        Raises:
            RealmError: a choice ended with an error; the others are cancelled.
        """
        events: list[list[Event]] = [[] for _ in self.request_ids]
        try:
            for event in self:
                events[event.index].append(event)
        finally:
            self.close()
        return _completions(events)

    async def acollect(self) -> list[Completion]:
        """`collect` for a coroutine."""
        events: list[list[Event]] = [[] for _ in self.request_ids]
        try:
            async for event in self:
                events[event.index].append(event)
        finally:
            self.close()
        return _completions(events)

    def _account(self, event: Event) -> Event:
        if event.finish_reason is not None:
            self._open.remove(event.index)
        return event


def _or_raise(event: Event) -> Event:
    if event.error is not None:
        raise event.error
    return event


def _completions(events: list[list[Event]]) -> list[Completion]:
    if any(not choice or choice[-1].finish_reason is None for choice in events):
        raise Closed
    return [completion_of(choice) for choice in events]


def completion_of(events: list[Event]) -> Completion:
    """All events of one choice, the last one included, as a completion."""
    last = events[-1]
    assert last.finish_reason is not None
    return Completion(
        last.index,
        "".join(e.text for e in events),
        tuple(token for e in events for token in e.token_ids),
        last.finish_reason,
        last.usage or Usage(),
        tuple(row for e in events for row in e.logprobs),
        last.matched_stop,
    )

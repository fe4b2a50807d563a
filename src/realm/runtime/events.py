"""What a request's consumer receives, and how it crosses from the engine thread to a waiting thread or event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from realm.core.errors import RealmError
from realm.core.types import FinishReason, TokenLogprobs, Usage


@dataclass(slots=True)
class Event:
    """What one step did for one choice. With `finish_reason` set it is the choice's last event.

    `text` holds whole characters only, and never the stop string: it may lag behind `token_ids`.
    """

    index: int
    """The choice, counted from 0 over all prompts of the call."""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    matched_stop: str | None = None
    """The stop string that ended the choice, if one did."""
    usage: Usage | None = None
    """Set on the last event."""
    error: RealmError | None = None
    """Why `finish_reason` is ERROR or TIMEOUT."""

    def __str__(self) -> str:
        return self.text


class Consumer(Protocol):
    """Where the events of one call go."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop on whose thread to deliver; None: any thread will do."""

    def deliver(self, event: Event) -> None:
        """Take one event; on `loop`'s thread if there is one. Never blocks."""


class QueueConsumer:
    """Events for a thread that blocks on `get`."""

    loop = None

    def __init__(self) -> None:
        self._events: SimpleQueue[Event] = SimpleQueue()
        self.deliver = self._events.put

    def get(self) -> Event:
        """The next event; blocks until there is one."""
        return self._events.get()


class Closed(Exception):
    """Someone closed the generation that this coroutine waited on."""


class AsyncConsumer:
    """Events for one coroutine. Create it on the event loop that will await `get`."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def deliver(self, event: Event) -> None:
        """Append, and wake the coroutine that waits."""
        self._events.append(event)
        self._wake()

    def close(self) -> None:
        """Wake the coroutine that waits, with Closed. On the event loop's thread."""
        self._closed = True
        self._wake()

    async def get(self) -> Event:
        """The next event; waits until there is one.

        Raises:
            Closed: the consumer was closed.
        """
        while not self._events and not self._closed:
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._closed:
            raise Closed
        return self._events.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

"""From a generation to an HTTP answer: one JSON body, or server-sent events. A client that hangs up cancels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from realm.core.errors import RealmError, Unavailable
from realm.core.types import FinishReason
from realm.runtime.events import Closed, Event
from realm.runtime.generation import Generation
from realm.server.wire import DONE, Answer, error_event

_EVENT_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the chunks back
]


class HangUp:
    """Closes a generation when its client has gone. Use as an async context manager around waiting for events."""

    def __init__(self, receive: Receive, generation: Generation) -> None:
        self._generation = generation
        self._task = asyncio.create_task(self._watch(receive))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._generation.close()

    def stop(self) -> None:
        """The answer is complete, or will never be: watch no longer."""
        self._task.cancel()
        self._generation.close()


async def whole_answer(receive: Receive, generation: Generation, answer: Answer) -> Response:
    """Wait for all choices and give them as one body.

    Raises:
        RealmError: a choice ended with an error.
    """
    watch = HangUp(receive, generation)
    try:
        completions = await generation.acollect()
    except Closed:
        return Response(status_code=499)  # nobody reads it
    finally:
        watch.stop()
    for completion in completions:
        if completion.finish_reason is FinishReason.CANCELLED:
            raise _cancelled()
    return JSONResponse(answer.whole(completions))


async def streamed_answer(receive: Receive, generation: Generation, answer: Answer, include_usage: bool) -> Response:
    """Wait for the first event, so that a request refused at once has its own status, and stream from there.

    Raises:
        RealmError: the first event is an error.
    """
    watch = HangUp(receive, generation)
    try:
        first = await generation.next_event()
        if first.error is not None:
            raise first.error
    except Closed:
        watch.stop()
        return Response(status_code=499)
    except BaseException:
        watch.stop()
        raise
    return EventStream(watch, generation, answer, first, include_usage)


class EventStream(Response):
    """Chunks as server-sent events, one a step and choice, written straight to the ASGI server."""

    def __init__(
        self, watch: HangUp, generation: Generation, answer: Answer, first: Event, include_usage: bool
    ) -> None:
        super().__init__()
        self._watch = watch
        self._generation = generation
        self._answer = answer
        self._first = first
        self._include_usage = include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run to the end, or until the client hangs up."""
        await send(
            {"type": "http.response.start", "status": 200, "headers": _EVENT_STREAM_HEADERS + self._own_headers()}
        )
        try:
            async for chunk in self._chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._watch.stop()

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        return [h for h in self.raw_headers if h[0] not in (b"content-length", b"content-type")]

    async def _chunks(self) -> AsyncIterator[bytes]:
        opened: set[int] = set()
        event, answer, generation = self._first, self._answer, self._generation
        while True:
            if event.error is not None or event.finish_reason is FinishReason.CANCELLED:
                yield error_event(event.error or _cancelled())
                return
            if event.index not in opened:
                opened.add(event.index)
                if opening := answer.opening(event.index):
                    yield opening
            if chunk := answer.chunk(event):
                yield chunk
            if generation.done:
                break
            try:
                event = await generation.next_event()
            except Closed:
                return
        if self._include_usage:
            yield answer.usage_chunk()
        yield DONE


def _cancelled() -> RealmError:
    return Unavailable("the request was cancelled", code="cancelled")


def error_headers(error: RealmError) -> dict[str, str]:
    """Headers that tell a client what to do next."""
    headers = {}
    if (seconds := getattr(error, "retry_after_seconds", None)) is not None:
        headers["Retry-After"] = str(max(1, round(seconds)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 408:
        headers["x-should-retry"] = "false"  # the deadline was the client's own: the official clients would try again
    return headers

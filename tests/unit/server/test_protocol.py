"""The bounds of a request's head, on a protocol whose transport and timers are held in the hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from realm.server.protocol import HEAD_SECONDS, MAX_HEAD_BYTES, BoundedProtocol

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


class Transport(asyncio.Transport):
    """Keeps what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Timers:
    """An event loop of which only the timers are of interest; tasks never run."""

    def __init__(self) -> None:
        self.armed: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        entry = (delay, callback)
        self.armed.append(entry)
        timers = self

        class Handle:
            def cancel(self) -> None:
                timers.armed.remove(entry)

        return Handle()

    def create_task(self, coroutine: Any, **_: Any) -> Any:
        coroutine.close()

        class Task:
            def add_done_callback(self, callback: object) -> None: ...

        return Task()


async def _app(scope: Any, receive: Any, send: Any) -> None: ...


class Connection:
    """A client's end."""

    def __init__(self) -> None:
        config = uvicorn.Config(_app, log_config=None, ws="none")
        config.load()
        self.timers = Timers()
        self.transport = Transport()
        self.protocol = BoundedProtocol(config, ServerState(), {}, self.timers)
        self.protocol.connection_made(self.transport)

    def send(self, data: bytes) -> None:
        self.protocol.data_received(data)

    def refusal(self) -> tuple[int, str]:
        """Status and code of the error that was written."""
        head, _, body = self.transport.written.partition(b"\r\n\r\n")
        assert self.transport.closed
        return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.fixture
def client() -> Connection:
    return Connection()


@pytest.mark.parametrize("piece", [b"a", b"X: y\r\n"], ids=["one endless header", "endless headers"])
def test_endless_headers_are_refused(client: Connection, piece: bytes) -> None:
    client.send(HEAD + b"X: ")
    for sent in range(0, 4 * MAX_HEAD_BYTES, 1200):
        assert sent <= MAX_HEAD_BYTES + 1200
        client.send(piece * (1200 // len(piece)))
        if client.transport.closed:
            break
    assert client.refusal() == (431, "headers_too_large")
    assert not client.timers.armed


def test_endless_trailers_are_refused(client: Connection) -> None:
    client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: ")
    client.send(b"a" * (MAX_HEAD_BYTES + 100))
    assert client.transport.closed


def test_a_large_body_is_no_head(client: Connection) -> None:
    client.send(HEAD + b"Content-Length: 1000000\r\n\r\n")
    for _ in range(100):
        client.send(b"x" * 10_000)
    assert not client.transport.closed


def test_small_chunks_are_no_head(client: Connection) -> None:
    client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(100):
        client.send(b"1\r\nx\r\n" * 1000)
    assert not client.transport.closed


def test_a_head_that_does_not_come_is_given_up(client: Connection) -> None:
    client.send(HEAD)
    [(delay, late)] = client.timers.armed
    assert delay == HEAD_SECONDS
    late()
    assert client.refusal() == (408, "headers_late")


def test_a_silent_connection_is_closed(client: Connection) -> None:
    [(_, late)] = client.timers.armed
    late()
    assert client.transport.closed
    assert client.transport.written == b""


def test_no_timer_runs_during_an_answer(client: Connection) -> None:
    client.send(HEAD + b"Content-Length: 0\r\n\r\n")
    assert not client.timers.armed


def test_a_pipelined_head_waits_for_the_answer_before_it(client: Connection) -> None:
    client.send(HEAD + b"Content-Length: 0\r\n\r\n" + HEAD)
    [(_, late)] = client.timers.armed
    late()
    assert not client.transport.closed
    assert client.timers.armed


def test_each_request_has_its_own_bounds(client: Connection) -> None:
    for _ in range(5):
        client.send(HEAD + b"Content-Length: 0\r\nX: " + b"a" * (MAX_HEAD_BYTES // 2) + b"\r\n\r\n")
        client.protocol.cycle.response_complete = True
    assert not client.transport.closed
    client.send(HEAD)
    assert len(client.timers.armed) == 1

"""HTTP/1.1 with bounds that uvicorn lacks: on the size of what isn't body, and on the time that a head may take."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from realm.core.errors import DeadlineExceeded, InvalidRequest, RealmError
from realm.server.wire import error_body

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers; the same again for trailers and the lengths of chunks."""
HEAD_SECONDS = 30.0
"""From the connection, or the first byte of a later request, to the end of its headers."""
_FRAMING_PER_BODY_BYTE = 16  # a chunk of one byte costs six; its sender may have its reasons


class HeadTooLarge(InvalidRequest):
    """Headers over the server's limit (431)."""

    status = 431
    default_code = "headers_too_large"


class BoundedProtocol(HttpToolsProtocol):
    """Refuses endless headers with 431, headers that don't come with 408, and closes the connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._num_received = 0
        self._num_body = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request's time begins."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, then look at how much of it was not body."""
        self._num_received += len(data)
        super().data_received(data)
        framing = self._num_received - self._num_body
        if framing > MAX_HEAD_BYTES + _FRAMING_PER_BODY_BYTE * self._num_body and not self.transport.is_closing():
            self._refuse(HeadTooLarge(f"headers of over {framing} bytes; the limit is {MAX_HEAD_BYTES}"))

    def on_message_begin(self) -> None:
        """A new request: count and time it by itself. What came with the end of the last one isn't counted."""
        super().on_message_begin()
        if self._head_timer is None:
            self._num_received = self._num_body = 0
            self._await_head()

    def on_headers_complete(self) -> None:
        """The head is there; the gate times the body."""
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Count the body."""
        self._num_body += len(body)
        super().on_body(body)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_head()  # the rest may not have been read, for an earlier answer comes first
        elif self._num_received:
            self._refuse(DeadlineExceeded(f"the request's headers took over {HEAD_SECONDS:g} s", code="headers_late"))
        else:
            self.transport.close()  # it never said a word

    def _refuse(self, error: RealmError) -> None:
        self._stop_timer()
        body = json.dumps(error_body(error)).encode()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        if self.cycle is None or self.cycle.response_complete:  # else another answer is on its way
            self.transport.write(head.encode() + body)
        self.transport.close()

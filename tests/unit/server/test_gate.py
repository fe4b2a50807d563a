"""What the gate does with a body that it refuses, or that stops coming: by ASGI messages, without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.types import Message

from realm.core.errors import DeadlineExceeded, PayloadTooLarge
from realm.server import gate
from realm.server.gate import Gate
from realm.server.tenancy import Tenancy

JSON = (b"content-type", b"application/json")


class Client:
    """Sends pieces of a body, then nothing; keeps the answer."""

    def __init__(self, pieces: Iterable[bytes], *, more: bool = False) -> None:
        pieces = list(pieces)
        self.coming: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": more or i + 1 < len(pieces)}
            for i, piece in enumerate(pieces)
        ]
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if not self.coming:
            await asyncio.Event().wait()
        return self.coming.pop(0)

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def answer(self) -> tuple[int, str]:
        body = b"".join(m.get("body", b"") for m in self.sent)
        assert not self.sent[-1].get("more_body")
        return self.sent[0]["status"], json.loads(body)["error"]["code"]


async def read_all(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads the body and answers nothing."""
    while (await receive())["more_body"]:
        pass


async def through_gate(client: Client, *headers: tuple[bytes, bytes], limit: int = 100) -> None:
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [JSON, *headers]}
    await Gate(read_all, Tenancy(), limit)(scope, client.receive, client.send)


async def test_a_refused_body_is_read_before_the_connection_ends() -> None:
    client = Client([b"x" * 60] * 3)
    await through_gate(client, (b"content-length", b"180"))
    assert client.answer() == (413, "payload_too_large")
    assert not client.coming
    assert client.sent[1]["more_body"], "the error is sent first: the client may look for it while it sends"


async def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_DISCARD_BYTES", 1000)
    client = Client([b"x" * 60] * 100, more=True)
    await through_gate(client, (b"content-length", b"6000"))
    assert client.answer() == (413, "payload_too_large")
    assert len(client.coming) == 100 - 17
    monkeypatch.setattr(gate, "_DISCARD_SECONDS", 0.0)
    stuck = Client([b"x"], more=True)
    await through_gate(stuck, (b"content-length", b"6000"))
    assert stuck.answer() == (413, "payload_too_large")


async def test_a_compressed_body_is_refused() -> None:
    client = Client([b"\x1f\x8b"])
    await through_gate(client, (b"content-encoding", b"gzip"))
    assert client.answer() == (415, "unsupported_media_type")


async def test_a_body_without_length_is_counted() -> None:
    with pytest.raises(PayloadTooLarge):
        await through_gate(Client([b"x" * 60] * 2))


async def test_a_body_that_stops_coming_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_BODY_PAUSE_SECONDS", 0.0)
    with pytest.raises(DeadlineExceeded) as caught:
        await through_gate(Client([], more=True))
    assert caught.value.code == "body_late"

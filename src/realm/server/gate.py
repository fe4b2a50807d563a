"""What is settled before a request's body is read: the key, the content type, the size."""

from __future__ import annotations

import json

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from realm.core.errors import InvalidRequest, PayloadTooLarge, RealmError
from realm.server.tenancy import Tenancy
from realm.server.wire import error_body


class UnsupportedMediaType(InvalidRequest):
    """A body that doesn't claim to be JSON (415)."""

    status = 415
    default_code = "unsupported_media_type"


class Gate:
    """ASGI middleware in front of /v1: puts the tenant into the request's state. Health and metrics pass."""

    def __init__(self, app: ASGIApp, tenancy: Tenancy, max_body_bytes: int) -> None:
        self._app = app
        self._tenancy = tenancy
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with a counting `receive`."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            scope.setdefault("state", {})["tenant"] = self._tenancy.tenant_of(headers.get("authorization"))
            if scope["method"] in ("POST", "PUT", "PATCH"):
                self._check_body_headers(headers)
        except RealmError as e:
            await _refuse(e, send)
            return
        await self._app(scope, self._counting(receive), send)

    def _check_body_headers(self, headers: Headers) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise UnsupportedMediaType(f"the content type must be application/json, got {kind or 'none'!r}")
        length = headers.get("content-length", "")
        if length.isdigit():
            self._check_size(int(length))

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_body_bytes:
            raise PayloadTooLarge(f"a body of {num_bytes} bytes is over the limit of {self._max_body_bytes}")

    def _counting(self, receive: Receive) -> Receive:
        """Bodies without a length are counted as they come in."""
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            self._check_size(num_bytes)
            return message

        return counted


async def _refuse(error: RealmError, send: Send) -> None:
    body = json.dumps(error_body(error)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the body that follows is not worth reading
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""What is settled before a request's body is read: the key, the content type, the size."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from realm.core.errors import InvalidRequest, RealmError, Unauthorized
from realm.server.wire import error_body


class PayloadTooLarge(InvalidRequest):
    """A body over the server's limit (413)."""

    status = 413
    default_code = "payload_too_large"


class UnsupportedMediaType(InvalidRequest):
    """A body that doesn't claim to be JSON (415)."""

    status = 415
    default_code = "unsupported_media_type"


class KeyRing:
    """The keys that open the API, held as SHA-256 digests."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def check(self, authorization: str | None) -> None:
        """Let a request pass, or not. Every key is compared, whichever fits: the time taken tells nothing.

        Raises:
            Unauthorized: no key, or none that is known.
        """
        if not self._digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("an API key is needed", code="missing_api_key", hint="send `Authorization: Bearer KEY`")
        digest = hashlib.sha256(key.strip().encode(errors="surrogateescape")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise Unauthorized("the API key is not known")


class Gate:
    """ASGI middleware in front of /v1. Health and metrics pass."""

    def __init__(self, app: ASGIApp, keys: KeyRing, max_body_bytes: int) -> None:
        self._app = app
        self._keys = keys
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with a counting `receive`."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._keys.check(headers.get("authorization"))
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

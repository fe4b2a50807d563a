"""What is settled before a request's body is read: the key, the content type, the size."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from realm.core.errors import DeadlineExceeded, InvalidRequest, PayloadTooLarge, RealmError, Unauthorized
from realm.server.tenancy import Tenancy, bearer_digest
from realm.server.wire import error_body

_ADMIN = "/admin/"
_UPLOADS = "/admin/v1/adapters/"
_BODY_PAUSE_SECONDS = 30.0
# How much of a refused body is read, and for how long, so that its sender comes to read the answer.
_DISCARD_BYTES = 256 << 20
_DISCARD_SECONDS = 5.0


class UnsupportedMediaType(InvalidRequest):
    """A body that doesn't claim to be what it has to be (415)."""

    status = 415
    default_code = "unsupported_media_type"


@dataclass(frozen=True, slots=True)
class AdminGate:
    """Who may use /admin, and how much it takes."""

    key_digest: bytes
    max_upload_bytes: int

    def check(self, authorization: str | None) -> None:
        """Let the operator in.

        Raises:
            Unauthorized: no key, or another one.
        """
        if not hmac.compare_digest(bearer_digest(authorization), self.key_digest):
            raise Unauthorized("the admin key is not right", code="invalid_admin_key")


class Gate:
    """ASGI middleware in front of /v1 and /admin: puts the tenant into the request's state. Health and metrics pass.

    Args:
        app: What comes next.
        tenancy: Keys of /v1.
        max_body_bytes: Of a JSON body.
        admin: Without it, /admin is a path like any other that isn't there.
    """

    def __init__(self, app: ASGIApp, tenancy: Tenancy, max_body_bytes: int, admin: AdminGate | None = None) -> None:
        self._app = app
        self._tenancy = tenancy
        self._max_body_bytes = max_body_bytes
        self._admin = admin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with a counting `receive`."""
        path = scope["path"] if scope["type"] == "http" else ""
        admin = self._admin if path.startswith(_ADMIN) else None
        if admin is None and not path.startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        headers, limit = Headers(scope=scope), self._max_body_bytes
        try:
            if admin is None:
                scope.setdefault("state", {})["tenant"] = self._tenancy.tenant_of(headers.get("authorization"))
            else:
                admin.check(headers.get("authorization"))
            if admin is not None and scope["method"] == "PUT" and path.startswith(_UPLOADS):
                limit = admin.max_upload_bytes
                self._check_body_headers(headers, "multipart/form-data", limit)
            elif scope["method"] in ("POST", "PUT", "PATCH") and (admin is None or scope["method"] != "POST"):
                self._check_body_headers(headers, "application/json", limit)
        except RealmError as e:
            await _refuse(e, receive, send)
            return
        await self._app(scope, _counting(receive, limit), send)

    def _check_body_headers(self, headers: Headers, wanted: str, limit: int) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != wanted:
            raise UnsupportedMediaType(f"the content type must be {wanted}, got {kind or 'none'!r}")
        if (coding := headers.get("content-encoding", "identity")) != "identity":
            raise UnsupportedMediaType(f"a body in content encoding {coding!r} is not supported")
        length = headers.get("content-length", "")
        if length.isdigit():
            _check_size(int(length), limit)


def _check_size(num_bytes: int, limit: int) -> None:
    if num_bytes > limit:
        raise PayloadTooLarge(f"a body of {num_bytes} bytes is over the limit of {limit}")


def _counting(receive: Receive, limit: int) -> Receive:
    """Bodies without a length are counted as they come in; one that stops coming is given up."""
    num_bytes, complete = 0, False

    async def counted() -> Message:
        nonlocal num_bytes, complete
        if complete:
            return await receive()  # until the client hangs up
        try:
            async with asyncio.timeout(_BODY_PAUSE_SECONDS):
                message = await receive()
        except TimeoutError:
            raise DeadlineExceeded(
                f"nothing more of the body came for {_BODY_PAUSE_SECONDS:g} s", code="body_late"
            ) from None
        num_bytes += len(message.get("body", b""))
        _check_size(num_bytes, limit)
        complete = not message.get("more_body", False)
        return message

    return counted


async def _refuse(error: RealmError, receive: Receive, send: Send) -> None:
    body = json.dumps(error_body(error)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the body that follows is not worth reading
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await _discard(receive)
    await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    """Let a client finish sending, within bounds: closed at once, it would see a reset instead of the answer."""
    num_bytes = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            while num_bytes < _DISCARD_BYTES:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return

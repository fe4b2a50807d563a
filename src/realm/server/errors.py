"""Every error leaves the server in the OpenAI shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from realm.core.errors import Internal, InvalidRequest, NotFound, RealmError
from realm.server.stream import error_headers
from realm.server.wire import error_body

_MAX_SHOWN_CHARS = 60


def install_error_handlers(app: FastAPI) -> None:
    """Answer RealmErrors, invalid bodies, wrong paths and our own faults."""

    def answer(error: RealmError) -> JSONResponse:
        return JSONResponse(error_body(error), error.status, headers=error_headers(error))

    async def realm_error(request: Request, error: RealmError) -> JSONResponse:
        return answer(error)

    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(_first_validation_error(error))

    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        cause = error.__cause__
        if isinstance(cause, RealmError):  # FastAPI wraps what a body's parser raises
            return answer(cause)
        plain = (
            NotFound(f"no such path: {request.url.path}") if error.status_code == 404 else InvalidRequest(error.detail)
        )
        headers = {**error_headers(plain), **(error.headers or {})}
        return JSONResponse(error_body(plain), error.status_code, headers=headers)

    async def internal_error(request: Request, error: Exception) -> JSONResponse:
        return answer(Internal("something went wrong on our side; the server's log has more"))

    app.add_exception_handler(RealmError, realm_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, validation_error)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, http_error)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, internal_error)


def _first_validation_error(error: RequestValidationError) -> InvalidRequest:
    """The first complaint, with the path of the field: OpenAI's errors name one parameter."""
    errors = error.errors()
    first, path = errors[0], _path_in_body(errors[0], error.body)
    at = ".".join(map(str, path))
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"unknown parameter '{at}'", code="unknown_parameter", param=at)
    if first["type"] == "missing" and not path:
        return InvalidRequest("the body must be a JSON object", code="invalid_json")
    if len(path) < len(first["loc"]) - 1:  # of a union, whose branches all complained
        path, complaint = _best_of_branches(errors, path, error.body)
    else:
        complaint = _complaint(first)
    at = ".".join(map(str, path)) or "body"
    return InvalidRequest(f"{at}: {complaint}", code="invalid_value", param=str(path[0]) if path else None)


def _path_in_body(error: dict[str, Any], body: Any) -> tuple[str | int, ...]:
    """Where in the body an error is: pydantic's path without the names it gives to a union's branches."""
    path: list[str | int] = []
    loc = error["loc"][1:]
    for i, part in enumerate(loc):
        if isinstance(body, dict) and (part in body or (error["type"] == "missing" and i + 1 == len(loc))):
            body = body.get(part)
        elif isinstance(body, list) and isinstance(part, int) and part < len(body):
            body = body[part]
        else:
            continue
        path.append(part)
    return tuple(path)


def _best_of_branches(
    errors: Sequence[dict[str, Any]], at: tuple[str | int, ...], body: Any
) -> tuple[tuple[str | int, ...], str]:
    """The complaint of the branch that got furthest; of all, where none took the value's type."""
    paths = [(e, _path_in_body(e, body)) for e in errors]
    depth = max(len(path) for _, path in paths if path[: len(at)] == at)
    furthest = [(e, path) for e, path in paths if path[: len(at)] == at and len(path) == depth]
    of_its_type = [(e, path) for e, path in furthest if not e["type"].endswith("_type")]
    best, path = (of_its_type or furthest)[0]
    if of_its_type or depth > len(at):
        return path, _complaint(best)
    wanted = dict.fromkeys(e["msg"].removeprefix("Input should be ") for e, _ in furthest)
    return path, f"Input should be {' or '.join(wanted)}{_got(best['input'])}"


def _complaint(error: dict[str, Any]) -> str:
    return "missing" if error["type"] == "missing" else error["msg"] + _got(error["input"])


def _got(value: Any) -> str:
    """The value at fault, if it is short enough to say."""
    shown = json.dumps(value, ensure_ascii=False) if value is None or isinstance(value, str | int | float) else ""
    return f", got {shown}" if 0 < len(shown) <= _MAX_SHOWN_CHARS else ""

"""Every error leaves the server in the OpenAI shape."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from realm.core.errors import Internal, InvalidRequest, NotFound, RealmError
from realm.server.stream import error_headers
from realm.server.wire import error_body


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
    first = error.errors()[0]
    # Parts in brackets and type names are pydantic's account of a union's branches, not of the body.
    path = [part for part in first["loc"] if part != "body"]
    name = str(path[0]) if path else None
    if first["type"] == "extra_forbidden":
        dotted = ".".join(map(str, path))
        return InvalidRequest(f"unknown parameter '{dotted}'", code="unknown_parameter", param=dotted)
    if first["type"] == "missing" and not path:
        return InvalidRequest("the body must be a JSON object", code="invalid_json")
    at = ".".join(map(str, path)) or "body"
    return InvalidRequest(f"{at}: {first['msg']}", code="invalid_value", param=name)

"""The HTTP application: endpoints, and errors in the OpenAI shape."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from realm import __version__
from realm.core.errors import Internal, InvalidRequest, NotFound, RealmError
from realm.runtime.manager import RuntimeManager
from realm.runtime.model import Model
from realm.server.config import ServerConfig
from realm.server.gate import Gate, KeyRing
from realm.server.metrics import Metrics
from realm.server.schemas import ChatRequest, CompletionRequest, ErrorBody, GenerationRequest, parse_json
from realm.server.stream import error_headers, streamed_answer, whole_answer
from realm.server.wire import Answer, ChatAnswer, CompletionAnswer, error_body

logger = logging.getLogger(__name__)

# Encoding this much text takes about a millisecond; more is done on another thread, beside the event loop.
_INLINE_CHARS = 8192
_DEFAULT_COMPLETION_TOKENS = 16  # the OpenAI API's own

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "Bad request",
        401: "No key, or an unknown one",
        404: "Unknown model",
        413: "Body too large",
        415: "Not JSON",
        429: "Queue full; see Retry-After",
        500: "Our fault",
        503: "Starting, shutting down or broken",
        408: "The deadline passed that the request or the server set",
        "default": "Any other error",
    }.items()
}
_STREAMABLE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer, or server-sent events if `stream` is true", "content": {"text/event-stream": {}}}
}


class StrictRequest(Request):
    """A request whose JSON is JSON."""

    async def json(self) -> Any:
        """The body, parsed."""
        return parse_json(await self.body())


class StrictRoute(APIRoute):
    """Gives endpoints a StrictRequest."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """FastAPI's handler over our request class."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def create_app(runtime: RuntimeManager, config: ServerConfig | None = None) -> FastAPI:
    """The application over a runtime. The caller owns the runtime; its models should be loaded before requests come."""
    config = config or ServerConfig()
    app = FastAPI(
        title="Realm",
        version=__version__,
        description="OpenAI-compatible API over one continuously batched engine.",
        lifespan=_lifespan,
    )
    app.state.runtime = runtime
    app.include_router(_operations(runtime))
    app.include_router(_api(runtime, config))
    app.add_middleware(Gate, keys=KeyRing(config.api_keys), max_body_bytes=config.max_body_bytes)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(config.cors_origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    _install_error_handlers(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(app.state.runtime.close)


def _operations(runtime: RuntimeManager) -> APIRouter:
    """Health, readiness, metrics: for those who run the server."""
    router = APIRouter(tags=["operations"])
    metrics = Metrics(runtime)

    @router.get("/health", responses={503: {"description": "An engine broke down"}})
    async def health() -> JSONResponse:
        """200 while every engine is alive; the server's log tells what broke one."""
        failed = [m.model_id for m in runtime.models if m.loop.failure]
        if failed:
            return JSONResponse({"status": "failed", "models": failed}, 503)
        return JSONResponse({"status": "ok"})

    @router.get("/ready", responses={503: {"description": "No model is loaded yet"}})
    async def ready() -> JSONResponse:
        """200 once a model is loaded and takes requests."""
        usable = [m.model_id for m in runtime.models if not m.loop.failure]
        return JSONResponse({"status": "ready" if usable else "not ready", "models": usable}, 200 if usable else 503)

    @router.get("/metrics", response_class=Response)
    async def metrics_page() -> Response:
        """Prometheus metrics."""
        return Response(metrics.page(), media_type="text/plain; version=1.0.0; charset=utf-8")

    return router


def _api(runtime: RuntimeManager, config: ServerConfig) -> APIRouter:
    """The OpenAI API."""
    router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictRoute, responses=_ERRORS)

    @router.get("/models")
    async def list_models() -> JSONResponse:
        """Models in memory."""
        return JSONResponse({"object": "list", "data": [_model_body(m) for m in runtime.models]})

    @router.get("/models/{model_id:path}")
    async def get_model(model_id: str) -> JSONResponse:
        """One model."""
        return JSONResponse(_model_body(runtime.loaded(model_id)))

    @router.post("/chat/completions", responses=_STREAMABLE)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a chat."""
        model = runtime.loaded(body.model)
        messages = [m.as_template_message() for m in body.messages]
        size = sum(len(m["content"]) for m in messages)
        prompt = await _beside(size, lambda: _encode_chat(model, body, messages))
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        answer = ChatAnswer(f"chatcmpl-{secrets.token_hex(12)}", **_answer_options(model, body, logprobs))
        max_tokens = body.max_completion_tokens or body.max_tokens
        return await _answer(request, config, model, body, [prompt], answer, max_tokens, logprobs)

    @router.post("/completions", responses=_STREAMABLE)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        model = runtime.loaded(body.model)
        prompts = await _beside(_text_size(body.prompt), lambda: _encode_prompts(model, body))
        answer = CompletionAnswer(
            f"cmpl-{secrets.token_hex(12)}",
            echo=_echo(model, body, prompts),
            **_answer_options(model, body, body.logprobs),
        )
        max_tokens = body.max_tokens or _default_tokens(model, prompts)
        return await _answer(request, config, model, body, prompts, answer, max_tokens, body.logprobs)

    return router


async def _answer(
    request: Request,
    config: ServerConfig,
    model: Model,
    body: GenerationRequest,
    prompts: Sequence[tuple[int, ...]],
    answer: Answer,
    max_tokens: int | None,
    logprobs: int | None,
) -> Response:
    stream = bool(body.stream)
    timeouts = [t for t in (body.timeout, config.request_timeout) if t is not None]
    generation = model.aopen(
        prompts,
        body.sampling(max_tokens, logprobs),
        n=body.n or 1,
        seed=body.seed,
        timeout=min(timeouts, default=None),
        stream=stream,
    )
    logger.debug("%s: %d prompts, n=%d, user=%r", answer.answer_id, len(prompts), body.n or 1, body.user)
    if stream:
        return await streamed_answer(request.receive, generation, answer, body.include_usage)
    return await whole_answer(request.receive, generation, answer)


def _answer_options(model: Model, body: GenerationRequest, logprobs: int | None) -> dict[str, Any]:
    return {
        "model": body.model,
        "fingerprint": f"realm-{__version__}-{model.fingerprint[:8]}",
        "token_bytes": None if logprobs is None else model.tokenizer.token_bytes,
        "include_usage": body.include_usage,
        "choices_per_prompt": body.n or 1,
    }


async def _beside(num_chars: int, encode: Callable[[], Any]) -> Any:
    """Encode here if it is quick, on another thread if it isn't."""
    return encode() if num_chars <= _INLINE_CHARS else await asyncio.to_thread(encode)


def _text_size(prompt: Any) -> int:
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(p) for p in prompt if isinstance(p, str | list))


def _encode_chat(model: Model, body: ChatRequest, messages: list[dict[str, str]]) -> tuple[int, ...]:
    return model.encode_chat(
        messages, add_generation_prompt=body.add_generation_prompt, variables=body.chat_template_kwargs
    )


def _encode_prompts(model: Model, body: CompletionRequest) -> list[tuple[int, ...]]:
    """Token ids of each of the prompts that the four shapes of `prompt` may hold."""
    prompt: Any = body.prompt
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    return [model.encode(p, add_special=body.add_special_tokens) for p in (prompt if several else [prompt])]


def _echo(model: Model, body: CompletionRequest, prompts: Sequence[tuple[int, ...]]) -> list[str]:
    """The prompts' texts, as they were sent where they were sent as text."""
    if not body.echo:
        return []
    given: Any = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    texts = given if isinstance(given[0], str) else [model.tokenizer.decode(ids) for ids in prompts]
    return list(texts)


def _default_tokens(model: Model, prompts: Sequence[tuple[int, ...]]) -> int:
    """Sixteen, or what the context leaves."""
    room = model.limits.max_seq_len - max(len(p) for p in prompts)
    return max(1, min(_DEFAULT_COMPLETION_TOKENS, room))


def _model_body(model: Model) -> dict[str, Any]:
    return {
        "id": model.model_id,
        "object": "model",
        "created": model.created,
        "owned_by": "realm",
        "max_model_len": model.limits.max_seq_len,
    }


def _install_error_handlers(app: FastAPI) -> None:
    """Every error leaves in the OpenAI shape."""

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

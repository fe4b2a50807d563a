"""The endpoints of the OpenAI API."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from realm import __version__
from realm.core.errors import NotFound, UnsupportedParameter
from realm.runtime.manager import RuntimeManager
from realm.runtime.model import Model
from realm.server.config import ServerConfig
from realm.server.schemas import (
    ChatRequest,
    CompletionRequest,
    ErrorBody,
    GenerationRequest,
    SpeculativeOptions,
    parse_json,
)
from realm.server.stream import streamed_answer, whole_answer
from realm.server.tenancy import Tenant
from realm.server.wire import Answer, ChatAnswer, CompletionAnswer

logger = logging.getLogger(__name__)

# Encoding this much text takes about a millisecond; more is done on another thread, beside the event loop.
_INLINE_CHARS = 8192
_DEFAULT_COMPLETION_TOKENS = 16  # the OpenAI API's own

_ERROR_TEXTS: dict[int | str, str] = {
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
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text} for status, text in _ERROR_TEXTS.items()
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


def openai_router(runtime: RuntimeManager, config: ServerConfig) -> APIRouter:
    """Models, chat completions, completions."""
    router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictRoute, responses=_ERRORS)

    @router.get("/models")
    async def list_models(request: Request) -> JSONResponse:
        """Models in memory, and the adapters that the caller may put on them."""
        names = [name for model in runtime.models for name in _names(model, request.state.tenant)]
        return JSONResponse({"object": "list", "data": [_model_body(model, name) for model, name in names]})

    @router.get("/models/{model_id:path}")
    async def get_model(model_id: str, request: Request) -> JSONResponse:
        """One model."""
        model, _ = _resolve(runtime, request.state.tenant, model_id)
        return JSONResponse(_model_body(model, model_id))

    @router.post("/chat/completions", responses=_STREAMABLE)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a chat."""
        model, adapter = _resolve(runtime, request.state.tenant, body.model)
        messages = [m.as_template_message() for m in body.messages]
        size = sum(len(m["content"]) for m in messages)
        prompt = await _beside(size, lambda: _encode_chat(model, body, messages))
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        answer = ChatAnswer(f"chatcmpl-{secrets.token_hex(12)}", **_answer_options(model, body, logprobs))
        max_tokens = body.max_completion_tokens or body.max_tokens
        return await _answer(request, config, model, adapter, body, [prompt], answer, max_tokens, logprobs)

    @router.post("/completions", responses=_STREAMABLE)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        model, adapter = _resolve(runtime, request.state.tenant, body.model)
        prompts = await _beside(_text_size(body.prompt), lambda: _encode_prompts(model, body))
        answer = CompletionAnswer(
            f"cmpl-{secrets.token_hex(12)}",
            echo=_echo(model, body, prompts),
            **_answer_options(model, body, body.logprobs),
        )
        max_tokens = body.max_tokens or _default_tokens(model, prompts)
        return await _answer(request, config, model, adapter, body, prompts, answer, max_tokens, body.logprobs)

    return router


def _names(model: Model, tenant: Tenant) -> list[tuple[Model, str]]:
    """What a tenant may call a model: its id, and with each adapter it may use."""
    usable = (name for name in model.adapters.names() if tenant.may_use(name))
    return [(model, model.model_id), *((model, f"{model.model_id}:{name}") for name in usable)]


def _resolve(runtime: RuntimeManager, tenant: Tenant, name: str) -> tuple[Model, str | None]:
    """The model and the adapter that `base` or `base:adapter` names; without a name, the tenant's own adapter.

    Raises:
        NotFound: no such model or adapter, or none that the tenant may use.
    """
    models = {model.model_id: model for model in runtime.models}
    if name in models:
        return models[name], runtime.tenant_lora_adapter(tenant.tenant_id)
    base, _, adapter = name.rpartition(":")
    if base in models and tenant.may_use(adapter) and adapter in models[base].adapters.names():
        return models[base], adapter
    raise NotFound(f"the model {name!r} does not exist", code="model_not_found", param="model")


async def _answer(
    request: Request,
    config: ServerConfig,
    model: Model,
    adapter: str | None,
    body: GenerationRequest,
    prompts: Sequence[tuple[int, ...]],
    answer: Answer,
    max_tokens: int | None,
    logprobs: int | None,
) -> Response:
    stream, tenant = bool(body.stream), request.state.tenant
    timeouts = [t for t in (body.timeout, config.request_timeout) if t is not None]
    generation = model.aopen(
        prompts,
        body.sampling(max_tokens, logprobs),
        n=body.n or 1,
        seed=body.seed,
        timeout=min(timeouts, default=None),
        stream=stream,
        tenant=tenant.tenant_id,
        adapter=adapter,
        **_speculation(tenant, body.speculative),
    )
    logger.debug(
        "%s: tenant=%s user=%r prompts=%d n=%d",
        answer.answer_id,
        tenant.tenant_id,
        body.user,
        len(prompts),
        body.n or 1,
    )
    if stream:
        return await streamed_answer(request.receive, generation, answer, body.include_usage)
    return await whole_answer(request.receive, generation, answer)


def _speculation(tenant: Tenant, wanted: SpeculativeOptions | None) -> dict[str, Any]:
    """What the tenant's settings leave of what the request asks for, as `Model.open` takes it.

    Raises:
        UnsupportedParameter: it asks for drafts, and the tenant gets none.
    """
    if wanted is not None and wanted.enabled and not tenant.speculate:
        raise UnsupportedParameter("speculation is off for this tenant", param="speculative")
    if not tenant.speculate or (wanted is not None and not wanted.enabled):
        return {"speculate": False}
    own = None if wanted is None else wanted.max_draft_tokens
    limits = [limit for limit in (tenant.max_draft_tokens, own) if limit is not None]
    return {"speculate": None if wanted is None else True, "max_draft_tokens": min(limits, default=None)}


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


def _model_body(model: Model, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "realm",
        "max_model_len": model.limits.max_seq_len,
    }

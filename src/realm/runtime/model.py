"""A served model as Python programs use it: generate, stream, and their async twins."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypedDict, Unpack, overload

import numpy as np

from realm.core.errors import InvalidRequest
from realm.core.types import SamplingParams
from realm.runtime.events import Event
from realm.runtime.generation import Completion, Generation, completion_of
from realm.runtime.served import Message, ServedModel

Prompt = str | Sequence[int] | Sequence[Message]
"""A text, its token ids, or the messages of a chat."""


_NOT_SAMPLING: tuple[str, ...] = ("timeout", "seed", "tenant", "adapter", "speculate", "max_draft_tokens")


class Options(TypedDict, total=False):
    """Keyword arguments of `generate` and `stream`; see `SamplingParams` for their meaning."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int | None
    seed: int | None
    """Random if None or absent."""
    timeout: float | None
    """Seconds; DeadlineExceeded after that."""
    tenant: str
    """On whose behalf; tenants share no cached prefix."""
    adapter: str | None
    """Name of a loaded LoRA adapter."""
    speculate: bool | None
    """Whether tokens may be guessed ahead, which never changes the output; if None, when the model does so."""
    max_draft_tokens: int | None
    """Longest guess, where that is shorter than the model's."""


class Model(ServedModel):
    """A loaded model. Close it, or use it in a `with`, to end its thread and free its memory."""

    @overload
    def generate(self, prompt: str, **options: Unpack[Options]) -> Completion: ...

    @overload
    def generate(self, prompt: list[str], **options: Unpack[Options]) -> list[Completion]: ...

    @overload
    def generate(self, prompt: Any, **options: Unpack[Options]) -> Any: ...

    def generate(self, prompt: Any, **options: Unpack[Options]) -> Any:
        """Complete a prompt (a text, token ids or chat messages), or a list of prompts together in one batch.

        Returns:
            A Completion for one prompt, a list of them for a list.

        Raises:
            RealmError: bad options, a prompt that doesn't fit, or a request that ended with an error.
        """
        single, prompts, params, rest = self._read(prompt, options)
        completions = self.open(prompts, params, stream=False, **rest).collect()
        return completions[0] if single else completions

    async def agenerate(self, prompt: Any, **options: Unpack[Options]) -> Any:
        """`generate` for a coroutine."""
        single, prompts, params, rest = self._read(prompt, options)
        completions = await self.aopen(prompts, params, stream=False, **rest).acollect()
        return completions[0] if single else completions

    def stream(self, prompt: Any, **options: Unpack[Options]) -> Generation:
        """Events as they happen: `print(event, end="")` prints the text; `event.index` tells which prompt of a list."""
        _, prompts, params, rest = self._read(prompt, options)
        return self.open(prompts, params, **rest)

    def astream(self, prompt: Any, **options: Unpack[Options]) -> Generation:
        """`stream` for a coroutine: `async for event in model.astream(...)`."""
        _, prompts, params, rest = self._read(prompt, options)
        return self.aopen(prompts, params, **rest)

    def submit(self, prompt: Prompt, **options: Unpack[Options]) -> Future[Completion]:
        """Start one completion and return at once. Cancelling the future does not stop the request."""
        single, prompts, params, rest = self._read(prompt, options)
        if not single:
            raise InvalidRequest("submit takes one prompt", param="prompt")
        consumer = _FutureConsumer()
        self.start(prompts, params, consumer, stream=False, **rest)
        return consumer.future

    def close(self) -> None:
        """End open requests with an error, and the engine's thread."""
        self.loop.close()
        self.adapter_pool.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _read(
        self, prompt: Any, options: Options
    ) -> tuple[bool, list[tuple[int, ...]], SamplingParams, dict[str, Any]]:
        """(was it one prompt, token ids, sampling, what `start` takes besides)."""
        single = _is_prompt(prompt)
        prompts = [self._encode_any(p) for p in ([prompt] if single else _several(prompt))]
        sampling: dict[str, Any] = dict(options)
        stop = sampling.get("stop", ())
        sampling["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
        sampling["stop_token_ids"] = tuple(sampling.get("stop_token_ids", ()))
        rest = {name: sampling.pop(name) for name in _NOT_SAMPLING if name in sampling}
        return single, prompts, SamplingParams(**sampling), rest

    def _encode_any(self, prompt: Prompt) -> tuple[int, ...]:
        if _is_chat(prompt):
            return self.encode_chat(prompt)  # type: ignore[arg-type]
        return self.encode(prompt if isinstance(prompt, str) else [int(i) for i in prompt])  # type: ignore[arg-type]


class _FutureConsumer:
    """One request's single event, as a future."""

    loop = None

    def __init__(self) -> None:
        self.future: Future[Completion] = Future()
        self.future.set_running_or_notify_cancel()

    def deliver(self, event: Event) -> None:
        if event.error is not None:
            self.future.set_exception(event.error)
        else:
            self.future.set_result(completion_of([event]))


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) or _is_ids(value) or _is_chat(value)


def _is_ids(value: Any) -> bool:
    # bool is an int to Python, and bytes a sequence of them; neither is meant.
    return _is_list(value) and all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in value)


def _is_chat(value: Any) -> bool:
    return _is_list(value) and all(isinstance(message, Mapping) for message in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray) and len(value) > 0


def _several(prompts: Any) -> Sequence[Prompt]:
    """A list of prompts, checked; an empty one is fine.

    Raises:
        InvalidRequest: it is something else.
    """
    for given in prompts if isinstance(prompts, list | tuple) else [prompts]:
        if not _is_prompt(given):
            raise InvalidRequest(
                f"a prompt is a text, a list of token ids or a list of messages, not {reprlib.repr(given)}",
                param="prompt",
            )
    result: Sequence[Prompt] = prompts
    return result

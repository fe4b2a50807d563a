"""Answers in the OpenAI API's shapes: whole bodies, and the chunks of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from realm.core.errors import RealmError
from realm.core.types import FinishReason, TokenLogprobs, Usage
from realm.runtime.events import Event
from realm.runtime.generation import Completion

# JSON has no -inf; this is the OpenAI API's own stand-in.
_LOWEST_LOGPROB = -9999.0

TokenBytes = Callable[[int], bytes]
"""A token id's bytes."""

_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
DONE = b"data: [DONE]\n\n"


def error_body(error: RealmError) -> dict[str, Any]:
    """The OpenAI error object; the hint joins the message."""
    message = f"{error.message}. {error.hint}" if error.hint else error.message
    return {"error": {"message": message, "type": error.type, "param": error.param, "code": error.code}}


def error_event(error: RealmError) -> bytes:
    """An error in the middle of a stream."""
    return f"data: {_dumps(error_body(error))}\n\n".encode()


def usage_body(usages: Sequence[Usage], choices_per_prompt: int) -> dict[str, Any]:
    """Token counts of a call; a prompt counts once however many choices grew from it."""
    firsts = usages[::choices_per_prompt]
    prompt = sum(u.prompt_tokens for u in firsts)
    completion = sum(u.completion_tokens for u in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(u.cached_tokens for u in firsts)},
    }


def token_text(raw: bytes) -> str:
    """A token as a string; one that isn't whole UTF-8 is spelled out, as the OpenAI API does."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def chat_logprobs(rows: Iterable[TokenLogprobs], token_bytes: TokenBytes) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        raw = token_bytes(token_id)
        return {"token": token_text(raw), "logprob": max(logprob, _LOWEST_LOGPROB), "bytes": list(raw)}

    content = [
        entry(row.token_id, row.logprob) | {"top_logprobs": [entry(token, value) for token, value in row.top]}
        for row in rows
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    rows: Iterable[TokenLogprobs], token_bytes: TokenBytes, offset: int
) -> tuple[dict[str, Any], int]:
    """`choices[].logprobs` of a completion whose text begins at character `offset`; and where the next part begins."""
    body: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for row in rows:
        text = token_text(token_bytes(row.token_id))
        body["tokens"].append(text)
        body["token_logprobs"].append(max(row.logprob, _LOWEST_LOGPROB))
        top = {token_text(token_bytes(token)): max(value, _LOWEST_LOGPROB) for token, value in row.top}
        body["top_logprobs"].append(top)
        body["text_offset"].append(offset)
        offset += len(text)
    return body, offset


class Answer:
    """What all parts of one answer share, and how a choice is written. Subclasses know the two endpoints' shapes.

    Args:
        answer_id: Like ``chatcmpl-...``.
        model: As the client named it.
        fingerprint: Of model and build.
        token_bytes: For log-probabilities; None if the client wants none.
        include_usage: Whether a stream ends with the token counts.
        choices_per_prompt: n.
    """

    whole_object: str
    chunk_object: str

    def __init__(
        self,
        answer_id: str,
        model: str,
        fingerprint: str,
        *,
        token_bytes: TokenBytes | None = None,
        include_usage: bool = False,
        choices_per_prompt: int = 1,
    ) -> None:
        self.answer_id = answer_id
        self._token_bytes = token_bytes
        self._choices_per_prompt = choices_per_prompt
        self._head = {
            "id": answer_id,
            "object": "",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._usages: dict[int, Usage] = {}
        # Everything but the choice is the same in each chunk: encode it once.
        opening = _dumps(self._head | {"object": self.chunk_object})[:-1]
        self._prefix = f'data: {opening},"choices":['
        self._suffix = ('],"usage":null}' if include_usage else "]}") + "\n\n"
        self._plain_suffix = self._choice_end("null", "null") + self._suffix

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The body of an answer that isn't streamed."""
        return self._head | {
            "object": self.whole_object,
            "choices": [self._whole_choice(c) for c in completions],
            "usage": usage_body([c.usage for c in completions], self._choices_per_prompt),
        }

    def opening(self, index: int) -> bytes:
        """What a choice's stream begins with, before any text."""
        return b""

    def chunk(self, event: Event) -> bytes:
        """One step of one choice; empty if the step has nothing to show."""
        if event.finish_reason is None and not event.logprobs:
            if not event.text:
                return b""
            return f"{self._prefix}{self._choice_begin(event)}{self._plain_suffix}".encode()
        logprobs = self._chunk_logprobs(event) if event.logprobs and self._token_bytes else "null"
        reason = "null"
        if event.finish_reason is not None:
            self._usages[event.index] = event.usage or Usage()
            reason = f'"{finish_reason(event.finish_reason)}","stop_reason":{_dumps(event.matched_stop)}'
        end = self._choice_end(logprobs, reason)
        return f"{self._prefix}{self._choice_begin(event)}{end}{self._suffix}".encode()

    def usage_chunk(self) -> bytes:
        """The chunk that ends a stream whose client asked for token counts."""
        usages = [usage for _, usage in sorted(self._usages.items())]
        body = self._head | {
            "object": self.chunk_object,
            "choices": [],
            "usage": usage_body(usages, self._choices_per_prompt),
        }
        return f"data: {_dumps(body)}\n\n".encode()

    def _whole_choice(self, completion: Completion) -> dict[str, Any]:
        raise AssertionError("abstract")

    def _choice_begin(self, event: Event) -> str:
        raise AssertionError("abstract")

    def _choice_end(self, logprobs: str, reason: str) -> str:
        return f',"logprobs":{logprobs},"finish_reason":{reason}}}'

    def _chunk_logprobs(self, event: Event) -> str:
        raise AssertionError("abstract")


class ChatAnswer(Answer):
    """Answers of /v1/chat/completions."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, index: int) -> bytes:
        """The assistant's turn begins."""
        delta = f'{{"index":{index},"delta":{{"role":"assistant","content":""}}'
        return f"{self._prefix}{delta}{self._plain_suffix}".encode()

    def _whole_choice(self, completion: Completion) -> dict[str, Any]:
        return {
            "index": completion.index,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": chat_logprobs(completion.logprobs, self._token_bytes) if self._token_bytes else None,
            "finish_reason": finish_reason(completion.finish_reason),
            "stop_reason": completion.matched_stop,
        }

    def _choice_begin(self, event: Event) -> str:
        delta = f'{{"content":{_dumps(event.text)}}}' if event.text else "{}"
        return f'{{"index":{event.index},"delta":{delta}'

    def _chunk_logprobs(self, event: Event) -> str:
        assert self._token_bytes is not None
        return _dumps(chat_logprobs(event.logprobs, self._token_bytes))


class CompletionAnswer(Answer):
    """Answers of /v1/completions. `echo` holds the text of each prompt, to be repeated, or nothing."""

    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, *args: Any, echo: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._echo = echo
        self._offsets: dict[int, int] = {}

    def opening(self, index: int) -> bytes:
        """The prompt, if the client wants it back."""
        if not self._echo:
            return b""
        return self.chunk(Event(index, self._echo_of(index)))

    def _echo_of(self, index: int) -> str:
        return self._echo[index // self._choices_per_prompt] if self._echo else ""

    def _whole_choice(self, completion: Completion) -> dict[str, Any]:
        logprobs = completion_logprobs(completion.logprobs, self._token_bytes, 0)[0] if self._token_bytes else None
        return {
            "index": completion.index,
            "text": self._echo_of(completion.index) + completion.text,
            "logprobs": logprobs,
            "finish_reason": finish_reason(completion.finish_reason),
            "stop_reason": completion.matched_stop,
        }

    def _choice_begin(self, event: Event) -> str:
        return f'{{"index":{event.index},"text":{_dumps(event.text)}'

    def _chunk_logprobs(self, event: Event) -> str:
        assert self._token_bytes is not None
        body, end = completion_logprobs(event.logprobs, self._token_bytes, self._offsets.get(event.index, 0))
        self._offsets[event.index] = end
        return _dumps(body)


def finish_reason(reason: FinishReason) -> str:
    """The OpenAI word; only choices that ended well are ever told this way."""
    assert reason in (FinishReason.STOP, FinishReason.LENGTH), reason
    return reason.value

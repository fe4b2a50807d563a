"""Bodies of the OpenAI-compatible requests, as strict types.

Nothing is accepted and ignored: a field of the OpenAI API that Realm lacks is a 400 that names it, unless it holds its
own default value; a field nobody knows is a 400 too.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from realm.core.config import MAX_DRAFT_TOKENS
from realm.core.errors import InvalidRequest, UnsupportedParameter
from realm.core.types import MAX_LOGPROBS, MAX_SEED, SamplingParams

MAX_CHOICES = 128
MAX_STOPS = 16

_TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}")

# What the chat template gets from elsewhere.
_TEMPLATE_NAMES = frozenset(
    ("self", "messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")
)

# Known to the OpenAI API, not to Realm: the values that change nothing, and are therefore fine. None always is.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),  # says how tools are called, and there are none
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}

# vLLM's and llama.cpp's extras that people try; named so that the answer is "unsupported" rather than "unknown".
_UNSUPPORTED |= dict.fromkeys(
    (
        "bad_words",
        "cache_prompt",
        "chat_template",
        "grammar",
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "json_schema",
        "mirostat",
        "prompt_logprobs",
        "structured_outputs",
        "truncate_prompt_tokens",
        "use_beam_search",
    ),
    (),
)


class StrictModel(BaseModel):
    """No coercion, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(StrictModel):
    """Options of a streamed answer."""

    include_usage: bool = False
    """One more chunk before the end, without choices, that holds the token counts."""
    include_obfuscation: Literal[False] = False


class SpeculativeOptions(StrictModel):
    """Whether and how far tokens are guessed ahead. The output is the same either way."""

    enabled: bool = True
    max_draft_tokens: Annotated[int, Field(ge=1, le=MAX_DRAFT_TOKENS)] | None = None
    """Longest guess; the server's own limit if that is shorter."""

    @model_validator(mode="after")
    def _check_enabled(self) -> SpeculativeOptions:
        if not self.enabled and self.max_draft_tokens is not None:
            raise InvalidRequest("max_draft_tokens is only allowed when enabled is true", param="speculative")
        return self


class GenerationRequest(StrictModel):
    """What completions and chat completions share."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    """0 or -1: no limit."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED, le=MAX_SEED)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=256)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    timeout: Annotated[float, Field(gt=0, le=86400)] | None = None
    """Seconds until the request is given up; the server's own limit if that is shorter."""
    speculative: SpeculativeOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    """Goes to the request log."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        """Name what is known and not supported; drop it where it says nothing."""
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in cls.model_fields or name not in _UNSUPPORTED:
                kept[name] = value
            elif value is not None and value not in _UNSUPPORTED[name]:
                raise UnsupportedParameter(f"'{name}' is not supported", param=name)
        return kept

    @model_validator(mode="after")
    def _check_stream_options(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options is only allowed when stream is true", param="stream_options")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """The engine's view of these fields; `seed` is left to the caller.

        Raises:
            InvalidRequest: a value that only the whole can rule out.
        """
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "ignore_eos": self.ignore_eos,
        }
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(
            max_tokens=max_tokens,
            top_k=max(self.top_k or 0, 0),
            logit_bias=self._bias(),
            stop=stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            logprobs=logprobs,
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )

    def _bias(self) -> dict[int, float]:
        given = self.logit_bias or {}
        for token in given:
            if not _TOKEN_ID.fullmatch(token):  # so that no two keys mean one token
                raise InvalidRequest(f"logit_bias keys must be token ids, got {token[:40]!r}", param="logit_bias")
        return {int(token): bias for token, bias in given.items()}


TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    add_special_tokens: bool = True
    """Put the model's begin-of-sequence token before a prompt of text."""

    @model_validator(mode="after")
    def _check_echo(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise UnsupportedParameter("'echo' together with 'logprobs' is not supported", param="echo")
        return self


class TextPart(StrictModel):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(StrictModel):
    """One turn. An assistant's message may come back as the API gave it out, with empty tool calls and the like."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        role = data.get("role")
        if role in ("tool", "function"):
            raise UnsupportedParameter(f"messages with role '{role}' are not supported", param="messages")
        for part in data["content"] if isinstance(data.get("content"), list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in ("image_url", "input_audio", "file", "refusal"):
                raise UnsupportedParameter(f"content of type '{kind}' is not supported", param="messages")
        for name in ("name", "tool_calls", "function_call", "audio", "refusal", "annotations", "tool_call_id"):
            if data.get(name):
                raise UnsupportedParameter(f"'{name}' in messages is not supported", param="messages")
        return {key: value for key, value in data.items() if key in ("role", "content") or value not in (None, [])}

    def as_template_message(self) -> dict[str, str]:
        """What chat templates read. `developer` is the newer name of `system`."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    add_generation_prompt: bool = True
    """End the prompt with the opening of an assistant's turn."""
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=32)] | None = None
    """More variables for the chat template, such as `enable_thinking`."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _check_variables(cls, variables: dict[str, Any] | None) -> dict[str, Any] | None:
        taken = _TEMPLATE_NAMES.intersection(variables or ())
        if taken:
            name = min(taken)
            raise InvalidRequest(f"'{name}' is not for chat_template_kwargs to set", param="chat_template_kwargs")
        return variables

    @model_validator(mode="after")
    def _check_pairs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs is only allowed when logprobs is true", param="top_logprobs")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise InvalidRequest(
                f"max_tokens ({both[0]}) and max_completion_tokens ({both[1]}) disagree", param="max_completion_tokens"
            )
        return self


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Body of every answer that isn't a success."""

    error: ErrorDetail


def parse_json(body: bytes) -> Any:
    """JSON as RFC 8259 has it.

    UTF-8 without a byte order mark, no NaN or Infinity, no repeated keys, no half surrogate pairs, no absurd depth.

    Raises:
        InvalidRequest: anything else.
    """
    try:
        text = body.decode()
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_bounded_int, object_pairs_hook=_unique)
        if b"\\ud" in body.lower():  # only an escape can spell what is not Unicode
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise InvalidRequest("the JSON body is nested too deeply", code="invalid_json") from None
    except UnicodeDecodeError:
        raise InvalidRequest("the JSON body is not valid UTF-8", code="invalid_json") from None
    except UnicodeEncodeError:
        raise InvalidRequest("the JSON body holds half of a surrogate pair", code="invalid_json") from None
    except json.JSONDecodeError as e:
        raise InvalidRequest(f"the body is not valid JSON: {e.msg} at character {e.pos}", code="invalid_json") from None


def _refuse_constant(name: str) -> Any:
    raise InvalidRequest(f"the body is not valid JSON: {name} is not a JSON number", code="invalid_json")


def _bounded_int(digits: str) -> int:
    if len(digits) > 40:
        raise InvalidRequest(f"a number of {len(digits)} digits is out of range", code="invalid_json")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"the JSON body has '{twice}' twice", code="invalid_json")
    return result

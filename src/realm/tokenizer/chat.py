"""Messages to prompt text, by the model's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realm.core.errors import InvalidRequest, ModelFileError
from realm.tokenizer.chat_templates import BUILTIN
from realm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import jinja2

MAX_TEMPLATE_CHARS = 1 << 20
_BASE_UNITS = 20_000_000
_BASE_CHARS = 1 << 20
# Templates may repeat what they get (system prompt, tools), within reason.
_UNITS_PER_CHAR = 100
_CHARS_PER_CHAR = 8

KEY = "tokenizer.chat_template"


class ChatTemplate:
    """A chat template as models ship it: jinja2, in the dialect of transformers' `apply_chat_template`.

    Args:
        source: The template, or None for a model that has none: rendering then says so.
        bos: Text of the BOS token.
        eos: Text of the EOS token.
    """

    def __init__(self, source: str | None, bos: str = "", eos: str = "") -> None:
        self.source = source
        self._special = {"bos_token": bos, "eos_token": eos}

    @cached_property
    def _compiled(self) -> jinja2.Template:
        from realm.tokenizer.chat_sandbox import ChatEnvironment, metered

        if self.source is None:
            raise InvalidRequest(
                "the model has no chat template",
                code="no_chat_template",
                hint=f"use /v1/completions, or serve with --chat-template NAME or FILE; names: {', '.join(BUILTIN)}",
            )
        if len(self.source) > MAX_TEMPLATE_CHARS:
            raise _failure(f"it has {len(self.source)} characters, at most {MAX_TEMPLATE_CHARS} are read")
        try:
            with metered(_BASE_UNITS):
                return ChatEnvironment().from_string(self.source)
        # The template is foreign code; whatever it makes jinja2 or Python raise is its fault.
        except Exception as error:
            raise _failure(f"it can't be compiled: {_reason(error)}") from error

    def check(self) -> None:
        """Compile now.

        Raises:
            InvalidRequest: `chat_template_error` or `no_chat_template`.
        """
        _ = self._compiled

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation; encode it with `add_special=False`, templates write BOS themselves.

        Args:
            messages: Each with `role` and `content`; content is text, None or a list of text parts, which are joined
                by newlines. Other fields are handed to the template as they are.
            add_generation_prompt: End with the opening of the assistant's turn.
            tools: JSON schemas, for templates that write them.
            **variables: More variables for the template.

        Raises:
            InvalidRequest: `chat_template_error` (the template failed, or refused the conversation),
                `no_chat_template`, or a malformed message.
        """
        from realm.tokenizer.chat_sandbox import metered, render_limited

        template = self._compiled
        plain = [_plain_message(index, message) for index, message in enumerate(messages)]
        num_chars = _num_chars([plain, tools, variables])
        try:
            with metered(_BASE_UNITS + _UNITS_PER_CHAR * num_chars):
                chunks = template.generate(
                    messages=plain,
                    tools=tools,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **self._special,
                    **variables,
                )
                return render_limited(chunks, _BASE_CHARS + _CHARS_PER_CHAR * num_chars)
        # As above.
        except Exception as error:
            raise _failure(_reason(error)) from error


def load_chat_template(
    metadata: Mapping[str, object], tokenizer: Tokenizer, override: str | Path | None = None
) -> ChatTemplate:
    """The template that `override` names (a built-in name or a file), else the one in `metadata`, else none.

    A broken template in a model file shows when it is used: the model can still complete text.

    Raises:
        InvalidRequest: `override` is neither a name nor a readable file, or doesn't compile.
        ModelFileError: the metadata's template is not text.
    """
    bos, eos = (tokenizer.token_text(i) if i is not None else "" for i in (tokenizer.bos_id, tokenizer.eos_id))
    if override is not None:
        template = ChatTemplate(_named_template(override), bos, eos)
        template.check()
        return template
    source = metadata.get(KEY)
    if source is not None and not isinstance(source, str):
        raise ModelFileError(f"{KEY} must be of type str, got {type(source).__name__}")
    return ChatTemplate(source, bos, eos)


def _named_template(override: str | Path) -> str:
    if isinstance(override, str) and override in BUILTIN:
        return BUILTIN[override]
    try:
        return Path(override).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"chat template {str(override)!r} is neither a readable text file nor one of {', '.join(BUILTIN)}: {error}",
            param="chat_template",
        ) from error


def _plain_message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message.get("role"), str):
        raise InvalidRequest(f"messages[{index}].role must be text", param=f"messages[{index}].role")
    plain = dict(message)
    content = message.get("content")
    if isinstance(content, list | tuple):
        plain["content"] = "\n".join(_part_text(index, number, part) for number, part in enumerate(content))
    elif content is not None and not isinstance(content, str):
        param = f"messages[{index}].content"
        raise InvalidRequest(f"{param} must be text or a list of text parts", param=param)
    return plain


def _part_text(index: int, number: int, part: object) -> str:
    param = f"messages[{index}].content[{number}]"
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise InvalidRequest(f"{param} must be a part of type 'text', got {kind!r}", param=param)
    text: str = part["text"]
    return text


def _num_chars(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_num_chars(key) + _num_chars(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_num_chars, value))
    return 8


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__


def _failure(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the chat template failed: {reason}", code="chat_template_error", param="messages")

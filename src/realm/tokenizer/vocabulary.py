"""The vocabulary as the GGUF metadata (`tokenizer.ggml.*`) spells it, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar, cast

from realm.core.errors import ModelFileError
from realm.core.texts import Texts

T = TypeVar("T")

PREFIX = "tokenizer.ggml."
_LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type` values (GGUF specification)."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


ADDED_TYPES = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
"""Types whose tokens are spelled as plain text in the vocabulary, whatever the family."""

# llama.cpp ends generation on these texts (llama-vocab.cpp, special_eog_ids): files seldom name all their end tokens.
_END_TEXTS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    # Fill-in-the-middle padding, repository and file separators: text after them belongs to another document.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
)
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id", "fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens in id order with their types; ids are checked to be in range."""

    tokens: Texts
    types: bytes
    """A `TokenType` for each token."""
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    end_ids: frozenset[int]
    special_ids: frozenset[int]
    """Control and unknown tokens: left out of decoded text."""
    user_defined_ids: tuple[int, ...]

    def first_difference(self, other: Vocabulary) -> str | None:
        """How the first differing token differs, or None if every token has the same text and role."""
        if len(self.tokens) != len(other.tokens):
            return f"{len(self.tokens)} tokens against {len(other.tokens)}"
        if self.tokens != other.tokens:
            index = next(i for i, pair in enumerate(zip(self.tokens, other.tokens, strict=True)) if pair[0] != pair[1])
            return f"token {index} is {self.tokens[index]!r} against {other.tokens[index]!r}"
        if self.special_ids != other.special_ids:
            index = min(self.special_ids ^ other.special_ids)
            sides = ("special", "not special") if index in self.special_ids else ("not special", "special")
            return f"token {index} ({self.tokens[index]!r}) is {sides[0]} against {sides[1]}"
        return None


def read_vocabulary(metadata: Mapping[str, object]) -> Vocabulary:
    """Build the vocabulary.

    Raises:
        ModelFileError: a missing, mistyped or inconsistent key; the message names it.
    """
    tokens = _read_tokens(metadata)
    types = _read_types(metadata, len(tokens))
    # An empty spelling can't be matched; llama.cpp renames such tokens too.
    for index in [i for i, token in enumerate(tokens) if not token]:
        tokens[index], types[index] = f"[EMPTY_{index}]", TokenType.UNUSED
    _check_unique(tokens)
    ids = {key: _token_id(metadata, key, len(tokens)) for key in ("bos_token_id", "unknown_token_id", *_END_KEYS)}
    end_ids = _end_ids(tokens, ids)
    for index in end_ids:
        # Files with a mistyped end token exist; it must not show up in the text.
        types[index] = TokenType.CONTROL
    hidden = (TokenType.CONTROL, TokenType.UNKNOWN)
    return Vocabulary(
        tokens=Texts(tokens),
        types=bytes(types),
        bos_id=ids["bos_token_id"],
        eos_id=ids["eos_token_id"],
        unk_id=ids["unknown_token_id"],
        end_ids=end_ids,
        special_ids=frozenset(i for i, kind in enumerate(types) if kind in hidden),
        user_defined_ids=tuple(i for i, kind in enumerate(types) if kind == TokenType.USER_DEFINED),
    )


def _read_tokens(metadata: Mapping[str, object]) -> list[str]:
    tokens = read_list(metadata, "tokens", str)
    if not tokens:
        raise ModelFileError(f"{PREFIX}tokens is empty, a vocabulary needs at least one token")
    check_utf8("tokens", tokens)
    return list(tokens)


def _read_types(metadata: Mapping[str, object], num_tokens: int) -> list[int]:
    if PREFIX + "token_type" not in metadata:
        return [TokenType.NORMAL] * num_tokens
    types = read_list(metadata, "token_type", int)
    if len(types) != num_tokens:
        raise ModelFileError(f"{PREFIX}token_type has {len(types)} entries for {num_tokens} tokens")
    unknown = set(types) - set(TokenType)
    if unknown:
        raise ModelFileError(f"{PREFIX}token_type holds {min(unknown)}, known types are 0 to {max(TokenType)}")
    return list(types)


def _check_unique(tokens: Sequence[str]) -> None:
    if len(set(tokens)) == len(tokens):
        return
    first: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if first.setdefault(token, index) != index:
            raise ModelFileError(f"{PREFIX}tokens holds {token!r} twice, at {first[token]} and {index}")


def _end_ids(tokens: Sequence[str], ids: Mapping[str, int | None]) -> frozenset[int]:
    wanted = frozenset(_END_TEXTS)
    by_text = {token: index for index, token in enumerate(tokens) if token in wanted}
    if {"<|return|>", "<|call|>", "<|end|>"} <= by_text.keys():
        # In the Harmony format <|end|> ends a message, not the turn.
        del by_text["<|end|>"]
    named = (ids[key] for key in _END_KEYS)
    return frozenset(by_text.values()) | {index for index in named if index is not None}


def read_value(metadata: Mapping[str, object], name: str, kind: type[T], default: T | None) -> T | None:
    """The value of `tokenizer.ggml.<name>`, or `default` if absent; ModelFileError if it is not exactly a `kind`."""
    value = metadata.get(PREFIX + name)
    if value is None:
        return default
    if type(value) is not kind:
        raise ModelFileError(f"{PREFIX}{name} must be of type {kind.__name__}, got {type(value).__name__}")
    return value


def read_list(metadata: Mapping[str, object], name: str, kind: type[T]) -> Sequence[T]:
    """The list at `tokenizer.ggml.<name>`; ModelFileError if it is absent, no list or holds another type."""
    value = metadata.get(PREFIX + name)
    if value is None:
        raise ModelFileError(f"{PREFIX}{name} is missing", code="missing_metadata")
    if not isinstance(value, list | tuple | Texts):
        raise ModelFileError(f"{PREFIX}{name} must be a list, got {type(value).__name__}")
    wrong = {str} - {kind} if isinstance(value, Texts) else set(map(type, value)) - {kind}
    if wrong:
        names = ", ".join(sorted(other.__name__ for other in wrong))
        raise ModelFileError(f"{PREFIX}{name} must hold only {kind.__name__} values, it also holds {names}")
    return cast("Sequence[T]", value)


def read_finite(metadata: Mapping[str, object], name: str, num_tokens: int) -> Sequence[float]:
    """The list of `num_tokens` floats of 32 bits at `tokenizer.ggml.<name>`; ModelFileError otherwise."""
    values = read_list(metadata, name, float)
    if len(values) != num_tokens:
        raise ModelFileError(f"{PREFIX}{name} has {len(values)} entries for {num_tokens} tokens")
    if not all(map(_is_float32, values)):
        index = next(i for i, value in enumerate(values) if not _is_float32(value))
        raise ModelFileError(f"{PREFIX}{name} entry {index} is {values[index]}, it must be finite")
    return values


def _is_float32(value: float) -> bool:
    return -_LARGEST_FLOAT32 <= value <= _LARGEST_FLOAT32  # False for NaN


def check_utf8(name: str, texts: Sequence[str]) -> None:
    """ModelFileError if a text holds what UTF-8 can't: readers smuggle invalid bytes in as lone surrogates."""
    if isinstance(texts, Texts) or _encodes("".join(texts)):
        return
    index = next(i for i, text in enumerate(texts) if not _encodes(text))
    raise ModelFileError(f"{PREFIX}{name} entry {index} is not valid UTF-8: {texts[index]!r}")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _token_id(metadata: Mapping[str, object], name: str, num_tokens: int) -> int | None:
    value = read_value(metadata, name, int, None)
    if value is not None and not 0 <= value < num_tokens:
        raise ModelFileError(f"{PREFIX}{name} is {value}, the vocabulary has {num_tokens} tokens")
    return value


Encoder = Callable[[str, bool], list[int]]
"""(text, parse_special) -> token ids, nothing added."""

"""SentencePiece BPE vocabularies (`tokenizer.ggml.model = llama`), encoded by the `sentencepiece` library.

The library gets a model rebuilt from pieces, scores and types. Control tokens are cut out of the text before it, as
llama.cpp and HF do; user-defined tokens it matches itself, longest first.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from realm.core.errors import ModelFileError
from realm.tokenizer.vocabulary import PREFIX, Encoder, TokenType, Vocabulary, read_finite

SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SCORE_TYPE = struct.Struct("<BfBB")


def spm_encoder(metadata: Mapping[str, object], vocabulary: Vocabulary, add_space_prefix: bool) -> Encoder:
    """An encoder; with `add_space_prefix` every stretch of text between control tokens gets a space in front.

    Raises:
        ModelFileError: scores that are missing or not finite, byte tokens that are incomplete, or a piece that the
            library refuses.
    """
    from sentencepiece import SentencePieceProcessor

    model = _serialize_model(vocabulary, read_finite(metadata, "scores", len(vocabulary.tokens)))
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(f"{PREFIX}tokens can't be used as a SentencePiece vocabulary: {error}") from error
    control = ControlTokens({vocabulary.tokens[index]: index for index in vocabulary.special_ids})
    prefix = " " if add_space_prefix else ""

    def encode(text: str, parse_special: bool) -> list[int]:
        ids: list[int] = []
        for part in control.split(text) if parse_special else [text]:
            if isinstance(part, int):
                ids.append(part)
            elif part:
                ids += processor.EncodeAsIds(prefix + part)
        return ids

    return encode


class ControlTokens:
    """Finds control tokens in text: leftmost first, longest at equal starts."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = dict(ids)
        lengths: dict[str, set[int]] = {}
        for text in ids:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {char: sorted(sizes, reverse=True) for char, sizes in lengths.items()}
        self._start = re.compile(f"[{re.escape(''.join(lengths))}]") if lengths else None

    def split(self, text: str) -> Iterator[str | int]:
        """Text between control tokens (may be empty) and ids of the control tokens, in order."""
        done = position = 0
        while self._start is not None and (found := self._start.search(text, position)):
            position = found.start()
            match = self._match(text, position)
            if match is None:
                position += 1
                continue
            yield text[done:position]
            yield self._ids[match]
            done = position = position + len(match)
        yield text[done:]

    def _match(self, text: str, position: int) -> str | None:
        for length in self._lengths[text[position]]:
            candidate = text[position : position + length]
            if candidate in self._ids:
                return candidate
        return None


def _serialize_model(vocabulary: Vocabulary, scores: Sequence[float]) -> bytes:
    """A `ModelProto` (sentencepiece_model.proto) in protobuf's wire format.

    Written by hand: protobuf's own objects take ten times the memory of a large vocabulary, and a second to make.
    """
    types = bytearray(vocabulary.types)
    types[_unknown_id(vocabulary)] = TokenType.UNKNOWN
    out = bytearray()
    for text, score, kind in zip(vocabulary.tokens, scores, types, strict=True):
        if kind == TokenType.USER_DEFINED:
            # Converters write these as the text they match; the library matches after escaping spaces.
            text = text.replace(" ", SPACE)
        # SentencePiece: piece = 1, score = 2, type = 3
        end = _SCORE_TYPE.pack(2 << 3 | 5, score, 3 << 3, kind or TokenType.NORMAL)
        piece = _bytes_field(1, text.encode()) + end
        out += _bytes_field(1, piece)  # ModelProto.pieces
    # TrainerSpec: model_type = 3 (2 is BPE), vocab_size = 4, byte_fallback = 35
    trainer = _int_field(3, 2) + _int_field(4, len(types)) + _int_field(35, _has_byte_tokens(vocabulary))
    # NormalizerSpec: name = 1, add_dummy_prefix = 3, remove_extra_whitespaces = 4, escape_whitespaces = 5
    normalizer = _bytes_field(1, b"identity") + _int_field(3, 0) + _int_field(4, 0) + _int_field(5, 1)
    return bytes(out + _bytes_field(2, trainer) + _bytes_field(3, normalizer))


@cache
def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _unknown_id(vocabulary: Vocabulary) -> int:
    """The library needs exactly one unknown token; files often mark it as control."""
    typed = [index for index in vocabulary.special_ids if vocabulary.types[index] == TokenType.UNKNOWN]
    if len(typed) > 1:
        raise ModelFileError(f"{PREFIX}token_type marks {len(typed)} tokens as unknown, at most one can be")
    named = vocabulary.unk_id if vocabulary.unk_id is not None else (typed or [0])[0]
    if named not in vocabulary.special_ids or (typed and typed[0] != named):
        raise ModelFileError(f"{PREFIX}unknown_token_id is {named}, which is not an unknown or control token")
    return named


def _has_byte_tokens(vocabulary: Vocabulary) -> bool:
    texts = [vocabulary.tokens[i] for i, kind in enumerate(vocabulary.types) if kind == TokenType.BYTE]
    malformed = [text for text in texts if not _BYTE.fullmatch(text)]
    if malformed or len(texts) not in (0, 256):
        fault = f"{malformed[0]!r}" if malformed else f"{len(texts)} of the 256"
        raise ModelFileError(f"{PREFIX}token_type: byte tokens must be all of <0x00> to <0xFF>, got {fault}")
    return bool(texts)


def spm_piece(vocabulary: Vocabulary, token_id: int) -> bytes:
    """Raw bytes of a token."""
    text, kind = vocabulary.tokens[token_id], vocabulary.types[token_id]
    if kind == TokenType.BYTE:
        return bytes([int(text[3:5], 16)])
    if kind == TokenType.UNUSED:
        return b""
    return text.replace(SPACE, " ").encode()

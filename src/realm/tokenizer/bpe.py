"""Byte-level BPE vocabularies (`tokenizer.ggml.model = gpt2`), encoded by the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from realm.core.errors import ModelFileError
from realm.tokenizer.pretokenizers import PreTokenizer
from realm.tokenizer.vocabulary import ADDED_TYPES, PREFIX, Encoder, TokenType, Vocabulary, check_utf8, read_list

if TYPE_CHECKING:
    import tokenizers


def bpe_encoder(metadata: Mapping[str, object], vocabulary: Vocabulary, pre: PreTokenizer) -> Encoder:
    """An encoder over the merges in `metadata`.

    Raises:
        ModelFileError: a malformed merge, or one of pieces that the vocabulary doesn't have.
    """
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE

    vocab = {token: index for index, token in enumerate(vocabulary.tokens)}
    merges = _read_merges(metadata, vocab)
    model = BPE(vocab=vocab, merges=merges, ignore_merges=pre.ignore_merges)
    control = [vocabulary.tokens[index] for index in sorted(vocabulary.special_ids)]
    user_defined = [vocabulary.tokens[index] for index in vocabulary.user_defined_ids]

    def build(with_control: bool) -> tokenizers.Tokenizer:
        tokenizer = Tokenizer(model)
        pre.attach(tokenizer)
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in user_defined])
        if with_control:
            tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in control])
        return tokenizer

    parsing = build(with_control=True)

    @cache
    def literal() -> tokenizers.Tokenizer:
        return build(with_control=False)

    def encode(text: str, parse_special: bool) -> list[int]:
        tokenizer = parsing if parse_special else literal()
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def _read_merges(metadata: Mapping[str, object], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    lines = read_list(metadata, "merges", str)
    check_utf8("merges", lines)
    texts = list(vocab)  # in the order of their ids; merges of these, not of pieces cut out, keep loading small
    merges = []
    for index, line in enumerate(lines):
        left, space, right = line.partition(" ")
        if not space or left not in vocab or right not in vocab or left + right not in vocab:
            raise ModelFileError(f"{PREFIX}merges entry {index} ({line!r}) does not join two tokens into a third")
        merges.append((texts[vocab[left]], texts[vocab[right]]))
    return merges


def bpe_piece(vocabulary: Vocabulary, token_id: int) -> bytes:
    """Raw bytes of a token."""
    text, kind = vocabulary.tokens[token_id], vocabulary.types[token_id]
    if kind == TokenType.UNUSED and text == f"[EMPTY_{token_id}]":
        return b""
    if kind in ADDED_TYPES:
        return text.encode()
    alphabet = _byte_of_char()
    # As the `tokenizers` decoder: a token with any character outside the alphabet stands for itself.
    if all(char in alphabet for char in text):
        return bytes(alphabet[char] for char in text)
    return text.encode()


@cache
def _byte_of_char() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the other bytes for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}

"""`load_tokenizer`: text to token ids and back, from the metadata of a GGUF file alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from realm.core.errors import InvalidRequest, ModelFileError
from realm.tokenizer.bpe import bpe_encoder, bpe_piece
from realm.tokenizer.pretokenizers import pre_tokenizer
from realm.tokenizer.spm import spm_encoder, spm_piece
from realm.tokenizer.vocabulary import PREFIX, Encoder, Vocabulary, read_value, read_vocabulary


class PieceTable(dict[int, bytes]):
    """Token id to bytes, filled on first use: most of a large vocabulary is never seen."""

    def __init__(self, piece: Callable[[int], bytes], num_tokens: int, hidden: frozenset[int]) -> None:
        super().__init__()
        self._piece = piece
        self._num_tokens = num_tokens
        self._hidden = hidden

    def __missing__(self, token_id: int) -> bytes:
        if not 0 <= token_id < self._num_tokens:
            raise InvalidRequest(f"token id {token_id} is not in the vocabulary of {self._num_tokens} tokens")
        piece = b"" if token_id in self._hidden else self._piece(token_id)
        self[token_id] = piece
        return piece


class Tokenizer:
    """One model's tokenizer. Made by `load_tokenizer`; safe to share between threads."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        encoder: Encoder,
        piece: Callable[[Vocabulary, int], bytes],
        *,
        add_bos: bool,
        add_eos: bool,
        add_space_prefix: bool,
    ) -> None:
        self.vocabulary = vocabulary
        self.vocab_size = len(vocabulary.tokens)
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.end_ids = vocabulary.end_ids
        """Ids that end generation."""
        self.special_ids = vocabulary.special_ids
        self.add_bos = add_bos
        self.add_eos = add_eos
        self.add_space_prefix = add_space_prefix
        self._encoder = encoder

        def raw(token_id: int) -> bytes:
            return piece(vocabulary, token_id)

        self._pieces = PieceTable(raw, self.vocab_size, frozenset())
        self.visible_pieces = PieceTable(raw, self.vocab_size, vocabulary.special_ids)
        """Token id to the bytes it adds to a text that leaves special tokens out."""

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`.

        Args:
            text: Any text; NUL and control characters are kept.
            add_special: Put BOS (and EOS) around it if the model's file says so.
            parse_special: Read control tokens spelled in `text` as such; otherwise they are plain text.

        Raises:
            InvalidRequest: `text` holds lone surrogates, which no UTF-8 text can.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"text is not valid Unicode: lone surrogate U+{ord(text[error.start]):04X} at character {error.start}",
                code="invalid_text",
            ) from None
        ids = self._encoder(text, parse_special)
        if add_special and self.add_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, continuation: bool = False) -> str:
        """Text of `ids`; bytes that aren't UTF-8 become U+FFFD.

        Args:
            ids: Token ids.
            skip_special: Leave control tokens out.
            continuation: The ids go on after other text. Otherwise the space that a vocabulary with
                `add_space_prefix` puts before a text is removed again.

        Raises:
            InvalidRequest: an id outside the vocabulary.
        """
        pieces = self.visible_pieces if skip_special else self._pieces
        data = b"".join([pieces[token_id] for token_id in ids])
        if self.add_space_prefix and not continuation:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Raw bytes of one token, special ones as they are spelled.

        Raises:
            InvalidRequest: an id outside the vocabulary.
        """
        return self._pieces[token_id]

    def token_text(self, token_id: int) -> str:
        """Text of one token alone; part of a character shows as U+FFFD."""
        return self._pieces[token_id].decode("utf-8", "replace")


def load_tokenizer(metadata: Mapping[str, object]) -> Tokenizer:
    """Build the tokenizer that GGUF metadata (`tokenizer.ggml.*`) describes.

    Raises:
        ModelFileError: keys that are missing, malformed or inconsistent, or a kind of tokenizer that is not supported.
    """
    model = read_value(metadata, "model", str, None)
    if model is None:
        raise ModelFileError(f"{PREFIX}model is missing", code="missing_metadata")
    if model == "gpt2":
        return _load_bpe(metadata)
    if model == "llama":
        return _load_spm(metadata)
    raise ModelFileError(
        f"{PREFIX}model is {model!r}, supported are 'gpt2' (byte-level BPE) and 'llama' (SentencePiece)",
        code="unsupported_tokenizer",
    )


def _load_bpe(metadata: Mapping[str, object]) -> Tokenizer:
    vocabulary = read_vocabulary(metadata)
    pre = pre_tokenizer(read_value(metadata, "pre", str, None) or "default")
    add_bos, add_eos = _added_ends(metadata, vocabulary, add_bos=pre.add_bos)
    encoder = bpe_encoder(metadata, vocabulary, pre)
    return Tokenizer(vocabulary, encoder, bpe_piece, add_bos=add_bos, add_eos=add_eos, add_space_prefix=False)


def _load_spm(metadata: Mapping[str, object]) -> Tokenizer:
    vocabulary = read_vocabulary(metadata)
    prefix = bool(read_value(metadata, "add_space_prefix", bool, True))
    add_bos, add_eos = _added_ends(metadata, vocabulary, add_bos=True)
    encoder = spm_encoder(metadata, vocabulary, prefix)
    return Tokenizer(vocabulary, encoder, spm_piece, add_bos=add_bos, add_eos=add_eos, add_space_prefix=prefix)


def _added_ends(metadata: Mapping[str, object], vocabulary: Vocabulary, *, add_bos: bool) -> tuple[bool, bool]:
    """Whether BOS and EOS are put around a text."""
    wanted_bos = bool(read_value(metadata, "add_bos_token", bool, add_bos))
    wanted_eos = bool(read_value(metadata, "add_eos_token", bool, False))
    for wanted, token_id, name in ((wanted_bos, vocabulary.bos_id, "bos"), (wanted_eos, vocabulary.eos_id, "eos")):
        if wanted and token_id is None and PREFIX + f"add_{name}_token" in metadata:
            raise ModelFileError(f"{PREFIX}add_{name}_token is set, but {PREFIX}{name}_token_id is missing")
    return wanted_bos and vocabulary.bos_id is not None, wanted_eos

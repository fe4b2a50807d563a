"""How text is split before BPE merges, by `tokenizer.ggml.pre`.

Regexes are those of the models' own tokenizer.json; where llama.cpp has the only definition (`default`), its own
(llama-vocab.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from realm.core.errors import ModelFileError
from realm.tokenizer.vocabulary import PREFIX

if TYPE_CHECKING:
    import tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """Splits text by each pattern in turn: matches and what lies between them are pieces of their own."""

    patterns: tuple[str, ...]
    nfc: bool = False
    """Normalise to NFC first."""
    ignore_merges: bool = False
    """A piece that is a token as it stands is taken whole."""
    add_bos: bool = False
    """Whether BOS is added when the file doesn't say."""

    def attach(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Set normaliser and pre-tokenizer of `tokenizer`."""
        from tokenizers import Regex, normalizers, pre_tokenizers

        if self.nfc:
            tokenizer.normalizer = normalizers.NFC()
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )


_FAMILIES: dict[tuple[str, ...], PreTokenizer] = {
    ("gpt-2", "olmo", "mpt"): PreTokenizer((_GPT2,)),
    ("smollm", "starcoder", "refact", "codeshell"): PreTokenizer((r"\p{N}", _GPT2)),
    ("qwen2",): PreTokenizer((rf"{_WORDS}|\p{{N}}|{_TAIL}",), nfc=True),
    # DeepSeek's distillations use Qwen's split without its normaliser.
    ("deepseek-r1-qwen",): PreTokenizer((rf"{_WORDS}|\p{{N}}|{_TAIL}",)),
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2"): PreTokenizer(
        (rf"{_WORDS}|\p{{N}}{{1,3}}|{_TAIL}",), ignore_merges=True, add_bos=True
    ),
    ("default",): PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}
_BY_NAME = {name: pre for names, pre in _FAMILIES.items() for name in names}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer that `tokenizer.ggml.pre` names.

    Raises:
        ModelFileError: unknown name; guessing one would give wrong tokens without a word.
    """
    if name not in _BY_NAME:
        raise ModelFileError(
            f"{PREFIX}pre is {name!r}, supported are {', '.join(sorted(_BY_NAME))}", code="unsupported_tokenizer"
        )
    return _BY_NAME[name]

"""Tiny vocabularies, trained in a moment, as GGUF metadata."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12:34, isn't it? We'll see: 1234567890.",
    "def main():\n    return [x ** 2 for x in range(10)]\n\n\tif x:\r\n        pass",
    "Żółć, naïve café; Ελληνικά, русский язык, 日本語のテキスト, 中文字符, ภาษาไทย, العربية, 한국어 👩‍👩‍👧‍👦 e\u0301",
    "<html><body>&nbsp;</body></html> http://example.org/a?b=c&d=%20 --- *** ___ $$$ a+b<=c>=d^e~f|g `h`",
] * 3


@cache
def _trained(num_tokens: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    vocab = tokenizer.get_vocab()
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return tuple(sorted(vocab, key=vocab.__getitem__)), tuple(merges)


def bpe_metadata(pre: str = "gpt-2", num_tokens: int = 600) -> dict[str, object]:
    """A byte-level BPE vocabulary with `<|endoftext|>`, `<|im_start|>`, `<|im_end|>` and a user-defined `<think>`."""
    tokens, merges = _trained(num_tokens)
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, *added],
        "tokenizer.ggml.token_type": [NORMAL] * len(tokens) + [CONTROL] * 3 + [USER_DEFINED],
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 2,
        "tokenizer.ggml.add_bos_token": False,
    }


def spm_metadata(add_space_prefix: bool = True) -> dict[str, object]:
    """A SentencePiece vocabulary with byte fallback, a few merges and user-defined runs of newlines."""
    control = ["<unk>", "<s>", "</s>", "<end_of_turn>"]
    user_defined = ["\n\n", "\n\n\n", "\t\t", "<table>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    merged = ["▁t", "he", "▁the", "in", "er", "▁a", "▁w", "or", "▁wor", "ld", "▁world", "ll", "ell", "hell", "hello"]
    chars = sorted(set("abcdefghijklmnopqrstuvwxyz.,!?0123456789é日本語ทภ") | {"▁"})
    tokens = control + user_defined + byte_tokens + merged + chars
    types = [UNKNOWN, *[CONTROL] * 3, *[USER_DEFINED] * len(user_defined), *[BYTE] * 256]
    types += [NORMAL] * (len(merged) + len(chars))
    scores = [0.0] * (len(tokens) - len(merged) - len(chars)) + [-float(i) for i in range(len(merged) + len(chars))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": add_space_prefix,
    }

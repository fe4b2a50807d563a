"""Small working tokenizers as GGUF metadata: any text encodes, and comes back."""

from __future__ import annotations

from realm.tokenizer.vocabulary import TokenType

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_WORDS = ("the", "and", "ing", "er", "on", "hello", "world", "Paris")
MIN_VOCAB_SIZE = 320


def bpe_metadata(vocab_size: int = MIN_VOCAB_SIZE, pre: str = "gpt-2") -> dict[str, object]:
    """Byte-level BPE: 3 control tokens (ids 0 to 2), all bytes, a few merges, unused tokens up to `vocab_size`."""
    assert vocab_size >= MIN_VOCAB_SIZE
    tokens = [*_SPECIALS, *(_char_of_byte(b) for b in range(256))]
    merges = []
    for word in _WORDS:
        for text in (word, "Ġ" + word):  # Ġ is the byte-level spelling of a space
            for end in range(2, len(text) + 1):
                if text[:end] not in tokens:
                    tokens.append(text[:end])
                    merges.append(f"{text[: end - 1]} {text[end - 1]}")
    tokens, types = _pad(tokens, [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3), vocab_size)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def spm_metadata(vocab_size: int = MIN_VOCAB_SIZE) -> dict[str, object]:
    """SentencePiece with bytes to fall back on: pad, eos, bos, unk, then the chat marks; `add_bos_token` is set."""
    assert vocab_size >= MIN_VOCAB_SIZE
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<|im_start|>", "<|im_end|>"]
    types = [TokenType.CONTROL] * 3 + [TokenType.UNKNOWN] + [TokenType.CONTROL] * 2
    tokens += [f"<0x{b:02X}>" for b in range(256)]
    types += [TokenType.BYTE] * 256
    scores = [0.0] * len(tokens)
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz", "th", "the", "▁the", "an", "and", "in", "ing"]
    tokens, types = tokens + pieces, types + [TokenType.NORMAL] * len(pieces)
    scores += [-float(rank) for rank in range(len(pieces), 0, -1)]  # later pieces are longer: merge them first
    tokens, padded_types = _pad(tokens, types, vocab_size)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores + [-1000.0] * (vocab_size - len(scores)),
        "tokenizer.ggml.token_type": padded_types,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": "{{ bos_token }}" + CHAT_TEMPLATE,
    }


def _pad(tokens: list[str], types: list[TokenType], vocab_size: int) -> tuple[list[str], list[int]]:
    missing = vocab_size - len(tokens)
    padded = tokens + [f"<unused{i}>" for i in range(missing)]
    return padded, [int(kind) for kind in types] + [int(TokenType.UNUSED)] * missing


def _char_of_byte(byte: int) -> str:
    """The printable character that byte-level BPE writes for a byte (GPT-2's bytes_to_unicode)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in printable].index(byte))

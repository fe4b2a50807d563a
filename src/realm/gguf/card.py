"""The model card: what a GGUF file says about its model, for `realm info`."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from realm.core.config import KVType
from realm.core.texts import Texts
from realm.gguf.metadata import Metadata
from realm.gguf.reader import GGUFFile

_KV_VALUE_BYTES = {KVType.F16: 2, KVType.INT8: 1, KVType.F32: 4}
_KV_SCALE_BYTES = {KVType.F16: 0, KVType.INT8: 4, KVType.F32: 0}  # one scale per token, KV head, and K or V


@dataclass(frozen=True, slots=True)
class QuantShare:
    """The tensors of one type."""

    type_name: str
    num_tensors: int
    num_parameters: int
    num_bytes: int
    """0 for a type whose size is not known."""
    supported: bool


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Facts of one model file; None where the file does not say."""

    architecture: str | None
    name: str | None
    license: str | None
    file_bytes: int
    num_tensors: int
    num_parameters: int
    quant_mix: tuple[QuantShare, ...]
    """Most bytes first."""
    context_length: int | None
    num_layers: int | None
    num_heads: int | None
    num_kv_heads: int | None
    head_dim: int | None
    hidden_size: int | None
    feed_forward_size: int | None
    vocab_size: int | None
    sliding_window: int | None
    tokenizer: str | None
    """GGUF's name of the kind: ``gpt2`` is byte-level BPE, ``llama`` is SentencePiece."""
    pre_tokenizer: str | None
    chat_template: str | None
    weights_bytes: int

    def kv_bytes_per_token(self, kv_type: KVType) -> int | None:
        """Bytes that one token takes in the KV cache, all layers."""
        if self.num_layers is None or self.num_kv_heads is None or self.head_dim is None:
            return None
        head_bytes = 2 * (self.head_dim * _KV_VALUE_BYTES[kv_type] + _KV_SCALE_BYTES[kv_type])
        return self.num_layers * self.num_kv_heads * head_bytes

    def memory_bytes(self, kv_tokens: int, kv_type: KVType = KVType.F16) -> int | None:
        """Bytes of weights plus a KV cache of `kv_tokens` tokens; buffers and the interpreter come on top."""
        per_token = self.kv_bytes_per_token(kv_type)
        return None if per_token is None else self.weights_bytes + kv_tokens * per_token


def read_card(file: GGUFFile) -> ModelCard:
    """Collect the card of an open file. A key that is missing or of an odd type gives None."""
    metadata = file.metadata
    architecture = _str(metadata, "general.architecture")
    prefix = architecture or ""
    hidden_size = _int(metadata, f"{prefix}.embedding_length")
    num_heads = _int(metadata, f"{prefix}.attention.head_count")
    head_dim = _int(metadata, f"{prefix}.attention.key_length")
    if head_dim is None and hidden_size and num_heads:
        head_dim = hidden_size // num_heads
    kv_heads = _int(metadata, f"{prefix}.attention.head_count_kv")
    mix = _quant_mix(file)
    return ModelCard(
        architecture=architecture,
        name=_str(metadata, "general.name"),
        license=_str(metadata, "general.license"),
        file_bytes=file.size_bytes,
        num_tensors=len(file.tensors),
        num_parameters=sum(share.num_parameters for share in mix),
        quant_mix=mix,
        context_length=_int(metadata, f"{prefix}.context_length"),
        num_layers=_int(metadata, f"{prefix}.block_count"),
        num_heads=num_heads,
        num_kv_heads=kv_heads if kv_heads is not None else num_heads,
        head_dim=head_dim,
        hidden_size=hidden_size,
        feed_forward_size=_int(metadata, f"{prefix}.feed_forward_length"),
        vocab_size=_vocab_size(file, prefix),
        sliding_window=_int(metadata, f"{prefix}.attention.sliding_window"),
        tokenizer=_str(metadata, "tokenizer.ggml.model"),
        pre_tokenizer=_str(metadata, "tokenizer.ggml.pre"),
        chat_template=_str(metadata, "tokenizer.chat_template"),
        weights_bytes=sum(share.num_bytes for share in mix),
    )


def _quant_mix(file: GGUFFile) -> tuple[QuantShare, ...]:
    by_type = defaultdict(list)
    for tensor in file.tensors.values():
        by_type[tensor.type_name].append(tensor)
    shares = (
        QuantShare(
            type_name,
            len(tensors),
            sum(math.prod(tensor.shape) for tensor in tensors),
            sum(tensor.num_bytes for tensor in tensors),
            tensors[0].supported,
        )
        for type_name, tensors in by_type.items()
    )
    return tuple(sorted(shares, key=lambda share: (-share.num_bytes, share.type_name)))


def _vocab_size(file: GGUFFile, prefix: str) -> int | None:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None:
        return embedding.shape[0]
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, list | Texts) else _int(file.metadata, f"{prefix}.vocab_size")


def _int(metadata: Metadata, key: str) -> int | None:
    """An integer; of a list (one number for each layer) the largest."""
    value = metadata.get(key)
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        value = max(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _str(metadata: Metadata, key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None

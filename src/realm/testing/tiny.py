"""Write small GGUF models with random weights: every family, every tensor type, a working tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from realm.core.quant import LAYOUTS, QuantType
from realm.core.types import Float32Array
from realm.gguf.names import layer_names
from realm.gguf.quantize import quantize
from realm.gguf.writer import OutputTensor, write_gguf
from realm.testing.quants import WEIGHT_STD, random_blocks
from realm.testing.vocabularies import MIN_VOCAB_SIZE, bpe_metadata, spm_metadata

_Q_STD = 1.2  # spread of queries and keys, so that attention has something to choose from
_LOGIT_STD = 3.0  # spread of logits, so that distributions are neither flat nor one-hot


@dataclass(frozen=True, slots=True)
class TinyModel:
    """What to write. Sizes left at 0 become the smallest that suit the tensor types."""

    architecture: str = "llama"
    quant_type: QuantType = QuantType.F32
    """Type of every matrix..."""
    quant_overrides: Mapping[str, QuantType] = field(default_factory=dict)
    """...but of these, by last part of the name: ``ffn_down``, ``token_embd``."""
    seed: int = 0
    num_layers: int = 2
    vocab_size: int = MIN_VOCAB_SIZE
    hidden_size: int = 0
    intermediate_size: int = 0
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 0
    context_length_tokens: int = 512
    sliding_window: int | None = None
    tied: bool = True
    rope_factors: tuple[float, ...] | None = None
    """Llama 3's divisors of the rotary frequencies [D/2]."""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """More keys, or other values for keys."""

    @property
    def unit(self) -> int:
        """Columns of a matrix must be a multiple of this."""
        types = {self.quant_type, *self.quant_overrides.values()}
        return max(32, *(LAYOUTS[t].block_elements for t in types))

    def sizes(self) -> tuple[int, int, int]:
        """(C, F, D)."""
        head_dim = self.head_dim or max(16, self.unit // self.num_heads)
        return self.hidden_size or max(64, self.unit), self.intermediate_size or max(96, self.unit), head_dim


def write_tiny_model(path: str | Path, model: TinyModel | None = None) -> Path:
    """Write `model` to `path`; the same model gives the same bytes. Returns the path."""
    model = model or TinyModel()
    write_gguf(path, tiny_metadata(model), tiny_tensors(model))
    return Path(path)


def tiny_metadata(model: TinyModel) -> dict[str, object]:
    """All metadata of the file."""
    hidden, inner, head_dim = model.sizes()
    arch = model.architecture
    keys: dict[str, object] = {
        "block_count": model.num_layers,
        "context_length": model.context_length_tokens,
        "embedding_length": hidden,
        "feed_forward_length": inner,
        "attention.head_count": model.num_heads,
        "attention.head_count_kv": model.num_kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10_000.0,
    }
    if model.sliding_window is not None:
        keys["attention.sliding_window"] = model.sliding_window
    vocabulary = spm_metadata(model.vocab_size) if arch == "gemma3" else bpe_metadata(model.vocab_size)
    return {
        "general.architecture": arch,
        "general.name": f"Tiny {arch}",
        **{f"{arch}.{key}": value for key, value in keys.items()},
        **vocabulary,
        **model.metadata,
    }


def tiny_tensors(model: TinyModel) -> list[OutputTensor]:
    """All tensors, random by `model.seed`."""
    hidden, inner, head_dim = model.sizes()
    q_rows, kv_rows = model.num_heads * head_dim, model.num_kv_heads * head_dim
    spread = WEIGHT_STD * float(np.sqrt(hidden))  # of a normed row's products
    draw = _Draw(model)
    tensors = [
        draw.matrix("token_embd", model.vocab_size, hidden),
        draw.norm("output_norm", hidden, _LOGIT_STD / spread),
    ]
    if not model.tied:
        tensors.append(draw.matrix("output", model.vocab_size, hidden))
    if model.rope_factors is not None:
        tensors.append(draw.exact("rope_freqs", np.array(model.rope_factors, np.float32)))
    for layer in range(model.num_layers):
        n = layer_names(model.architecture, layer)
        tensors += [
            draw.norm(n.attn_norm, hidden, _Q_STD / spread),
            draw.matrix(n.attn_q, q_rows, hidden),
            draw.matrix(n.attn_k, kv_rows, hidden),
            draw.matrix(n.attn_v, kv_rows, hidden),
            draw.matrix(n.attn_output, hidden, q_rows),
            draw.norm(n.ffn_norm, hidden, 1.0 / spread),
            draw.matrix(n.ffn_gate, inner, hidden),
            draw.matrix(n.ffn_up, inner, hidden),
            draw.matrix(n.ffn_down, hidden, inner),
        ]
        if model.architecture == "qwen2":
            tensors += [draw.bias(n.attn_q, q_rows), draw.bias(n.attn_k, kv_rows), draw.bias(n.attn_v, kv_rows)]
        for name, size in ((n.attn_q_norm, head_dim), (n.attn_k_norm, head_dim)):
            tensors += [draw.norm(name, size, _Q_STD)] if name else []
        for name, size in ((n.post_attention_norm, hidden), (n.post_ffw_norm, hidden)):
            tensors += [draw.norm(name, size, 0.5)] if name else []
    return tensors


class _Draw:
    """Random tensors; one generator, so the order of calls matters."""

    def __init__(self, model: TinyModel) -> None:
        self._model = model
        self._rng = np.random.default_rng(model.seed)

    def matrix(self, name: str, num_rows: int, num_cols: int) -> OutputTensor:
        quant_type = self._model.quant_overrides.get(name.rpartition(".")[2], self._model.quant_type)
        blocks = random_blocks(quant_type, num_rows, num_cols, self._rng)
        return OutputTensor(f"{name}.weight", quant_type, (num_rows, num_cols), blocks)

    def norm(self, name: str, size: int, scale: float) -> OutputTensor:
        return self.exact(name, self._rng.uniform(0.5 * scale, 1.5 * scale, size).astype(np.float32))

    def bias(self, name: str, size: int) -> OutputTensor:
        return self.exact(name, self._rng.normal(0.0, 0.5, size).astype(np.float32), "bias")

    def exact(self, name: str, values: Float32Array, kind: str = "weight") -> OutputTensor:
        data = quantize(values[None, :], QuantType.F32)
        return OutputTensor(f"{name}.{kind}", QuantType.F32, values.shape, data)

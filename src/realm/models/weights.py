"""A model's tensors, gathered from the file and checked against the spec. Nothing is copied but norms and biases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from realm.core.errors import ModelFileError
from realm.core.types import Float32Array
from realm.gguf import names
from realm.gguf.dequant import dequantize
from realm.gguf.reader import GGUFFile, TensorInfo
from realm.kernels.ops import Linear, QuantTensor
from realm.models.config import ModelSpec


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One transformer block; vectors are float32."""

    attn_norm: Float32Array  # [C]
    qkv: Linear  # [(H + 2G)*D, C]
    attn_output: Linear  # [C, H*D]
    ffn_norm: Float32Array  # [C]
    gate_up: Linear  # [2F, C]
    ffn_down: Linear  # [C, F]
    q_norm: Float32Array | None = None  # [D]
    k_norm: Float32Array | None = None  # [D]
    post_attention_norm: Float32Array | None = None  # [C]
    post_ffn_norm: Float32Array | None = None  # [C]


@dataclass(frozen=True, slots=True)
class Weights:
    """All tensors of a model; `head` shares the embedding's tensor when the model ties them."""

    embedding: QuantTensor  # [V, C]
    layers: tuple[LayerWeights, ...]
    output_norm: Float32Array  # [C]
    head: Linear  # [V, C]


def load_weights(file: GGUFFile, spec: ModelSpec) -> Weights:
    """All tensors of `file`, zero-copy where they are matrices.

    Raises:
        ModelFileError: a tensor is missing, has another shape than the metadata says or a type that is not supported,
            or the file holds a tensor that this architecture would have to leave out of its computation.
    """
    gather = _Gatherer(file)
    hidden, vocab = spec.hidden_size, spec.vocab_size
    embedding = gather.matrix(names.EMBEDDING, vocab, hidden)
    head = Linear((embedding,), (gather.optional_vector(names.OUTPUT, "bias", vocab),))
    if gather.has(names.OUTPUT):
        head = gather.linear((names.OUTPUT, vocab), num_cols=hidden)
    layers, output_norm = _blocks(gather, spec)
    gather.check_all_used(spec)
    return Weights(embedding, layers, output_norm, head)


def load_blocks(
    file: GGUFFile, spec: ModelSpec, head_rows: int
) -> tuple[tuple[LayerWeights, ...], Float32Array, QuantTensor | None]:
    """(blocks, last norm [C], head [head_rows, C] if there is one) of a file that holds nothing else.

    Raises:
        ModelFileError: as `load_weights`.
    """
    gather = _Gatherer(file)
    layers, output_norm = _blocks(gather, spec)
    head = gather.matrix(names.OUTPUT, head_rows, spec.hidden_size) if gather.has(names.OUTPUT) else None
    gather.check_all_used(spec)
    return layers, output_norm, head


def rope_factors(file: GGUFFile) -> Float32Array | None:
    """The `rope_freqs.weight` tensor [D/2], if the file has one."""
    info = file.tensors.get(f"{names.ROPE_FACTORS}.weight")
    return None if info is None else _float32(info).reshape(-1)


def dequantize_tensor(tensor: QuantTensor) -> Float32Array:
    """All values of a matrix as float32 [N, K]."""
    return dequantize(tensor.data, tensor.quant_type, tensor.num_cols)


def _blocks(gather: _Gatherer, spec: ModelSpec) -> tuple[tuple[LayerWeights, ...], Float32Array]:
    layers = tuple(_layer(gather, spec, layer) for layer in range(spec.num_layers))
    return layers, gather.vector(names.OUTPUT_NORM, spec.hidden_size)


def _layer(gather: _Gatherer, spec: ModelSpec, layer: int) -> LayerWeights:
    n = names.layer_names(spec.architecture, layer)
    hidden, inner, dim = spec.hidden_size, spec.intermediate_size, spec.head_dim
    q_rows, kv_rows = spec.num_heads * dim, spec.num_kv_heads * dim
    return LayerWeights(
        attn_norm=gather.vector(n.attn_norm, hidden),
        qkv=gather.linear((n.attn_q, q_rows), (n.attn_k, kv_rows), (n.attn_v, kv_rows), num_cols=hidden),
        attn_output=gather.linear((n.attn_output, hidden), num_cols=q_rows),
        ffn_norm=gather.vector(n.ffn_norm, hidden),
        gate_up=gather.linear((n.ffn_gate, inner), (n.ffn_up, inner), num_cols=hidden),
        ffn_down=gather.linear((n.ffn_down, hidden), num_cols=inner),
        q_norm=gather.vector(n.attn_q_norm, dim) if n.attn_q_norm else None,
        k_norm=gather.vector(n.attn_k_norm, dim) if n.attn_k_norm else None,
        post_attention_norm=gather.vector(n.post_attention_norm, hidden) if n.post_attention_norm else None,
        post_ffn_norm=gather.vector(n.post_ffw_norm, hidden) if n.post_ffw_norm else None,
    )


class _Gatherer:
    """Takes tensors out of a file by name and shape, and remembers which were taken."""

    def __init__(self, file: GGUFFile) -> None:
        self._tensors = file.tensors
        self._used: set[str] = set()

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self._tensors

    def matrix(self, name: str, num_rows: int, num_cols: int) -> QuantTensor:
        info = self._take(f"{name}.weight", (num_rows, num_cols))
        return QuantTensor(info.name, info.quant_type, num_rows, num_cols, info.data.reshape(-1))

    def linear(self, *parts: tuple[str, int], num_cols: int) -> Linear:
        return Linear(
            tuple(self.matrix(name, num_rows, num_cols) for name, num_rows in parts),
            tuple(self.optional_vector(name, "bias", num_rows) for name, num_rows in parts),
        )

    def vector(self, name: str, size: int) -> Float32Array:
        return _finite(self._take(f"{name}.weight", (size,)))

    def optional_vector(self, name: str, kind: str, size: int) -> Float32Array | None:
        full_name = f"{name}.{kind}"
        return _finite(self._take(full_name, (size,))) if full_name in self._tensors else None

    def check_all_used(self, spec: ModelSpec) -> None:
        unused = self._tensors.keys() - self._used - {f"{names.ROPE_FACTORS}.weight"}
        unused = {n for n in unused if not n.endswith(tuple(f".{i}.weight" for i in names.IGNORED_LAYER_TENSORS))}
        if unused:
            raise ModelFileError(
                f"tensor {min(unused)} ({len(unused)} such) has no place in a {spec.architecture} model",
                code="unsupported_model",
            )

    def _take(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        info = self._tensors.get(name)
        if info is None:
            raise ModelFileError(f"tensor {name} is missing", code="missing_tensor")
        if info.shape != shape:
            raise ModelFileError(f"tensor {name} has shape {list(info.shape)}, the metadata asks for {list(shape)}")
        self._used.add(name)
        return info


def _float32(info: TensorInfo) -> Float32Array:
    return dequantize(info.data, info.quant_type, info.shape[-1])


def _finite(info: TensorInfo) -> Float32Array:
    values = np.ascontiguousarray(_float32(info).reshape(-1))
    if not np.isfinite(values).all():
        raise ModelFileError(f"tensor {info.name} holds values that are not finite")
    return values

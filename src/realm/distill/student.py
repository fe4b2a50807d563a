"""Teacher and student of a distillation: a target in torch, and a few of its layers as a trainable draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from realm.core.types import Float32Array
from realm.distill.sequence_ops import DenseCache, SequenceOps, vector_key
from realm.gguf import names
from realm.kernels.ops import QuantTensor
from realm.models.config import ModelSpec
from realm.models.decoder import decode
from realm.models.weights import LayerWeights, Weights, dequantize_tensor


def prune(weights: Weights, spec: ModelSpec, layers: Sequence[int]) -> tuple[Weights, ModelSpec]:
    """The model that has only `layers`, sharing every tensor."""
    kept = replace(weights, layers=tuple(weights.layers[i] for i in layers))
    return kept, replace(spec, layers=tuple(spec.layers[i] for i in layers))


def layer_matrices(layer: LayerWeights) -> list[QuantTensor]:
    """All matrices of a block."""
    linears = (layer.qkv, layer.attn_output, layer.gate_up, layer.ffn_down)
    return [part for linear in linears for part in linear.parts]


def layer_vectors(layer: LayerWeights) -> list[Float32Array]:
    """All norms and biases of a block."""
    linears = (layer.qkv, layer.attn_output, layer.gate_up, layer.ffn_down)
    biases = [bias for linear in linears for bias in linear.biases]
    norms = [
        layer.attn_norm,
        layer.ffn_norm,
        layer.q_norm,
        layer.k_norm,
        layer.post_attention_norm,
        layer.post_ffn_norm,
    ]
    return [v for v in (*norms, *biases) if v is not None]


@dataclass
class TorchModel:
    """A decoder over named torch tensors."""

    weights: Weights
    spec: ModelSpec
    parameters: dict[str, Tensor]

    @classmethod
    def load(cls, weights: Weights, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> TorchModel:
        """All weights dequantised to `dtype`; vectors stay float32."""
        parameters: dict[str, Tensor] = {}
        matrices = [weights.embedding, *weights.head.parts]
        vectors = [weights.output_norm]
        for layer in weights.layers:
            matrices += layer_matrices(layer)
            vectors += layer_vectors(layer)
        for matrix in matrices:
            if matrix.name not in parameters:
                parameters[matrix.name] = torch.from_numpy(dequantize_tensor(matrix)).to(device, dtype)
        for vector in vectors:
            parameters[vector_key(vector)] = torch.from_numpy(vector).to(device)
        return cls(weights, spec, parameters)

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Logits [B, T, V] of sequences [B, T]."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        return decode(SequenceOps(self.parameters, token_ids, positions), self.weights, self.spec)

    def step(self, token_ids: Tensor, positions: Tensor, cache: DenseCache) -> Tensor:
        """Logits [B, V] after one more token each, [B, 1] at `positions` [1]."""
        ops = SequenceOps(self.parameters, token_ids, positions, cache, last_only=True)
        return decode(ops, self.weights, self.spec)[:, -1]

    def cut_head(self, vocabulary: Tensor | None) -> TorchModel:
        """The same model giving logits of the tokens in `vocabulary` [V_draft] only, in that order."""
        if vocabulary is None:
            return self
        parts = tuple(replace(p, name=f"{p.name}#cut", num_rows=len(vocabulary)) for p in self.weights.head.parts)
        rows = {
            p.name: self.parameters[q.name][vocabulary] for p, q in zip(parts, self.weights.head.parts, strict=True)
        }
        weights = replace(self.weights, head=replace(self.weights.head, parts=parts))
        return TorchModel(weights, self.spec, {**self.parameters, **rows})

    def student(self, layers: Sequence[int]) -> tuple[TorchModel, dict[str, Tensor]]:
        """A trainable draft of `layers` that shares the embedding and the head.

        Returns:
            The draft and the tensors to train by key (float32 copies of the blocks and the last norm).
        """
        weights, spec = prune(self.weights, self.spec, layers)
        parameters = {m.name: self.parameters[m.name] for m in (weights.embedding, *weights.head.parts)}
        keys = [vector_key(weights.output_norm)]
        for layer in weights.layers:
            keys += [m.name for m in layer_matrices(layer)] + [vector_key(v) for v in layer_vectors(layer)]
        trained = {key: self.parameters[key].detach().float().clone().requires_grad_(True) for key in keys}
        return TorchModel(weights, spec, parameters | trained), trained


def tensor_keys(weights: Weights, spec: ModelSpec) -> dict[str, str]:
    """Keys in `TorchModel.parameters` of the blocks' tensors and the last norm, by their names in the file."""
    keys = {f"{names.OUTPUT_NORM}.weight": vector_key(weights.output_norm)}
    for index, layer in enumerate(weights.layers):
        n = names.layer_names(spec.architecture, index)
        norms = {
            n.attn_norm: layer.attn_norm,
            n.ffn_norm: layer.ffn_norm,
            n.attn_q_norm: layer.q_norm,
            n.attn_k_norm: layer.k_norm,
            n.post_attention_norm: layer.post_attention_norm,
            n.post_ffw_norm: layer.post_ffn_norm,
        }
        keys |= {f"{name}.weight": vector_key(norm) for name, norm in norms.items() if norm is not None}
        for linear in (layer.qkv, layer.attn_output, layer.gate_up, layer.ffn_down):
            for part, bias in zip(linear.parts, linear.biases, strict=True):
                keys[part.name] = part.name
                if bias is not None:
                    keys[part.name.removesuffix("weight") + "bias"] = vector_key(bias)
    return keys

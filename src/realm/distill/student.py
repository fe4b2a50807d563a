"""Teacher and student of a distillation: a target in torch, and a few of its layers as a trainable draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from realm.core.quant import LAYOUTS
from realm.core.types import Float32Array
from realm.distill.make import STORED_TYPE, is_stored_in_blocks
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
    exact_logits: bool = True
    """Compute logits in float32, whatever the rest is in."""

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

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(iter(self.parameters.values())).device

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Logits [B, T, V] of sequences [B, T]."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        ops = SequenceOps(self.parameters, token_ids, positions, exact_logits=self.exact_logits)
        return decode(ops, self.weights, self.spec)

    def step(self, token_ids: Tensor, position: Tensor, cache: DenseCache) -> Tensor:
        """Logits [B, V] after one more token each, [B] at `position` [1]."""
        ops = SequenceOps(self.parameters, token_ids[:, None], position, cache, exact_logits=self.exact_logits)
        return decode(ops, self.weights, self.spec)[:, 0]

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


class Student:
    """A trainable draft: some layers of a target, sharing its embedding, and its head unless that was cut.

    Args:
        target: The target, with the head that the draft is to have.
        layers: The target's layers to keep.
        trains_head: Whether the head is trained, too.
    """

    def __init__(self, target: TorchModel, layers: Sequence[int], trains_head: bool) -> None:
        weights, spec = prune(target.weights, target.spec, layers)
        matrices = [m for layer in weights.layers for m in layer_matrices(layer)]
        vectors = [weights.output_norm, *(v for layer in weights.layers for v in layer_vectors(layer))]
        if trains_head:
            matrices += weights.head.parts
        shared = {m.name: target.parameters[m.name] for m in (weights.embedding, *weights.head.parts)}
        keys = [m.name for m in matrices] + [vector_key(v) for v in vectors]
        self.trained = {key: target.parameters[key].detach().float().clone().requires_grad_(True) for key in keys}
        """What to train, in float32, by key in `TorchModel.parameters`."""
        self._dtype = shared[weights.embedding.name].dtype
        self._stored = [m.name for m in matrices if is_stored_in_blocks(self.trained[m.name].shape)]
        self._model = TorchModel(weights, spec, shared | self.trained, exact_logits=False)

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Logits [B, T, V_draft] of sequences [B, T], by the values that the file will have."""
        return replace(self._model, parameters=self._model.parameters | self._rounded())(token_ids)

    def _rounded(self) -> dict[str, Tensor]:
        matrices = [self.trained[name] for name in self._stored]
        if not matrices:
            return {}
        flat = torch.cat([m.reshape(-1) for m in matrices])
        parts = torch.split(as_stored(flat).to(self._dtype), [m.numel() for m in matrices])
        return {name: part.view_as(m) for name, part, m in zip(self._stored, parts, matrices, strict=True)}


def as_stored(values: Tensor) -> Tensor:
    """`values` as they are after `make.STORED_TYPE`, Q4_1, has rounded them; gradients pass as if it had not."""
    blocks = values.detach().view(-1, LAYOUTS[STORED_TYPE].block_elements)
    low, high = blocks.aminmax(dim=1, keepdim=True)
    scale = (high - low) / 15
    integers = ((blocks - low) * (1 / scale).masked_fill(scale == 0, 0.0) + 0.5).floor_().clamp_(0, 15)
    rounded = integers * scale.half().float() + low.half().float()
    return values + (rounded.view_as(values) - values.detach())


def tensor_keys(weights: Weights, spec: ModelSpec) -> dict[str, str]:
    """Keys in `TorchModel.parameters` of a draft's tensors, by their names in the target's file; a head by its own."""
    keys = {f"{names.OUTPUT_NORM}.weight": vector_key(weights.output_norm)}
    if len(weights.head.parts) == 1:
        keys[f"{names.OUTPUT}.weight"] = weights.head.parts[0].name
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

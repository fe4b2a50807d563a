"""Write a model with an adapter merged into its weights, for those who serve one tenant only."""

from __future__ import annotations

from pathlib import Path

from realm.core.quant import QuantType
from realm.core.types import Float32Array
from realm.gguf import names
from realm.gguf.dequant import Bytes, dequantize
from realm.gguf.quantize import QUANTIZABLE, check_quantizable, quantize
from realm.gguf.reader import GGUFFile, TensorInfo
from realm.gguf.writer import OutputTensor, write_gguf
from realm.kernels.ops import LoRALayer
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel


def merge_adapter(
    base: GGUFFile, adapter: LoRAWeights, path: str | Path, quant_type: QuantType | None = None
) -> dict[str, QuantType]:
    """Write ``W' = W + scale * B A`` for the matrices that `adapter` changes; everything else is copied.

    Args:
        base: The open model.
        adapter: Bound to it or not.
        path: The new GGUF file.
        quant_type: Type of the changed matrices; their own type if None, or Q8_0 where that cannot be quantised to.

    Returns:
        The type of each changed tensor, by name. Where one of a tied embedding and head is adapted, or both are, the
        head becomes a tensor of its own.

    Raises:
        RealmError: the adapter does not fit the model, or `quant_type` cannot be quantised to.
    """
    bound = adapter.bind(BaseModel.from_gguf(base))
    metadata = {key: value for key, value in base.metadata.items() if not key.startswith("split.")}
    metadata["general.name"] = f"{metadata.get('general.name', 'model')} + {adapter.adapter_id}"
    changed: dict[str, QuantType] = {}
    tensors: list[OutputTensor] = []
    for name, tensor in _sources(base, bound).items():
        layer = bound.layers.get(name.removesuffix(".weight"))
        if layer is None:
            tensors.append(OutputTensor(name, tensor.quant_type, tensor.shape, tensor.data))
            continue
        changed[name] = _merged_type(tensor.quant_type, quant_type)
        tensors.append(_merged(name, tensor, layer, changed[name]))
    write_gguf(path, metadata, tensors, value_types=base.value_types)
    return changed


def _sources(base: GGUFFile, adapter: LoRAWeights) -> dict[str, TensorInfo]:
    """The tensors to write, by their new names."""
    tensors = dict(base.tensors)
    head = f"{names.OUTPUT}.weight"
    if head not in tensors and not {names.OUTPUT, names.EMBEDDING}.isdisjoint(adapter.layers):
        tensors[head] = tensors[f"{names.EMBEDDING}.weight"]
    return tensors


def _merged_type(stored: QuantType, wanted: QuantType | None) -> QuantType:
    if wanted is not None:
        return wanted
    return stored if stored in QUANTIZABLE else QuantType.Q8_0


def _merged(name: str, tensor: TensorInfo, layer: LoRALayer, quant_type: QuantType) -> OutputTensor:
    check_quantizable(quant_type, tensor.shape[-1])

    def data() -> Bytes:
        weights = dequantize(tensor.data, tensor.quant_type, tensor.shape[-1])
        weights += _delta(layer).T if name == f"{names.EMBEDDING}.weight" else _delta(layer)
        return quantize(weights, quant_type)

    return OutputTensor(name, quant_type, tensor.shape, data)


def _delta(layer: LoRALayer) -> Float32Array:
    delta: Float32Array = layer.b @ layer.a
    delta *= layer.scale
    return delta

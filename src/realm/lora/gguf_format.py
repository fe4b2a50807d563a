"""Read and write LoRA adapters as GGUF files, as llama.cpp's ``convert_lora_to_gguf.py`` makes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from realm.core.errors import ModelFileError
from realm.core.quant import QuantType
from realm.core.types import Float32Array
from realm.gguf import names
from realm.gguf.dequant import dequantize
from realm.gguf.format import ValueType
from realm.gguf.quantize import quantize
from realm.gguf.reader import GGUFFile, TensorInfo
from realm.gguf.writer import OutputTensor, write_gguf
from realm.kernels.ops import LoRALayer
from realm.lora.adapter import MAX_ADAPTER_BYTES, LoRAWeights

_A, _B = ".weight.lora_a", ".weight.lora_b"
_ALPHA = "adapter.lora.alpha"


def load_gguf_adapter(path: Path, adapter_id: str) -> LoRAWeights:
    """Read a GGUF LoRA adapter.

    Raises:
        RealmError: truncated, corrupt, or not a LoRA adapter; the message names what is wrong.
    """
    with GGUFFile.open(path) as file:
        _check_kind(file)
        modules = _modules(file.tensors)
        is_lookup = {module: module == names.EMBEDDING for module in modules}  # llama.cpp stores that A transposed
        alpha = file.metadata.get_float(_ALPHA)
        ranks = {module: a.shape[is_lookup[module]] for module, (a, _) in modules.items()}
        rank = max(ranks.values())
        adapter = LoRAWeights(
            adapter_id, rank, alpha or rank, architecture=file.metadata.get_str("general.architecture")
        )
        for module, (a, b) in modules.items():
            # llama.cpp takes an alpha of 0 as a scale of 1.
            scale = alpha / ranks[module] if alpha else 1.0
            adapter.add_layer_weights(module, _matrix(a).T if is_lookup[module] else _matrix(a), _matrix(b), scale)
    return adapter


def _check_kind(file: GGUFFile) -> None:
    metadata = file.metadata
    general_type = metadata.get_str("general.type", "model")
    if general_type != "adapter":
        raise ModelFileError(f"{file.path.name} is a {general_type}, not an adapter", code="unsupported_adapter")
    if (kind := metadata.get_str("adapter.type")) != "lora":
        raise ModelFileError(f"{file.path.name}: adapter.type = {kind} is not supported", code="unsupported_adapter")
    if any(key.startswith("adapter.alora.") for key in metadata):
        raise ModelFileError(
            f"{file.path.name} is an activated LoRA (aLoRA), which is not supported", code="unsupported_adapter"
        )


def _modules(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    """A and B of each module, shapes checked as far as the size in memory depends on them."""
    for name, tensor in tensors.items():
        if not name.endswith((_A, _B)):
            raise ModelFileError(f"tensor {name} is not supported in an adapter", code="unsupported_adapter")
        if len(tensor.shape) != 2:
            raise ModelFileError(f"{name} must be a matrix, got shape {tensor.shape}", code="invalid_adapter")
    num_bytes = 4 * sum(math.prod(tensor.shape) for tensor in tensors.values())
    if not tensors or num_bytes > MAX_ADAPTER_BYTES:
        raise ModelFileError(
            f"the adapter takes {num_bytes} bytes, between 1 and {MAX_ADAPTER_BYTES} are allowed",
            code="invalid_adapter",
        )
    modules = sorted({name.removesuffix(_A).removesuffix(_B) for name in tensors})
    for module in modules:
        for other in (_A, _B):
            if module + other not in tensors:
                raise ModelFileError(f"tensor {module}{other} is missing", code="invalid_adapter")
    return {module: (tensors[module + _A], tensors[module + _B]) for module in modules}


def _matrix(tensor: TensorInfo) -> Float32Array:
    return dequantize(tensor.data, tensor.quant_type, tensor.shape[-1])


def write_gguf_adapter(adapter: LoRAWeights, path: str | Path) -> None:
    """Write a bound adapter (`LoRAWeights.bind`) as a GGUF file in float32.

    GGUF holds one alpha for all layers; a layer whose scale is not ``alpha / rank`` gets the difference into its B.
    """
    assert adapter.architecture is not None, "bind the adapter first"
    assert adapter.row_order == "gguf", "bind the adapter first"
    alpha = adapter.alpha or 1.0
    metadata = {
        "general.architecture": adapter.architecture,
        "general.type": "adapter",
        "general.name": adapter.adapter_id,
        "adapter.type": "lora",
        _ALPHA: alpha,
    }
    tensors = []
    for module, layer in sorted(adapter.layers.items()):
        a = np.ascontiguousarray(layer.a.T) if module == names.EMBEDDING else layer.a
        tensors += [_output(module + _A, a), _output(module + _B, _scaled_b(layer, alpha))]
    write_gguf(path, metadata, tensors, value_types={_ALPHA: ValueType.FLOAT32})


def _scaled_b(layer: LoRALayer, alpha: float) -> Float32Array:
    factor = layer.scale * layer.rank / float(np.float32(alpha))
    return layer.b if factor == 1.0 else layer.b * np.float32(factor)


def _output(name: str, values: Float32Array) -> OutputTensor:
    return OutputTensor(name, QuantType.F32, values.shape, quantize(values, QuantType.F32))

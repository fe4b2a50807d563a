"""Read a PEFT LoRA directory: ``adapter_config.json`` and ``adapter_model.safetensors``. Never pickle."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from realm.core.errors import ModelFileError
from realm.core.quant import QuantType
from realm.core.types import Float32Array
from realm.gguf import names
from realm.gguf.dequant import dequantize
from realm.lora.adapter import MAX_ADAPTER_BYTES, LoRAWeights
from realm.lora.peft_config import PeftConfig, read_peft_config
from realm.lora.safetensors_file import StoredTensor, read_safetensors

_WEIGHTS = "adapter_model.safetensors"
_DTYPES = {"F32": QuantType.F32, "F16": QuantType.F16, "BF16": QuantType.BF16}
_KEY = re.compile(r"base_model\.model\.(?P<module>.{1,200}?)\.(?P<part>lora_(?:embedding_)?[AB])(?:\.weight)?")
_MODULE = re.compile(
    r"(?:model\.|model\.language_model\.|language_model\.|language_model\.model\.)?"
    r"(?:layers\.(?P<layer>\d{1,4})\.(?P<part>self_attn\.\w+|mlp\.\w+)|(?P<whole>lm_head|embed_tokens))"
)
_GGUF_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(slots=True)
class _Pair:
    a: Float32Array | None = None
    b: Float32Array | None = None


def load_peft_adapter(directory: Path, adapter_id: str) -> LoRAWeights:
    """Read a PEFT directory; rows stay in Hugging Face order until `LoRAWeights.bind`.

    Raises:
        RealmError: a file is missing, corrupt or holds something that is not supported; the message names it.
    """
    config = read_peft_config(directory / "adapter_config.json")
    pairs: dict[str, _Pair] = {}
    for tensor in read_safetensors(_weights_path(directory), MAX_ADAPTER_BYTES, _is_trained):
        key = tensor.name
        match = _KEY.fullmatch(key)
        if match is None or ("embedding" in match["part"]) != match["module"].endswith("embed_tokens"):
            raise _unsupported_tensor(key)
        pair = pairs.setdefault(match["module"], _Pair())
        setattr(pair, match["part"][-1].lower(), _to_float32(tensor))
    adapter = LoRAWeights(adapter_id, config.rank, config.alpha, row_order="huggingface")
    for module, pair in sorted(pairs.items()):
        _add(adapter, config, module, pair)
    return adapter


def _is_trained(key: str) -> bool:
    """False for the frozen base matrix, which PEFT saves beside adapted embeddings and heads."""
    return not key.endswith(".base_layer.weight")


def _add(adapter: LoRAWeights, config: PeftConfig, module: str, pair: _Pair) -> None:
    if pair.a is None or pair.b is None:
        raise _invalid(f"{module} has lora_{'A' if pair.b is None else 'B'} only")
    if not config.targets(module):
        raise _invalid(f"{module} is adapted, target_modules does not name it")
    if len(pair.a) != config.rank_of(module):
        raise _invalid(f"{module} has rank {len(pair.a)}, adapter_config.json says {config.rank_of(module)}")
    adapter.add_layer_weights(gguf_module_name(module), pair.a, pair.b, config.scale_of(module))


def gguf_module_name(module: str) -> str:
    """GGUF name of a Hugging Face module: ``model.layers.3.self_attn.q_proj`` is ``blk.3.attn_q``.

    Raises:
        ModelFileError: a module that cannot be adapted.
    """
    match = _MODULE.fullmatch(module)
    if match is not None and match["whole"] is not None:
        return names.OUTPUT if match["whole"] == "lm_head" else names.EMBEDDING
    part = _GGUF_PARTS.get(match["part"] or "") if match is not None else None
    if match is None or part is None:
        raise ModelFileError(
            f"adapter changes {module[:200]}, which is not supported",
            code="unsupported_adapter",
            hint=f"supported: {', '.join(_GGUF_PARTS)} of each layer, lm_head, embed_tokens",
        )
    return f"blk.{int(match['layer'])}.{part}"


def _weights_path(directory: Path) -> Path:
    path = directory / _WEIGHTS
    if path.is_file():
        return path
    pickled = [name for name in ("adapter_model.bin", "adapter_model.pt") if (directory / name).exists()]
    if pickled:
        raise ModelFileError(
            f"{pickled[0]} is a pickle, which could run any code; only {_WEIGHTS} is read",
            code="unsupported_adapter",
            hint="save it again with PEFT's safe_serialization=True",
        )
    raise ModelFileError(f"{_WEIGHTS} is missing", code="adapter_not_found")


def _to_float32(tensor: StoredTensor) -> Float32Array:
    name, shape = tensor.name[:200], tensor.shape
    if tensor.dtype not in _DTYPES:
        raise ModelFileError(
            f"{name} is of type {tensor.dtype}, only {', '.join(_DTYPES)} are supported", code="unsupported_adapter"
        )
    if len(shape) != 2 or 0 in shape:
        raise _invalid(f"{name} must be a matrix, got shape {list(shape)}")
    return dequantize(tensor.data, _DTYPES[tensor.dtype], shape[1])


def _unsupported_tensor(key: str) -> ModelFileError:
    kinds = {
        "lora_magnitude_vector": "DoRA",
        ".bias": "a trained bias",
        ".weight": "whole trained matrices (modules_to_save, new tokens)",
    }
    kind = next((kind for part, kind in kinds.items() if part in key), "not part of a LoRA")
    return ModelFileError(f"{key[:200]}: {kind}, which is not supported", code="unsupported_adapter")


def _invalid(message: str) -> ModelFileError:
    return ModelFileError(message, code="invalid_adapter")

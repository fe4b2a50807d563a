"""The transformers model with a GGUF file's weights, from a config of our own: what conversion did is undone."""

from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from realm.core.types import Float32Array
from realm.gguf.dequant import dequantize
from realm.gguf.reader import GGUFFile

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA3_NAMES = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def build(config: Any, file: GGUFFile) -> PreTrainedModel:
    """`config`'s model in float32 with all tensors of `file`; fails if a name is left over on either side."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    state = dict(_tensor(name, file, config) for name in file.tensors if name != "rope_freqs.weight")
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval()


def logits(model: PreTrainedModel, ids: list[int]) -> Float32Array:
    with torch.inference_mode():
        result: Float32Array = model(torch.tensor([ids])).logits[0].numpy()
    return result


def _tensor(gguf_name: str, file: GGUFFile, config: Any) -> tuple[str, torch.Tensor]:
    info = file.tensors[gguf_name]
    values = dequantize(info.data, info.quant_type, info.shape[-1]).reshape(info.shape)
    base, _, kind = gguf_name.rpartition(".")
    gemma = config.model_type == "gemma3_text"
    if gemma and "norm" in base:
        values = values - 1  # Gemma's norms multiply by 1 + w; GGUF stores the sum
    if config.model_type in ("llama", "mistral") and base.endswith(("attn_q", "attn_k")):
        heads = config.num_attention_heads if base.endswith("q") else config.num_key_value_heads
        values = _pairs_to_halves(values, heads)
    if base in OUTER:
        return f"{OUTER[base]}.{kind}", torch.from_numpy(values)
    _, layer, part = base.split(".")
    names = NAMES | GEMMA3_NAMES if gemma else NAMES
    return f"model.layers.{layer}.{names[part]}.{kind}", torch.from_numpy(np.ascontiguousarray(values))


def _pairs_to_halves(weight: Float32Array, num_heads: int) -> Float32Array:
    """Undo the permutation of q and k rows that makes rotary pairs neighbours in llama's GGUF."""
    rows, cols = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)

"""Adapters against PEFT: random ones of several ranks, saved by PEFT, in batches where each row has its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.conformance.hf import build
from transformers import LlamaConfig

from realm.core.config import EngineConfig, KVType
from realm.gguf.reader import GGUFFile
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.models.loader import Device, load_model
from realm.testing.batches import logits_in_chunks
from realm.testing.tiny import TinyModel, write_tiny_model

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
CONFIGS = {
    "all": LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR),
    "attention": LoraConfig(r=4, lora_alpha=4, target_modules=LINEAR[:4], use_rslora=True),
    "mixed": LoraConfig(r=4, target_modules=LINEAR[:7], rank_pattern={"down_proj": 12}, alpha_pattern={"q_proj": 3}),
    "embedding": LoraConfig(r=6, lora_alpha=12, target_modules=["embed_tokens", "q_proj"]),
}
IDS = np.random.default_rng(1).integers(0, 256, (5, 50))
ROWS = ["all", "attention", "__base__", "mixed", "embedding"]


# PEFT asks transformers in a way that transformers has deprecated.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_mixed_batches_match_peft(tmp_path: Path, device: Device, tied: bool):
    path = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(tied=tied))
    with GGUFFile.open(path) as file:
        base = BaseModel.from_gguf(file)
        meta = file.metadata
        config = LlamaConfig(
            vocab_size=base.modules["output"][0],
            hidden_size=meta.get_int("llama.embedding_length"),
            intermediate_size=meta.get_int("llama.feed_forward_length"),
            num_hidden_layers=meta.get_int("llama.block_count"),
            num_attention_heads=base.num_heads,
            num_key_value_heads=base.num_kv_heads,
            head_dim=base.modules["blk.0.attn_q"][0] // base.num_heads,
            rms_norm_eps=meta.get_float("llama.attention.layer_norm_rms_epsilon"),
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=tied,
        )
        hf = build(config, file)
    torch.manual_seed(0)
    peft = get_peft_model(hf, CONFIGS["all"], adapter_name="all")
    for name in ("attention", "mixed", "embedding"):
        peft.add_adapter(name, CONFIGS[name])
    for name, values in peft.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(values, std=0.05)
    peft.eval()
    peft.save_pretrained(tmp_path / "adapters", save_embedding_layers=False)
    with torch.inference_mode():
        expected = peft(torch.from_numpy(IDS), adapter_names=ROWS).logits.numpy()
    model = load_model(path, EngineConfig(kv_type=KVType.F32, kv_cache_tokens=512, kv_block_tokens=16), device)
    for row, name in enumerate(ROWS):
        slot = -1
        if name != "__base__":
            slot = row
            layers = LoRAWeights.load(tmp_path / "adapters" / name).bind(base).layers
            model.executor.set_adapter(slot, model.executor.pack_adapter(layers))
        got = np.concatenate(list(logits_in_chunks(model.executor, IDS[row].tolist(), 16, 16, adapter_slot=slot)))
        assert np.abs(got - expected[row]).max() <= 1e-3 * np.abs(expected[row]).max(), name

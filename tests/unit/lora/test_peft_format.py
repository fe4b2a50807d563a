"""Oracle: adapters that PEFT made and what PEFT merges into the weights of a tiny model."""

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from realm.core.errors import ModelFileError
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.lora.peft_format import gguf_module_name

# PEFT asks transformers for a property that transformers deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match:RuntimeWarning"),
]

H, G, D, C, F, V = 4, 2, 16, 64, 96, 100
SIZES = {
    "hidden_size": C,
    "intermediate_size": F,
    "num_hidden_layers": 2,
    "num_attention_heads": H,
    "num_key_value_heads": G,
    "head_dim": D,
    "vocab_size": V,
}
FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
}
SHAPES = {
    "attn_q": (H * D, C),
    "attn_k": (G * D, C),
    "attn_v": (G * D, C),
    "attn_output": (C, H * D),
    "ffn_gate": (F, C),
    "ffn_up": (F, C),
    "ffn_down": (C, F),
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base_model(architecture):
    modules = {f"blk.{i}.{part}": shape for i in range(2) for part, shape in SHAPES.items()}
    return BaseModel(architecture, H, G, modules | {"output": (V, C)}, (C, V))


def make(architecture, directory, dtype=torch.float32, **options):
    """A random adapter saved by PEFT; returns what merging it adds to each matrix, by Hugging Face name."""
    config, model_class = FAMILIES[architecture]
    torch.manual_seed(0)
    model = model_class(config(**SIZES, tie_word_embeddings=False)).to(torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lora = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 12, **options})
    wrapped = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn(parameter.shape) * 0.1).to(dtype).to(parameter.dtype)
    wrapped.save_pretrained(directory)
    path = directory / "adapter_model.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(path).items()}, path)
    after = wrapped.merge_and_unload().state_dict()
    return {
        name.removesuffix(".weight"): (after[name] - before[name]).numpy()
        for name in before
        if not torch.equal(after[name], before[name])
    }


def deltas(adapter):
    found = {name: layer.scale * layer.b @ layer.a for name, layer in adapter.layers.items()}
    return {name: delta.T if name == "token_embd" else delta for name, delta in found.items()}


def check_equal(adapter, expected):
    found = deltas(adapter)
    assert found.keys() == {gguf_module_name(name) for name in expected}
    for name, delta in expected.items():
        np.testing.assert_allclose(found[gguf_module_name(name)], delta, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ALL},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
        {"target_modules": r".*\.[qv]_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {
            "target_modules": ALL,
            "rank_pattern": {"k_proj": 2, "model.layers.1.mlp.up_proj": 8, "^model.layers.0.self_attn.q_proj$": 6},
            "alpha_pattern": {"up_proj": 3, r"layers\.1.*(q|v)_proj": 20, "proj": 1},
        },
        {"target_modules": ["v_proj"], "init_lora_weights": "gaussian", "lora_dropout": 0.1},
    ],
)
def test_as_peft_merges_it(tmp_path, options):
    expected = make("qwen3", tmp_path, **options)
    adapter = LoRAWeights.load(tmp_path, "a")
    check_equal(adapter, expected)
    check_equal(adapter.bind(base_model("qwen3")), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(tmp_path, dtype):
    expected = make("qwen2", tmp_path, dtype, target_modules=ALL)
    check_equal(LoRAWeights.load(tmp_path, "a"), expected)


def test_output_head_and_its_saved_copy(tmp_path):
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        expected = make("qwen3", tmp_path, target_modules=["lm_head", "q_proj"])
    assert "lm_head" in expected
    check_equal(LoRAWeights.load(tmp_path / "adapter_model.safetensors", "a").bind(base_model("qwen3")), expected)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_rows_are_in_the_order_of_the_gguf_file(tmp_path, architecture):
    expected = make(architecture, tmp_path, target_modules=ALL)
    bound = LoRAWeights.load(tmp_path, "a").bind(base_model(architecture))
    if architecture == "llama":
        # transformers undoes llama.cpp's permutation when it loads a GGUF file
        undo = LlamaTensorProcessor()._reverse_permute_weights
        found = deltas(bound)
        for i in range(2):
            for part, heads in (("q", H), ("k", G)):
                name = f"model.layers.{i}.self_attn.{part}_proj"
                stored = found[f"blk.{i}.attn_{part}"]
                np.testing.assert_allclose(undo(stored, H, heads), expected.pop(name), atol=1e-6)
                assert not np.allclose(undo(stored, H, heads), stored)
                del bound._layers[f"blk.{i}.attn_{part}"]
    check_equal(bound, expected)


def test_identity_is_the_content(tmp_path):
    for name in ("a", "b"):
        make("llama", tmp_path / name, target_modules=ALL)
    a, b = LoRAWeights.load(tmp_path / "a"), LoRAWeights.load(tmp_path / "b")
    assert (a.adapter_id, b.adapter_id) == ("a", "b")
    assert a.content_hash == b.content_hash
    assert a.bind(base_model("llama")).content_hash == a.content_hash  # although rows moved


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora = true is not supported"),
        ({"bias": "all"}, 'bias = "all" is not supported'),
        ({"modules_to_save": ["lm_head"]}, r'modules_to_save = \["lm_head"\] is not supported'),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ],
)
def test_variants_made_by_peft_are_refused_by_name(tmp_path, options, message):
    config, model_class = FAMILIES["qwen3"]
    model = model_class(config(**SIZES))
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], **options)
    peft.get_peft_model(model, lora).save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match=message) as error:
        LoRAWeights.load(tmp_path, "a")
    assert error.value.code == "unsupported_adapter"


@pytest.mark.parametrize("targets", [["embed_tokens"], ["embed_tokens", "lm_head", "v_proj"]])
def test_input_embeddings(tmp_path, targets):
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        expected = make("qwen3", tmp_path, target_modules=targets, use_rslora=True)
    assert "model.embed_tokens" in expected
    check_equal(LoRAWeights.load(tmp_path, "a").bind(base_model("qwen3")), expected)


def test_parts_of_an_embedding_are_told_from_those_of_a_matrix(tmp_path):
    make("qwen3", tmp_path, target_modules=["v_proj"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = {name.replace("lora_A.weight", "lora_embedding_A"): value for name, value in load_file(path).items()}
    save_file(tensors, path)
    with pytest.raises(ModelFileError, match="lora_embedding_A: not part of a LoRA"):
        LoRAWeights.load(tmp_path, "a")

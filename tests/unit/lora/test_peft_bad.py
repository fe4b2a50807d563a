"""Broken and hostile PEFT directories: a RealmError that names the problem, nothing else."""

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from realm.core.errors import RealmError
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel

PREFIX = "base_model.model.model.layers.0."
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
BASE = BaseModel("qwen3", 2, 1, {"blk.0.attn_q": (3, 4), "blk.0.ffn_up": (3, 4)})


def pair(module="self_attn.q_proj", rank=2, dtype=np.float32):
    return {
        f"{PREFIX}{module}.lora_A.weight": np.ones((rank, 4), dtype),
        f"{PREFIX}{module}.lora_B.weight": np.ones((3, rank), dtype),
    }


def write(directory, tensors=None, raw=None, **config):
    """`raw` replaces the bytes of adapter_model.safetensors."""
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    path = directory / "adapter_model.safetensors"
    if raw is None:
        save_file(pair() if tensors is None else tensors, path)
    else:
        path.write_bytes(raw)
    return directory


def refused(directory):
    with pytest.raises(RealmError) as error:
        LoRAWeights.load(directory, "a").bind(BASE)
    assert error.value.status == 400
    return error.value


def test_the_unbroken_one_loads(tmp_path):
    assert LoRAWeights.load(write(tmp_path), "a").bind(BASE).layers["blk.0.attn_q"].scale == 2.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, 'peft_type = "IA3" is not supported'),
        ({"peft_type": None}, "peft_type = null"),
        ({"task_type": "SEQ_CLS"}, 'task_type = "SEQ_CLS"'),
        ({"bias": "lora_only"}, 'bias = "lora_only"'),
        ({"lora_bias": True}, "lora_bias = true"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out = true"),
        ({"use_qalora": True}, "use_qalora = true"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying = true"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"option_of_the_future": 3}, "option_of_the_future = 3 is not supported"),
        ({"init_lora_weights": "loftq"}, 'init_lora_weights = "loftq"'),
        ({"init_lora_weights": 1}, "init_lora_weights = 1"),
        ({"use_rslora": "yes"}, "use_rslora must be a boolean"),
        ({"r": 0}, "rank must be between 1 and 512, got 0"),
        ({"r": 10**9}, "got 1000000000"),
        ({"r": "8"}, "r must be an integer"),
        ({"r": True}, "r must be an integer"),
        ({"r": 3}, "has rank 2, adapter_config.json says 3"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number"),
        ({"lora_alpha": None}, "lora_alpha must be a finite number"),
        ({"rank_pattern": {"q_proj": 0}}, "adapter_config.json says 0"),
        ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern must be an integer"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern must be an object"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "alpha_pattern must be a finite number"),
        ({"alpha_pattern": {"(a+)+": 1}}, "alpha_pattern = "),
        ({"alpha_pattern": {"(s|.)(e|.)(l|.)(f|.)": 1}}, "alpha_pattern = "),
        ({"alpha_pattern": {".*.*.*.*.*x": 1}}, "alpha_pattern = "),
        ({"alpha_pattern": {"(a": 1}}, "alpha_pattern must be a table of regular expressions"),
        ({"alpha_pattern": {"x" * 257: 1}}, "alpha_pattern = "),
        ({"alpha_pattern": {f"m{i}": 1 for i in range(1025)}}, "at most 1024"),
        ({"target_modules": ["v_proj"]}, "target_modules does not name it"),
        ({"target_modules": [1]}, "target_modules must be"),
        ({"\ud800": 1}, "ud800 = 1 is not supported"),
    ],
)
def test_configurations(tmp_path, config, message):
    error = refused(write(tmp_path, **config))
    assert message in error.message
    error.message.encode()


@pytest.mark.parametrize(
    "raw", [b"", b"[1]", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"r": 1' + b"0" * 5000 + b"}", b" " * ((1 << 20) + 1)]
)
def test_configuration_files(tmp_path, raw):
    write(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(raw)
    assert "adapter_config.json" in refused(tmp_path).message


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no layers"),
        (pair(rank=1), "has rank 1, adapter_config.json says 2"),
        (dict(list(pair().items())[:1]), "has lora_A only"),
        (dict(list(pair().items())[1:]), "has lora_B only"),
        (pair() | {f"{PREFIX}self_attn.q_proj.lora_A.weight": np.ones((2, 5), np.float32)}, "the base has (3, 4)"),
        (pair() | {f"{PREFIX}self_attn.q_proj.lora_A.weight": np.full((2, 4), np.nan, np.float32)}, "not finite"),
        (pair() | {f"{PREFIX}self_attn.q_proj.lora_B.weight": np.full((3, 2), np.inf, np.float16)}, "not finite"),
        (pair() | {f"{PREFIX}self_attn.q_proj.lora_A.weight": np.ones(8, np.float32)}, "must be a matrix"),
        (pair() | {f"{PREFIX}self_attn.q_proj.lora_A.weight": np.ones((0, 4), np.float32)}, "must be a matrix"),
        (pair(dtype=np.int8), "is of type I8"),
        (pair() | {f"{PREFIX}self_attn.q_proj.lora_magnitude_vector": np.ones(3, np.float32)}, "DoRA"),
        (pair() | {f"{PREFIX}self_attn.q_proj.bias": np.ones(3, np.float32)}, "a trained bias"),
        (pair() | {"base_model.model.lm_head.weight": np.ones((3, 4), np.float32)}, "whole trained matrices"),
        (pair() | {"../../etc/passwd": np.ones(3, np.float32)}, "not part of a LoRA"),
    ],
)
def test_tensors(tmp_path, tensors, message):
    assert message in refused(write(tmp_path, tensors)).message


@pytest.mark.parametrize(
    "module",
    ["self_attn.qkv_proj", "mlp.experts.0.up_proj", "input_layernorm", "../q_proj", "self_attn.q_proj.base_layer.x"],
)
def test_modules_that_cannot_be_adapted(tmp_path, module):
    error = refused(write(tmp_path, pair(module), target_modules="all-linear"))
    assert error.code == "unsupported_adapter"
    assert module in error.message


def test_another_base_model(tmp_path):
    tensors = {name.replace("layers.0", "layers.7"): value for name, value in pair().items()}
    assert refused(write(tmp_path, tensors)).code == "adapter_base_mismatch"


def test_pickle_is_never_read(tmp_path):
    write(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    error = refused(tmp_path)
    assert "pickle" in error.message
    assert error.code == "unsupported_adapter"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_files(tmp_path, name):
    (write(tmp_path) / name).unlink()
    error = refused(tmp_path)
    assert name in error.message
    assert error.code == "adapter_not_found"


def test_safetensors_truncated_anywhere(tmp_path):
    raw = (write(tmp_path) / "adapter_model.safetensors").read_bytes()
    for length in range(len(raw)):
        (tmp_path / "adapter_model.safetensors").write_bytes(raw[:length])
        assert "truncated or corrupt" in refused(tmp_path).message


def header(text, data=b""):
    return struct.pack("<Q", len(text)) + text.encode() + data


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        header("{"),
        header("[]"),
        header('{"a": {"dtype": "F32", "shape": [9223372036854775807, 9], "data_offsets": [0, 8]}}', bytes(8)),
        header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}', bytes(8)),
        header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}}', bytes(8)),
        header('{"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
        header('{"a": ' + "[" * 50_000),
        header(
            '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
            '"b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}',
            bytes(12),
        ),
        header(
            '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
            '"b": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}}',
            bytes(20),
        ),
        header(
            '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
            '"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
            bytes(8),
        ),
        header(" " * (17 << 20) + "{}"),
    ],
)
def test_hostile_safetensors(tmp_path, raw):
    assert "truncated or corrupt" in refused(write(tmp_path, raw=raw)).message


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 10_000), patch=st.binary(min_size=1, max_size=8))
def test_patched_safetensors_load_or_are_refused(tmp_path_factory, position, patch):
    directory = write(tmp_path_factory.getbasetemp() / "patched")
    raw = bytearray((directory / "adapter_model.safetensors").read_bytes())
    position %= len(raw)
    raw[position : position + len(patch)] = patch
    (directory / "adapter_model.safetensors").write_bytes(raw)
    with contextlib.suppress(RealmError):
        LoRAWeights.load(directory, "a").bind(BASE)

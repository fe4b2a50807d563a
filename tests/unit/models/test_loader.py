"""Loading: shapes checked, nothing left out silently, limits derived."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from realm.core.config import EngineConfig, KVType
from realm.core.errors import InvalidRequest, ModelFileError, UnsupportedParameter
from realm.core.quant import QuantType
from realm.gguf.reader import GGUFFile
from realm.gguf.writer import OutputTensor, write_gguf
from realm.models.config import read_spec
from realm.models.loader import load_model
from realm.models.weights import load_weights
from realm.testing.tiny import TinyModel, tiny_metadata, tiny_tensors, write_tiny_model

CONFIG = EngineConfig(kv_type=KVType.F32, kv_block_tokens=16, kv_cache_tokens=64)


def rewrite(path: Path, drop: str = "", add: OutputTensor | None = None, model: TinyModel | None = None) -> Path:
    model = model or TinyModel()
    tensors = [t for t in tiny_tensors(model) if t.name != drop]
    write_gguf(path, tiny_metadata(model), tensors + ([add] if add else []))
    return path


def vector(name: str, values: list[float]) -> OutputTensor:
    data = np.array(values, np.float32)
    return OutputTensor(name, QuantType.F32, data.shape, data.view(np.uint8))


@pytest.mark.parametrize(
    "name", ["token_embd.weight", "blk.1.attn_k.weight", "blk.0.ffn_norm.weight", "output_norm.weight"]
)
def test_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError, match=f"tensor {name} is missing"):
        load_model(rewrite(tmp_path / "m.gguf", drop=name), CONFIG, "reference")


def test_wrong_shape_is_named(tmp_path: Path) -> None:
    name = "blk.0.ffn_norm.weight"
    path = rewrite(tmp_path / "m.gguf", drop=name, add=vector(name, [1.0] * 32))
    with pytest.raises(ModelFileError, match=rf"{name} has shape \[32\], the metadata asks for \[64\]"):
        load_model(path, CONFIG, "reference")


def test_norm_with_nan_is_refused(tmp_path: Path) -> None:
    name = "output_norm.weight"
    path = rewrite(tmp_path / "m.gguf", drop=name, add=vector(name, [float("nan")] * 64))
    with pytest.raises(ModelFileError, match=f"{name} holds values that are not finite"):
        load_model(path, CONFIG, "reference")


def test_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "m.gguf", add=vector("blk.0.attn_sinks.weight", [1.0] * 4))
    with pytest.raises(ModelFileError, match=r"blk.0.attn_sinks.weight \(1 such\) has no place in a llama model"):
        load_model(path, CONFIG, "reference")


def test_optional_biases_are_taken(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "m.gguf", add=vector("blk.0.ffn_down.bias", [0.5] * 64))
    with GGUFFile.open(path) as file:
        weights = load_weights(file, read_spec(file.metadata))
    assert weights.layers[0].ffn_down.biases[0] is not None
    assert weights.layers[1].ffn_down.biases[0] is None


@pytest.mark.parametrize("tied", [True, False])
def test_output_head(tmp_path: Path, tied: bool) -> None:
    with GGUFFile.open(write_tiny_model(tmp_path / "m.gguf", TinyModel(tied=tied))) as file:
        weights = load_weights(file, read_spec(file.metadata))
    assert (weights.head.parts[0] is weights.embedding) == tied


def test_weights_are_views_of_the_file(tmp_path: Path) -> None:
    with GGUFFile.open(write_tiny_model(tmp_path / "m.gguf")) as file:
        weights = load_weights(file, read_spec(file.metadata))
    assert not weights.embedding.data.flags.owndata
    assert not weights.embedding.data.flags.writeable


def test_limits(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", TinyModel(context_length_tokens=500))
    model = load_model(path, replace(CONFIG, kv_cache_tokens=None, max_batch_size=4), "reference")
    assert model.max_seq_len == 500
    assert model.executor.num_kv_blocks == 125  # 4 * 500 tokens in blocks of 16
    assert model.executor.kv_bytes == 125 * 16 * model.spec.kv_values_per_token * 4
    assert load_model(path, replace(CONFIG, kv_cache_tokens=65), "reference").executor.num_kv_blocks == 5
    with pytest.raises(InvalidRequest, match="model's context length, 500, got 501"):
        load_model(path, replace(CONFIG, max_seq_len=501), "reference")
    with pytest.raises(UnsupportedParameter, match="kv_type int8"):
        load_model(path, replace(CONFIG, kv_type=KVType.INT8), "reference")


def test_fingerprint_tells_models_apart(tmp_path: Path) -> None:
    paths = [write_tiny_model(tmp_path / f"{seed}.gguf", TinyModel(seed=seed)) for seed in (0, 1)]
    first, second = (load_model(path, CONFIG, "reference").fingerprint for path in paths)
    assert first != second

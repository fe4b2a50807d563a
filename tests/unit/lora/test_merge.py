import numpy as np
import pytest

from realm.core.errors import RealmError
from realm.core.quant import QuantType
from realm.gguf.dequant import dequantize
from realm.gguf.reader import GGUFFile
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.lora.merge import merge_adapter
from realm.testing.tiny import TinyModel, write_tiny_model


def weights(file, name):
    tensor = file.tensors[name]
    return dequantize(tensor.data, tensor.quant_type, tensor.shape[-1])


def tiny(tmp_path, **kwargs):
    path = write_tiny_model(tmp_path / "base.gguf", TinyModel(architecture="qwen3", num_layers=1, **kwargs))
    file = GGUFFile.open(path)
    adapter = LoRAWeights("style", 4, 8.0)
    rng = np.random.default_rng(0)
    for name in ("blk.0.attn_q", "output"):
        rows, cols = BaseModel.from_gguf(file).modules[name]
        adapter.add_layer_weights(name, rng.normal(0, 0.1, (4, cols)), rng.normal(0, 0.1, (rows, 4)))
    return file, adapter


@pytest.mark.parametrize("tied", [True, False])
def test_merged_weights(tmp_path, tied):
    base, adapter = tiny(tmp_path, tied=tied)
    assert merge_adapter(base, adapter, tmp_path / "merged.gguf") == dict.fromkeys(
        ("blk.0.attn_q.weight", "output.weight"), QuantType.F32
    )
    merged = GGUFFile.open(tmp_path / "merged.gguf")
    assert merged.metadata == base.metadata | {"general.name": "Tiny qwen3 + style"}
    assert merged.value_types == base.value_types
    assert merged.tensors.keys() == base.tensors.keys() | {"output.weight"}
    for name in merged.tensors:
        expected = weights(base, name if name in base.tensors else "token_embd.weight")
        layer = adapter.layers.get(name.removesuffix(".weight"))
        if layer is None:
            np.testing.assert_array_equal(weights(merged, name), expected)
        else:
            np.testing.assert_allclose(weights(merged, name), expected + 2.0 * layer.b @ layer.a, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_embedding_leaves_the_head_as_it_was(tmp_path, tied):
    base, _ = tiny(tmp_path, tied=tied)
    adapter = LoRAWeights("style", 4, 8.0)
    hidden, vocab_size = BaseModel.from_gguf(base).shape_of("token_embd")
    rng = np.random.default_rng(0)
    adapter.add_layer_weights("token_embd", rng.normal(0, 0.1, (4, vocab_size)), rng.normal(0, 0.1, (hidden, 4)))
    merge_adapter(base, adapter, tmp_path / "merged.gguf")
    merged, layer = GGUFFile.open(tmp_path / "merged.gguf"), adapter.layers["token_embd"]
    expected = weights(base, "token_embd.weight") + 2.0 * (layer.b @ layer.a).T
    np.testing.assert_allclose(weights(merged, "token_embd.weight"), expected, rtol=0, atol=1e-6)
    head = "token_embd.weight" if tied else "output.weight"
    np.testing.assert_array_equal(weights(merged, "output.weight"), weights(base, head))


@pytest.mark.parametrize(
    ("stored", "wanted", "written"),
    [
        (QuantType.Q4_1, None, QuantType.Q4_1),
        (QuantType.Q4_K, None, QuantType.Q8_0),
        (QuantType.Q4_K, QuantType.F16, QuantType.F16),
    ],
)
def test_types_of_merged_weights(tmp_path, stored, wanted, written):
    base, adapter = tiny(tmp_path, quant_type=stored)
    changed = merge_adapter(base, adapter, tmp_path / "merged.gguf", wanted)
    merged = GGUFFile.open(tmp_path / "merged.gguf")
    assert changed["blk.0.attn_q.weight"] == written
    assert merged.tensors["blk.0.attn_q.weight"].quant_type == written
    assert merged.tensors["blk.0.attn_k.weight"].quant_type == stored
    layer = adapter.layers["blk.0.attn_q"]
    expected = weights(base, "blk.0.attn_q.weight") + 2.0 * layer.b @ layer.a
    error = np.abs(weights(merged, "blk.0.attn_q.weight") - expected).max()
    assert error < 0.1 * np.abs(expected).max()


def test_a_merge_that_fails_leaves_no_file(tmp_path):
    base, adapter = tiny(tmp_path, quant_type=QuantType.Q8_0)
    with pytest.raises(RealmError, match="cannot quantise to Q6_K"):
        merge_adapter(base, adapter, tmp_path / "merged.gguf", QuantType.Q6_K)
    other = LoRAWeights("other", 1, 1.0)
    other.add_layer_weights("blk.7.attn_q", np.ones((1, 64)), np.ones((64, 1)))
    with pytest.raises(RealmError, match=r"blk\.7\.attn_q"):
        merge_adapter(base, other, tmp_path / "merged.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]

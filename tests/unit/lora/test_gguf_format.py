import numpy as np
import pytest

from realm.core.errors import RealmError
from realm.core.quant import QuantType
from realm.gguf.quantize import quantize
from realm.gguf.writer import OutputTensor, write_gguf
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.lora.gguf_format import write_gguf_adapter

K, N = 64, 32
BASE = BaseModel("llama", 2, 2, {"blk.0.attn_q": (N, K), "blk.1.ffn_up": (N, K), "output": (N, K)}, (N, K))
META = {
    "general.architecture": "llama",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 16.0,
}


def matrices(rng, rank):
    return rng.normal(0, 1, (rank, K)).astype(np.float32), rng.normal(0, 1, (N, rank)).astype(np.float32)


def tensors(a, b, module="blk.0.attn_q", a_type=QuantType.F32, b_type=QuantType.F32):
    return [
        OutputTensor(f"{module}.weight.lora_a", a_type, a.shape, quantize(a, a_type)),
        OutputTensor(f"{module}.weight.lora_b", b_type, b.shape, quantize(b, b_type)),
    ]


def test_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    adapter = LoRAWeights("style", 4, 6.0)
    for module, rank, scale in (
        ("blk.0.attn_q", 4, None),
        ("blk.1.ffn_up", 8, 0.3),
        ("output", 1, 2.0),
        ("token_embd", 2, 2.0),
    ):
        adapter.add_layer_weights(module, *matrices(rng, rank), scale)
    bound = adapter.bind(BASE)
    write_gguf_adapter(bound, tmp_path / "style.gguf")
    loaded = LoRAWeights.load(tmp_path / "style.gguf")
    assert (loaded.adapter_id, loaded.architecture, loaded.alpha) == ("style", "llama", 6.0)
    assert loaded.layers.keys() == bound.layers.keys()
    for name, layer in loaded.bind(BASE).layers.items():
        expected = bound.layers[name]
        np.testing.assert_array_equal(layer.a, expected.a)
        np.testing.assert_allclose(layer.scale * layer.b, expected.scale * expected.b, rtol=1e-6)
    np.testing.assert_array_equal(loaded.layers["blk.0.attn_q"].b, bound.layers["blk.0.attn_q"].b)


@pytest.mark.parametrize(("alpha", "scale"), [(16.0, 4.0), (0.0, 1.0)])
def test_scale_as_in_llama_cpp(tmp_path, alpha, scale):
    a, b = matrices(np.random.default_rng(1), 4)
    write_gguf(tmp_path / "a.gguf", META | {"adapter.lora.alpha": alpha}, tensors(a, b))
    layer = LoRAWeights.load(tmp_path / "a.gguf").bind(BASE).layers["blk.0.attn_q"]
    assert layer.scale == scale
    np.testing.assert_array_equal(layer.b, b)  # rows are in the order of the model's file already


def test_stored_types(tmp_path):
    a, b = matrices(np.random.default_rng(2), 32)
    write_gguf(tmp_path / "a.gguf", META, tensors(a, b, a_type=QuantType.Q8_0, b_type=QuantType.F16))
    layer = LoRAWeights.load(tmp_path / "a.gguf").layers["blk.0.attn_q"]
    np.testing.assert_allclose(layer.a, a, atol=0.02)
    np.testing.assert_array_equal(layer.b, b.astype(np.float16).astype(np.float32))


A4, B4 = matrices(np.random.default_rng(3), 4)
BAD = {
    "a model": (META | {"general.type": "model"}, tensors(A4, B4), "is a model, not an adapter"),
    "no type": ({"general.architecture": "llama"}, tensors(A4, B4), "is a model, not an adapter"),
    "control vector": (META | {"adapter.type": "cvec"}, tensors(A4, B4), "adapter.type = cvec"),
    "aLoRA": (META | {"adapter.alora.invocation_tokens": [1, 2]}, tensors(A4, B4), "aLoRA"),
    "alpha NaN": (META | {"adapter.lora.alpha": float("nan")}, tensors(A4, B4), "adapter.lora.alpha must be"),
    "no alpha": ({k: v for k, v in META.items() if "alpha" not in k}, tensors(A4, B4), "adapter.lora.alpha is missing"),
    "no tensors": (META, [], "takes 0 bytes"),
    "half": (META, tensors(A4, B4)[:1], "blk.0.attn_q.weight.lora_b is missing"),
    "norm": (
        META,
        [OutputTensor("blk.0.attn_norm.weight", QuantType.F32, (4,), quantize(A4[:1, :4], QuantType.F32))],
        "blk.0.attn_norm.weight is not supported",
    ),
    "vectors": (META, tensors(A4[0], B4[0]), "must be a matrix"),
    "NaN": (META, tensors(A4 * np.float32("nan"), B4), "not finite"),
    "ranks differ": (META, tensors(A4[:3], B4), "different ranks"),
    "huge rank": (META, tensors(np.zeros((513, K), np.float32), np.zeros((N, 513), np.float32)), "got 513"),
    "other shape": (META, tensors(A4[:, :32], B4), "the base has (32, 64)"),
    "other module": (META, tensors(A4, B4, "blk.9.attn_q"), "does not have"),
    "other architecture": (META | {"general.architecture": "gemma3"}, tensors(A4, B4), "architecture gemma3"),
    "path": (META, tensors(A4, B4, "../../x"), "does not have"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_adapters_are_refused(tmp_path, case):
    metadata, stored, message = BAD[case]
    write_gguf(tmp_path / "a.gguf", metadata, stored)
    with pytest.raises(RealmError) as error:
        LoRAWeights.load(tmp_path / "a.gguf").bind(BASE)
    assert error.value.status == 400
    assert message in error.value.message


def test_every_truncation_is_refused(tmp_path):
    write_gguf(tmp_path / "a.gguf", META, tensors(A4[:1], B4[:, :1]))
    raw = (tmp_path / "a.gguf").read_bytes()
    for length in range(0, len(raw) - 32, 3):  # the last bytes may be padding
        (tmp_path / "a.gguf").write_bytes(raw[:length])
        with pytest.raises(RealmError):
            LoRAWeights.load(tmp_path / "a.gguf")

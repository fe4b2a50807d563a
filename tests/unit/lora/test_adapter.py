import numpy as np
import pytest

from realm.core.errors import InvalidRequest, ModelFileError, RealmError
from realm.core.quant import QuantType
from realm.gguf.reader import GGUFFile
from realm.lora.adapter import MAX_RANK, LoRAWeights
from realm.lora.base import BaseModel
from realm.testing.tiny import TinyModel, write_tiny_model

A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = np.arange(6, dtype=np.float32).reshape(3, 2)
BASE = BaseModel("qwen3", 2, 1, {"blk.0.attn_q": (3, 4), "output": (3, 4)})


def adapter(**kwargs):
    weights = LoRAWeights("a", 2, 4.0, **kwargs)
    weights.add_layer_weights("blk.0.attn_q", A, B)
    return weights


def test_scale_is_alpha_over_rank_unless_given():
    weights = adapter()
    weights.add_layer_weights("output", A[:1], B[:, :1], scale=0.5)
    assert weights.layers["blk.0.attn_q"].scale == 2.0
    assert (weights.layers["output"].scale, weights.layers["output"].rank) == (0.5, 1)
    assert (weights.max_rank, weights.num_bytes) == (2, 4 * (8 + 6 + 4 + 3))


def test_weights_are_private_copies():
    a = A.copy()
    weights = LoRAWeights("a", 2, 4.0)
    weights.add_layer_weights("x", a, B)
    a[:] = 7
    np.testing.assert_array_equal(weights.layers["x"].a, A)
    with pytest.raises(ValueError, match="read-only"):
        weights.layers["x"].a[0, 0] = 1


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "a:b", "x" * 129, "a\n", "é"])
def test_names_that_could_be_paths_are_refused(name):
    with pytest.raises(InvalidRequest) as error:
        LoRAWeights(name, 2, 4.0)
    assert error.value.code == "invalid_adapter_name"


@pytest.mark.parametrize(("rank", "alpha"), [(0, 1.0), (-1, 1.0), (MAX_RANK + 1, 1.0), (2, np.nan), (2, np.inf)])
def test_rank_and_alpha_out_of_range(rank, alpha):
    with pytest.raises(InvalidRequest, match=r"rank|alpha"):
        LoRAWeights("a", rank, alpha)


@pytest.mark.parametrize(
    ("a", "b", "scale", "message"),
    [
        (A, B[:, :1], None, "different ranks"),
        (A[0], B, None, "must be a matrix"),
        (A[:0], B[:, :0], None, "must be a matrix"),
        (A[:1], B[:, :1], None, "needs its own scale"),
        (A * np.nan, B, None, "not finite"),
        (A, np.full_like(B, np.inf), None, "not finite"),
        (A, np.full(B.shape, 1e300), None, "not finite"),
        (A, B, np.nan, "scale must be finite"),
        (A, B, 1e39, "scale must be finite"),
        (np.zeros((513, 4)), np.zeros((3, 513)), 1.0, "between 1 and 512, got 513"),
    ],
)
def test_bad_layers_are_refused(a, b, scale, message):
    weights = LoRAWeights("a", 2, 4.0)
    with pytest.raises(InvalidRequest, match=message):
        weights.add_layer_weights("x", a, b, scale)
    assert not weights.layers


def test_a_module_can_be_added_once():
    weights = adapter()
    with pytest.raises(InvalidRequest, match="added before"):
        weights.add_layer_weights("blk.0.attn_q", A, B)


def test_content_hash_follows_what_is_computed():
    hashes = {adapter().content_hash}
    assert hashes == {LoRAWeights.bind(adapter(), BASE).content_hash}
    for change in ("name", "a", "b", "scale", "more"):
        weights = LoRAWeights("other-name", 2, 4.0)
        weights.add_layer_weights(
            "output" if change == "name" else "blk.0.attn_q",
            A + (change == "a"),
            B + (change == "b"),
            3.0 if change == "scale" else None,
        )
        if change == "more":
            before = weights.content_hash
            weights.add_layer_weights("output", A, B)
            assert weights.content_hash != before
        hashes.add(weights.content_hash)
    assert len(hashes) == 6
    assert adapter(row_order="huggingface").content_hash not in hashes


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (BaseModel("qwen3", 2, 1, {"blk.1.attn_q": (3, 4)}), "which the base model does not have"),
        (BaseModel("qwen3", 2, 1, {"blk.0.attn_q": (3, 8)}), r"\(3, 4\), the base has \(3, 8\)"),
        (BaseModel("llama", 2, 1, {"blk.0.attn_q": (3, 4)}), "architecture qwen3, the base model is llama"),
    ],
)
def test_another_base_model_is_refused(base, message):
    with pytest.raises(ModelFileError, match=message) as error:
        adapter(architecture="qwen3").bind(base)
    assert error.value.code == "adapter_base_mismatch"


def test_an_adapter_without_layers_is_refused():
    with pytest.raises(RealmError, match="holds no layers"):
        LoRAWeights("a", 2, 4.0).bind(BASE)


def test_rows_that_do_not_divide_into_heads_are_refused():
    base = BaseModel("llama", 2, 1, {"blk.0.attn_q": (3, 4)})
    with pytest.raises(ModelFileError, match="not a multiple of 2 x 2 heads"):
        adapter(row_order="huggingface").bind(base)


@pytest.mark.parametrize("tied", [True, False])
def test_base_model_of_a_gguf_file(tmp_path, tied):
    model = TinyModel(architecture="llama", quant_type=QuantType.Q8_0, num_layers=1, tied=tied)
    with GGUFFile.open(write_tiny_model(tmp_path / "m.gguf", model)) as file:
        base = BaseModel.from_gguf(file)
    hidden, inner, head_dim = model.sizes()
    assert (base.architecture, base.num_heads, base.num_kv_heads) == ("llama", 4, 2)
    assert base.modules == {
        "blk.0.attn_q": (4 * head_dim, hidden),
        "blk.0.attn_k": (2 * head_dim, hidden),
        "blk.0.attn_v": (2 * head_dim, hidden),
        "blk.0.attn_output": (hidden, 4 * head_dim),
        "blk.0.ffn_gate": (inner, hidden),
        "blk.0.ffn_up": (inner, hidden),
        "blk.0.ffn_down": (hidden, inner),
        "output": (model.vocab_size, hidden),
    }
    assert base.shape_of("token_embd") == (hidden, model.vocab_size)
    assert base.shape_of("output") == (model.vocab_size, hidden)
    assert base.shape_of("blk.1.attn_q") is None


def test_load_refuses_other_files(tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(ModelFileError, match="neither a PEFT directory nor"):
        LoRAWeights.load(tmp_path / "adapter_model.bin")
    with pytest.raises(ModelFileError) as error:
        LoRAWeights.load(tmp_path / "none")
    assert error.value.code == "adapter_not_found"

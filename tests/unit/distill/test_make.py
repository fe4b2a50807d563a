"""Drafts made of a target's layers: what is in the file, what fits it, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from realm.core.config import EngineConfig
from realm.core.errors import InvalidRequest, ModelFileError
from realm.core.quant import QuantType
from realm.distill.make import STORED_TYPE, count_tokens, default_layers, make_draft, most_frequent, read_target
from realm.distill.student import as_stored
from realm.gguf.reader import GGUFFile
from realm.models.draft import fits, read_draft
from realm.models.loader import load_draft, load_model
from realm.models.weights import dequantize_tensor
from realm.testing.batches import chunk
from realm.testing.tiny import TinyModel, write_tiny_model

MODEL = TinyModel(num_layers=4, quant_type=QuantType.Q8_0)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("target") / "target.gguf", MODEL)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_its_layers_are_the_targets(tmp_path: Path, architecture: str) -> None:
    path = write_tiny_model(tmp_path / "target.gguf", TinyModel(architecture, QuantType.Q4_1, num_layers=4))
    with GGUFFile.open(path) as target:
        made = make_draft(target, tmp_path / "draft.gguf", (0, 3))
        with GGUFFile.open(made) as file:
            draft = read_draft(file, target)
            assert file.metadata.get_int(f"{architecture}.block_count") == 2
            for index, layer in ((0, 0), (1, 3)):
                for name, info in target.tensors.items():
                    if name.startswith(f"blk.{layer}."):
                        copy = file.tensors[name.replace(f"blk.{layer}.", f"blk.{index}.")]
                        assert (copy.shape, copy.type_id) == (info.shape, info.type_id)
                        assert np.array_equal(copy.data, info.data)
            assert "token_embd.weight" not in file.tensors
    assert draft.token_ids is None
    assert draft.shared == {"token_embd.weight"}


def test_of_all_layers_it_gives_the_targets_own_logits(target: Path, tmp_path: Path) -> None:
    """And with a reduced vocabulary, the logits of those tokens."""
    some = [1, 5, 8, 200]
    with GGUFFile.open(target) as file:
        whole = make_draft(file, tmp_path / "whole.gguf", range(4))
        reduced = make_draft(file, tmp_path / "reduced.gguf", range(4), some)
    config = EngineConfig(max_batch_size=2, num_threads=1)
    loaded = load_model(target, config)
    batch = chunk([3, 7, 30, 31], 0, [2])
    expected = loaded.executor.step(batch).copy()
    assert np.array_equal(load_draft(whole, target, loaded, config).executor.step(batch), expected)
    draft = load_draft(reduced, target, loaded, config)
    assert draft.token_ids is not None
    assert draft.token_ids.tolist() == some
    assert np.array_equal(draft.executor.step(batch), expected[:, some])


def test_embedding_and_head_are_not_copied(target: Path, tmp_path: Path) -> None:
    config = EngineConfig(num_threads=1)
    loaded = load_model(target, config)
    with GGUFFile.open(target) as file:
        made = make_draft(file, tmp_path / "draft.gguf", (0, 1, 2, 3))
        embedding = file.tensors["token_embd.weight"].num_bytes
    draft = load_draft(made, target, loaded, config)
    assert draft.executor.weights_bytes <= loaded.executor.weights_bytes - embedding


def test_trained_values_are_stored_in_blocks_and_so_is_a_head(target: Path, tmp_path: Path) -> None:
    some = [1, 5, 8, 200]
    with GGUFFile.open(target) as file:
        rng = np.random.default_rng(7)
        values = {name: rng.normal(size=info.shape).astype(np.float32) for name, info in file.tensors.items()}
        values["output.weight"] = rng.normal(size=(4, file.tensors["token_embd.weight"].shape[1])).astype(np.float32)
        made = make_draft(file, tmp_path / "draft.gguf", (1,), some, trained=values.__getitem__, recipe="by hand")
        with GGUFFile.open(made) as written:
            draft = read_draft(written, file)
            assert written.metadata["realm.draft.recipe"] == "by hand"
            (layer,) = draft.weights.layers
            for matrix, name in ((layer.ffn_down, "blk.1.ffn_down.weight"), (draft.weights.head, "output.weight")):
                (part,) = matrix.parts
                assert part.quant_type is STORED_TYPE
                as_read = dequantize_tensor(part)
                np.testing.assert_allclose(as_read, values[name], atol=np.ptp(values[name]) / 28)
                rounded = as_stored(torch.from_numpy(values[name])).numpy()
                np.testing.assert_allclose(rounded, as_read, atol=1e-6)
            assert np.array_equal(layer.attn_norm, values["blk.1.attn_norm.weight"])
            assert draft.shared == {"token_embd.weight"}


def test_gradients_pass_through_rounding() -> None:
    values = torch.randn(64, requires_grad=True)
    (as_stored(values) * torch.arange(64)).sum().backward()
    assert torch.equal(values.grad, torch.arange(64.0))


@pytest.mark.parametrize("layers", [(), (4,), (-1,), (0, 0), (2, 1)])
def test_layers_that_cannot_be_kept(target: Path, tmp_path: Path, layers: tuple[int, ...]) -> None:
    with GGUFFile.open(target) as file, pytest.raises(InvalidRequest):
        make_draft(file, tmp_path / "draft.gguf", layers)
    assert not list(tmp_path.iterdir())


def test_a_draft_is_no_target(target: Path, tmp_path: Path) -> None:
    with GGUFFile.open(target) as file:
        made = make_draft(file, tmp_path / "draft.gguf", (0,))
    with GGUFFile.open(made) as file, pytest.raises(InvalidRequest, match="a draft itself"):
        read_target(file)


@pytest.mark.parametrize(
    "other",
    [TinyModel(num_layers=4, seed=1), TinyModel("qwen3", num_layers=4), TinyModel(num_layers=4, vocab_size=700)],
)
def test_it_does_not_fit_another_model(target: Path, tmp_path: Path, other: TinyModel) -> None:
    stranger = write_tiny_model(tmp_path / "other.gguf", other)
    with GGUFFile.open(target) as file, GGUFFile.open(stranger) as wrong:
        made = make_draft(file, tmp_path / "draft.gguf", (0,))
        with GGUFFile.open(made) as draft:
            assert fits(draft, file)
            assert not fits(draft, wrong)
            with pytest.raises(ModelFileError, match="can't draft for this model"):
                read_draft(draft, wrong)


def test_default_layers_are_spread_evenly() -> None:
    assert default_layers(30, 4) == (0, 10, 19, 29)
    assert default_layers(30, 1) == (0,)
    assert default_layers(2, 2) == (0, 1)
    with pytest.raises(InvalidRequest):
        default_layers(2, 3)


def test_the_most_frequent_tokens() -> None:
    rows = [np.array([[5, 5, 2], [9, 2, 5]], np.int32), np.array([1, 9], np.int32)]
    counts = count_tokens(rows, 10)
    assert most_frequent(counts, 3) == [2, 5, 9]
    assert most_frequent(counts, 5) == [0, 1, 2, 5, 9]

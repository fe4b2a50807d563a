"""Which files can draft for which model: told by content, with a reason when they can't."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from realm.core.errors import ModelFileError
from realm.core.quant import QuantType
from realm.distill.make import make_draft
from realm.gguf.reader import GGUFFile
from realm.gguf.writer import OutputTensor, write_gguf
from realm.models.draft import DraftWeights, embedding_norms, fits, read_draft, vocabulary_hash
from realm.models.weights import dequantize_tensor
from realm.testing.tiny import TinyModel, tiny_metadata, tiny_tensors, write_tiny_model

TARGET = TinyModel("llama", QuantType.Q8_0, num_layers=3)
TOKENS = "tokenizer.ggml.tokens"
TYPES = "tokenizer.ggml.token_type"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "target.gguf", TARGET)


def pruned(target: Path, token_ids: list[int] | None = None) -> Path:
    with GGUFFile.open(target) as file:
        return make_draft(file, target.with_name("draft.gguf"), [0, 2], token_ids)


def read(draft: Path, target: Path) -> DraftWeights:
    with GGUFFile.open(draft) as draft_file, GGUFFile.open(target) as target_file:
        return read_draft(draft_file, target_file)


def mismatch(draft: Path, target: Path) -> str:
    with pytest.raises(ModelFileError) as told:
        read(draft, target)
    assert told.value.code == "draft_mismatch"
    assert draft.name in told.value.message
    assert told.value.hint
    return told.value.message


def changed(target: Path, metadata: Mapping[str, object], model: TinyModel = TARGET) -> Path:
    path = target.with_name("changed.gguf")
    write_gguf(path, tiny_metadata(model) | metadata, tiny_tensors(model))
    return path


def rewritten(draft: Path, metadata: Mapping[str, object]) -> Path:
    """A draft file with other metadata, and the same tensors."""
    path = draft.with_name("rewritten.gguf")
    with GGUFFile.open(draft) as file:
        tensors = [
            OutputTensor(name, info.quant_type, info.shape, info.data.reshape(-1).view(np.uint8).copy())
            for name, info in file.tensors.items()
        ]
        kept = {key: value for key, value in file.metadata.items() if metadata.get(key, 0) is not None}
        write_gguf(path, {**kept, **{key: value for key, value in metadata.items() if value is not None}}, tensors)
    return path


def test_any_model_with_the_same_vocabulary_drafts(target: Path) -> None:
    """Another family, another size, other types."""
    for model in (TinyModel("qwen3", QuantType.Q4_0, num_layers=1, seed=3), TARGET):
        other = write_tiny_model(target.with_name("other.gguf"), model)
        weights = read(other, target)
        assert weights.token_ids is None
        assert weights.shared == frozenset()
        assert weights.spec.num_layers == model.num_layers


def test_a_differing_token_is_named(target: Path) -> None:
    tokens = list(tiny_metadata(TARGET)[TOKENS])
    tokens[99] = "other"
    message = mismatch(changed(target, {TOKENS: tokens}), target)
    assert "token 99 is 'other' against" in message


def test_another_number_of_tokens_is_told(target: Path) -> None:
    larger = TinyModel("llama", QuantType.Q8_0, vocab_size=TARGET.vocab_size + 7)
    message = mismatch(write_tiny_model(target.with_name("larger.gguf"), larger), target)
    assert f"{TARGET.vocab_size + 7} tokens against {TARGET.vocab_size}" in message


def test_a_special_token_that_is_plain_text_elsewhere_is_told(target: Path) -> None:
    types = list(tiny_metadata(TARGET)[TYPES])
    types[1] = 1
    assert "token 1 ('<|im_start|>') is not special against special" in mismatch(
        changed(target, {TYPES: types}), target
    )


def test_another_kind_of_tokenizer_is_told(target: Path) -> None:
    other = write_tiny_model(target.with_name("other.gguf"), TinyModel("gemma3"))
    assert "of the kind 'llama' against 'gpt2'" in mismatch(other, target)


def test_a_draft_file_uses_the_embedding_and_head_of_its_target(target: Path) -> None:
    weights = read(pruned(target), target)
    assert weights.shared == {"token_embd.weight"}
    assert weights.spec.num_layers == 2
    assert weights.token_ids is None


def test_a_reduced_vocabulary_takes_its_rows_of_the_head(target: Path) -> None:
    ids = [0, 5, 6, 319]
    weights = read(pruned(target, ids), target)
    assert weights.token_ids.tolist() == ids
    (part,) = weights.weights.head.parts
    assert part.num_rows == 4
    with GGUFFile.open(target) as file:
        rows = file.tensors["token_embd.weight"].data.reshape(TARGET.vocab_size, -1)
        assert np.array_equal(np.asarray(part.data).reshape(4, -1), rows[ids])


def test_another_quantisation_of_the_target_is_fine(target: Path) -> None:
    """Values differ a little, the rows' lengths hardly."""
    draft = pruned(target)
    with GGUFFile.open(draft) as draft_file, GGUFFile.open(target) as target_file:
        assert fits(draft_file, target_file)
        norms = embedding_norms(target_file)
    near = rewritten(draft, {"realm.draft.embedding_norms": [1.02 * norm for norm in norms]})
    assert read(near, target).spec.num_layers == 2


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (TinyModel("llama", QuantType.Q8_0, num_layers=3, vocab_size=400), "another vocabulary"),
        (TinyModel("qwen3", QuantType.Q8_0, num_layers=3), "a llama model, and this is a qwen3 model"),
        (TinyModel("llama", QuantType.Q8_0, num_layers=3, seed=9), "another embedding"),
    ],
)
def test_a_draft_file_for_another_model_is_told(target: Path, other: TinyModel, reason: str) -> None:
    wrong = write_tiny_model(target.with_name("wrong.gguf"), other)
    draft = pruned(target)
    assert reason in mismatch(draft, wrong)
    with GGUFFile.open(draft) as draft_file, GGUFFile.open(wrong) as wrong_file:
        assert not fits(draft_file, wrong_file)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"realm.draft.version": 2}, "version 2"),
        ({"realm.draft.layers": [0, 3]}, "must name layers of the target"),
        ({"realm.draft.layers": [-1, 1]}, "must name layers of the target"),
        ({"realm.draft.layers": [0, 1, 2]}, r"blk\.2\."),
        ({"realm.draft.layers": [0]}, r"blk\.1\."),
        ({"realm.draft.layers": None}, r"realm\.draft\.layers"),
        ({"realm.draft.vocabulary": None}, r"realm\.draft\.vocabulary"),
        ({"realm.draft.vocabulary": 5}, r"realm\.draft\.vocabulary"),
        ({"realm.draft.embedding_norms": [1.0]}, "another embedding"),
        ({"realm.draft.embedding_norms": [float("nan")] * 16}, "another embedding"),
        ({"realm.draft.token_ids": [3, 2]}, "ascending"),
        ({"realm.draft.token_ids": [3, 3]}, "ascending"),
        ({"realm.draft.token_ids": [-1, 3]}, "ascending"),
        ({"realm.draft.token_ids": [0, 320]}, "ascending"),
        ({"realm.draft.token_ids": [0, 2**40]}, "ascending"),
        ({"realm.draft.token_ids": "all"}, r"realm\.draft\.token_ids"),
    ],
)
def test_a_malformed_draft_file_is_an_error(target: Path, metadata: dict[str, object], match: str) -> None:
    with pytest.raises(ModelFileError, match=match):
        read(rewritten(pruned(target), metadata), target)


def test_a_head_of_its_own_has_a_row_for_each_token_that_it_can_propose(target: Path) -> None:
    token_ids = [3, 5, 8]
    with GGUFFile.open(target) as file:
        rng = np.random.default_rng(0)
        values = {name: rng.normal(size=info.shape).astype(np.float32) for name, info in file.tensors.items()}
        values["output.weight"] = np.repeat(np.float32([[1], [2], [4]]), file.tensors["token_embd.weight"].shape[1], 1)
        path = target.with_name("trained.gguf")
        draft = make_draft(file, path, [0, 2], token_ids, trained=values.__getitem__)
    head = read(draft, target).weights.head
    assert dequantize_tensor(head.parts[0])[:, 0].tolist() == [1, 2, 4]
    for others in ([3, 5], [3, 5, 8, 9], None):
        with pytest.raises(ModelFileError, match=r"output\.weight"):
            read(rewritten(draft, {"realm.draft.token_ids": others}), target)


def test_tokens_with_their_lengths_make_the_hash() -> None:
    """Moving a letter from one token to the next changes it."""
    hashes = {vocabulary_hash({TOKENS: tokens}) for tokens in (["ab", "c"], ["a", "bc"], ["abc", ""], ["abc"])}
    assert len(hashes) == 4

"""A whole distillation of a tiny model: it helps, it repeats, it can be stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from realm.core.errors import InvalidRequest
from realm.core.types import Int32Array
from realm.distill.chats import plan_chats
from realm.distill.corpus import TorchAuthor
from realm.distill.recipe import Outcome, Recipe, distill, plan_of
from realm.distill.student import TorchModel
from realm.distill.train import tokens_per_verification
from realm.distill.workdir import WorkDir
from realm.gguf.reader import GGUFFile
from realm.models.config import read_spec
from realm.models.weights import load_weights
from realm.testing.tiny import TinyModel, write_tiny_model
from realm.tokenizer.chat import load_chat_template
from realm.tokenizer.tokenizer import load_tokenizer

RECIPE = Recipe((0, 2), 200, 16_000, 90, 1536, 4e-3, 64, 32, 0)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(
        tmp_path_factory.mktemp("distill") / "tiny.gguf", TinyModel(num_layers=3, context_length_tokens=160)
    )


def run(
    target: Path,
    directory: Path,
    recipe: Recipe = RECIPE,
    stop_at: int | None = None,
    corpus: Int32Array | None = None,
) -> Outcome:
    def report(stage: str, done: int, total: int, remark: str) -> None:
        if stage == "training" and stop_at is not None and done >= stop_at:
            raise KeyboardInterrupt

    with GGUFFile.open(target) as file:
        spec = read_spec(file.metadata, None)
        teacher = TorchModel.load(load_weights(file, spec), spec, torch.device("cpu"), torch.float32)
        tokenizer = load_tokenizer(file.metadata)
        plan = plan_chats(load_chat_template(file.metadata, tokenizer), tokenizer)
        work = WorkDir(directory / "work", plan_of(recipe, file.fingerprint, ""))
        author = TorchAuthor(teacher, plan.chat, torch.device("cpu"))
        return distill(file, teacher, author, plan, directory / "draft.gguf", recipe, work, report, corpus)


@pytest.fixture(scope="module")
def done(target: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    directory = tmp_path_factory.mktemp("done")
    return directory, run(target, directory)


def test_it_raises_acceptance(done: tuple[Path, Outcome]) -> None:
    _, outcome = done
    for length, mean in outcome.distilled.items():
        assert mean > 1.08 * outcome.pruned[length]


def test_stopped_and_gone_on_with_it_gives_the_same_file(
    target: Path, done: tuple[Path, Outcome], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(target, tmp_path, stop_at=40)
    assert not (tmp_path / "draft.gguf").exists()
    assert run(target, tmp_path) == done[1]
    assert (tmp_path / "draft.gguf").read_bytes() == (done[0] / "draft.gguf").read_bytes()


def test_what_it_can_propose_is_what_a_corpus_says(target: Path, tmp_path: Path) -> None:
    """Whoever says it, and with the whole vocabulary, the head stays the target's."""
    corpus = np.tile(np.arange(40, 60, dtype=np.int32), 40)
    recipe = replace(RECIPE, vocab_size=20, num_steps=3)
    run(target, tmp_path, recipe, corpus=corpus)
    with GGUFFile.open(tmp_path / "draft.gguf") as file:
        assert file.metadata["realm.draft.token_ids"] == list(range(40, 60))
        assert file.tensors["output.weight"].shape[0] == 20
    with GGUFFile.open(target) as file:
        vocab_size = read_spec(file.metadata, None).vocab_size
    (tmp_path / "whole").mkdir()
    run(target, tmp_path / "whole", replace(recipe, vocab_size=vocab_size), corpus=corpus)
    with GGUFFile.open(tmp_path / "whole" / "draft.gguf") as file:
        assert "output.weight" not in file.tensors


def test_it_does_not_go_on_with_another_plan(target: Path, done: tuple[Path, Outcome]) -> None:
    with pytest.raises(InvalidRequest, match="other settings"):
        run(target, done[0], replace(RECIPE, learning_rate=1e-3))


def test_it_leaves_other_directories_alone(target: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("precious")
    with pytest.raises(InvalidRequest, match="not empty"):
        run(target, tmp_path)


def test_tokens_per_verification_counts_as_the_engine_accepts() -> None:
    rows = np.array([[1, 2, 3, 4, 5, 6, 7, 8]], np.int32)

    def draft(ids: torch.Tensor) -> torch.Tensor:
        """Right but after token 4."""
        return torch.nn.functional.one_hot(torch.where(ids == 4, 0, ids + 1), 10).float()

    # Judged from token 2 on: 3 4 right, 5 wrong (drawn); 6 7 right and 8 drawn.
    counts = np.arange(8)[None] >= 1
    means = tokens_per_verification(draft, rows, counts, None, (2,), torch.device("cpu"))
    assert means == {2: 3.0}

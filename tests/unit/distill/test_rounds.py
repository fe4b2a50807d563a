"""Rounds of text: noted while they are written or asked for later, and never written twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from realm.distill import rounds as rounds_module
from realm.distill.chats import ChatPlan, Rows, Text, plan_chats
from realm.distill.corpus import TorchAuthor
from realm.distill.rounds import Rounds
from realm.distill.student import TorchModel
from realm.distill.workdir import WorkDir
from realm.gguf.reader import GGUFFile
from realm.models.config import read_spec
from realm.models.weights import load_weights
from realm.testing.tiny import TinyModel, write_tiny_model
from realm.tokenizer.chat import load_chat_template
from realm.tokenizer.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchModel, ChatPlan]:
    path = write_tiny_model(tmp_path_factory.mktemp("texts") / "tiny.gguf", TinyModel(context_length_tokens=96))
    with GGUFFile.open(path) as file:
        spec = read_spec(file.metadata, None)
        model = TorchModel.load(load_weights(file, spec), spec, torch.device("cpu"), torch.float32)
        tokenizer = load_tokenizer(file.metadata)
        return model, plan_chats(load_chat_template(file.metadata, tokenizer), tokenizer)


class Silent:
    """Writes what another author writes, and tells nothing."""

    def __init__(self, author: TorchAuthor) -> None:
        self._author = author
        self.num_written = 0

    def write(self, texts: list[Text], length: int, seed: int) -> Rows:
        self.num_written += 1
        return self._author.write(texts, length, seed)


def test_what_is_noted_while_writing_is_what_is_asked_for_later(
    target: tuple[TorchModel, ChatPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan = target
    monkeypatch.setattr(rounds_module, "_FIRST_TOKENS", 300)
    author = TorchAuthor(model, plan.chat, model.device)
    silent = Silent(author)
    vocabulary = torch.arange(20, 120)
    judge = model.cut_head(vocabulary)
    found = []
    for place, who in (("told", author), ("asked", silent), ("asked", silent)):
        work = WorkDir(tmp_path / place, {})
        rounds = Rounds(who, plan, 1500, 4, 96, 512, 0, work, lambda *_: None)
        first = rounds.first()
        assert [rows.shape for rows in first] == [(4, 96)]
        found.append([*rounds.ask(first, judge), *rounds.others(first, judge, vocabulary)])
    assert [len(answered) for answered in found] == [4, 4, 4]
    assert silent.num_written == 4, "what was kept is not written again"
    for told, *asked in zip(*found, strict=True):
        for rows, answers in asked:
            assert np.array_equal(rows, told[0])
            np.testing.assert_allclose(answers["probabilities"], told[1]["probabilities"], atol=2e-3)
            assert (answers["ids"][..., 0] == told[1]["ids"][..., 0]).mean() > 0.99

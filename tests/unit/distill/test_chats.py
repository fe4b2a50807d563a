"""What a target writes by itself: turns by the template, the same by the engine and by torch, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from realm.core.errors import InvalidRequest
from realm.distill.chats import ChatPlan, ChatTokens, EngineAuthor, Turns, encode_corpus, no_tokens, plan_chats
from realm.distill.corpus import TorchAuthor, _Turns
from realm.distill.student import TorchModel
from realm.gguf.reader import GGUFFile
from realm.models.config import read_spec
from realm.models.weights import load_weights
from realm.runtime.load import load
from realm.testing.tiny import TinyModel, write_tiny_model
from realm.testing.vocabularies import bpe_metadata
from realm.tokenizer.chat import ChatTemplate, load_chat_template
from realm.tokenizer.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(bpe_metadata())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("chats") / "tiny.gguf", TinyModel())


def test_turns_are_read_off_the_template(tokenizer: Tokenizer) -> None:
    plan = plan_chats(load_chat_template(bpe_metadata(), tokenizer), tokenizer)
    assert tokenizer.decode([plan.chat.end_of_turn], skip_special=False) == "<|im_end|>"
    assert tokenizer.decode(plan.chat.user_ended, skip_special=False) == "\n<|im_start|>assistant\n"
    assert tokenizer.decode(plan.chat.assistant_ended, skip_special=False) == "\n<|im_start|>user\n"
    openings = [tokenizer.decode(opening, skip_special=False) for opening in plan.openings]
    assert openings[0] == "<|im_start|>user\n"
    assert "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat" in openings


@pytest.mark.parametrize("source", [None, "{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "{{ 1 / 0 }}"])
def test_without_turns_texts_begin_at_their_beginning(tokenizer: Tokenizer, source: str | None) -> None:
    try:
        plan = plan_chats(ChatTemplate(source), tokenizer)
    except InvalidRequest:
        assert source == "{{ 1 / 0 }}"
        return
    assert plan == ChatPlan(ChatTokens(2, (), ()), ((0,),))


def test_turns_alternate() -> None:
    turns = Turns(ChatTokens(9, (1, 2), (3,)))
    said: list[int] = []
    for token in (5, 9, 6, 9, 9, 7):
        said += turns.take_joint()
        turns.feed(token)
        said.append(token)
    assert said == [5, 9, 1, 2, 6, 9, 3, 9, 1, 2, 7]


@pytest.mark.parametrize("chat", [ChatTokens(9, (1, 2), (3,)), ChatTokens(9, (), ()), ChatTokens(9, (), (4, 4, 5))])
def test_turns_of_many_rows_are_those_of_each(chat: ChatTokens) -> None:
    sampled = np.random.default_rng(3).integers(6, 10, (5, 60))
    together = _Turns(chat, 5, torch.device("cpu"))
    rows = np.stack([together.choose(torch.tensor(sampled[:, i])).numpy() for i in range(60)], axis=1)
    for row, draws in zip(rows.tolist(), sampled.tolist(), strict=True):
        turns = Turns(chat)
        for said, drawn in zip(row, draws, strict=True):
            pending = turns.take_joint()
            assert said == (pending[0] if pending else drawn)
            turns._pending = pending
            turns.feed(said)


def test_the_engine_writes_whole_rows(path: Path) -> None:
    with load(path, max_batch_size=4, max_seq_len=64, num_threads=1) as model:
        plan = plan_chats(model.chat_template, model.tokenizer)
        author = EngineAuthor(model, plan.chat)
        opening = plan.openings[0]
        rows = author.write(opening, no_tokens(6), 64, 1.0, 5)
        again = author.write(opening, no_tokens(2), 64, 1.0, 5)
    assert rows.shape == (6, 64)
    assert (rows[:, : len(opening)] == opening).all()
    assert np.array_equal(rows[:2], again), "a row depends on how many are written with it"
    assert len(np.unique(rows, axis=0)) == 6


def test_torch_writes_what_the_engine_writes(path: Path) -> None:
    """Greedily, after tokens that end in the middle of a joint."""
    with GGUFFile.open(path) as file:
        spec = read_spec(file.metadata, None)
        teacher = TorchModel.load(load_weights(file, spec), spec, torch.device("cpu"), torch.float32)
    with load(path, device="reference", max_batch_size=4, max_seq_len=64) as model:
        plan = plan_chats(model.chat_template, model.tokenizer)
        opening, joint = plan.openings[0], (plan.chat.end_of_turn, *plan.chat.user_ended)
        forced = np.array([[40, 50, *joint[:2]], [60, *joint[:3]], [70, 71, 72, 73]], np.int32)
        expected = EngineAuthor(model, plan.chat).write(opening, forced, 48, 0.0, 0)
        written = TorchAuthor(teacher, plan.chat, torch.device("cpu")).write(opening, forced, 48, 0.0, 0)
    assert np.array_equal(written, expected)
    begin = len(opening) + 2
    assert written[0, begin : begin + len(joint)].tolist() == list(joint)


def test_a_corpus(tokenizer: Tokenizer) -> None:
    text = "hello world\n" * 20_000  # longer than is encoded at once
    assert encode_corpus(text, tokenizer).tolist() == tokenizer.encode("hello world\n") * 20_000
    with pytest.raises(InvalidRequest, match="empty"):
        encode_corpus("", tokenizer)

"""What a target writes by itself: turns by the template, the same by the engine and by torch, whatever the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from realm.core.errors import InvalidRequest
from realm.distill.chats import ChatPlan, ChatTokens, EngineAuthor, Text, Turns, encode_corpus, plan_chats
from realm.distill.corpus import TorchAuthor, _Turns, rows_at_once
from realm.distill.lessons import ask
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


def test_questions_differ_and_answers_have_all_temperatures(tokenizer: Tokenizer) -> None:
    topics = (7, 8, 9)
    plan = replace(plan_chats(load_chat_template(bpe_metadata(), tokenizer), tokenizer), topics=topics)
    texts = plan.draw(400, 3)
    assert texts == plan.draw(400, 3) != plan.draw(400, 4)
    assert len({text.opening for text in texts}) > 200
    on_topic = [text for text in texts if text.opening[-1] in topics]
    assert 100 < len(on_topic) < 220
    assert {text.opening[:-1] for text in on_topic} <= set(plan.openings_with_topic)
    assert {text.question_temperature for text in texts} == {1.0}
    assert sum(text.answer_temperature == 0 for text in texts) == 200
    assert {text.answer_temperature for text in plan.draw(9, 0, answer_temperature=0.25)} == {0.25}


def test_topics_are_common_words() -> None:
    metadata = bpe_metadata()
    tokenizer = load_tokenizer(metadata)
    plan = plan_chats(load_chat_template(metadata, tokenizer), tokenizer)
    words = [tokenizer.decode([topic], continuation=True) for topic in plan.topics]
    assert all(word[0] == " " and word[1:].isalpha() and len(word) > 5 for word in words)


def test_what_is_part_of_an_answer() -> None:
    plan = ChatPlan(ChatTokens(9, (1, 2), (3,)), ((5,),))
    rows = np.array([[5, 9, 1, 2, 6, 6, 9, 3, 7, 9, 1, 2, 6], [5, 9, 1, 6, 6, 9, 1, 2, 9, 3, 9, 1, 2]], np.int32)
    said = [
        [3, 4, 5, 11, 12],
        [7, 12],
    ]  # the last token before an answer is followed by it; its last by the end of turn
    assert [np.flatnonzero(row).tolist() for row in plan.is_answer(rows)] == said
    assert ChatPlan(ChatTokens(9, (), ()), ((5,),)).is_answer(rows).all()


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
    together = _Turns(chat, [Text((), 1.0, 0.5)] * 5, torch.device("cpu"))
    rows, temperatures = [], []
    for i in range(60):
        rows.append(together.choose(torch.tensor(sampled[:, i])).numpy())
        temperatures.append(together.temperature.numpy().copy())
    for said, temperature, drawn in zip(np.array(rows).T, np.array(temperatures).T, sampled, strict=True):
        turns = Turns(chat)
        for i in range(60):
            pending = turns.take_joint()
            assert said[i] == (pending[0] if pending else drawn[i])
            turns._pending = pending
            turns.feed(said[i])
            assert temperature[i] == (0.5 if turns.is_answer else 1.0)


def test_rows_that_do_not_speak_yet_stay_as_they_are() -> None:
    turns = _Turns(ChatTokens(9, (1, 2), (3,)), [Text((), 1.0, 0.5)] * 2, torch.device("cpu"))
    nines = torch.tensor([9, 9])
    turns.choose(nines, torch.tensor([True, False]))
    assert turns.choose(nines).tolist() == [1, 9]


def test_the_engine_writes_whole_rows(path: Path) -> None:
    with load(path, max_batch_size=4, max_seq_len=64, num_threads=1) as model:
        plan = plan_chats(model.chat_template, model.tokenizer)
        author = EngineAuthor(model, plan.chat)
        texts = [Text(plan.openings[0], 1.0, 1.0)] * 6
        rows = author.write(texts, 64, 5)
        again = author.write(texts[:2], 64, 5)
    assert rows.shape == (6, 64)
    assert (rows[:, : len(plan.openings[0])] == plan.openings[0]).all()
    assert np.array_equal(rows[:2], again), "a row depends on how many are written with it"
    assert len(np.unique(rows, axis=0)) == 6


def test_torch_writes_what_the_engine_writes(path: Path) -> None:
    """Greedily, after openings of different lengths."""
    with GGUFFile.open(path) as file:
        spec = read_spec(file.metadata, None)
        teacher = TorchModel.load(load_weights(file, spec), spec, torch.device("cpu"), torch.float32)
    with load(path, device="reference", max_batch_size=4, max_seq_len=96) as model:
        plan = plan_chats(model.chat_template, model.tokenizer)
        texts = [Text((*plan.openings[0], *more), 0.0, 0.0) for more in ((), (40, 50), (60,), (70, 71, 72, 73))]
        expected = EngineAuthor(model, plan.chat).write(texts, 96, 0)
        written = TorchAuthor(teacher, plan.chat, torch.device("cpu")).write(texts, 96, 0)
    assert np.array_equal(written, expected)


def test_what_it_tells_while_writing_is_what_it_says_when_asked(path: Path) -> None:
    with GGUFFile.open(path) as file:
        spec = read_spec(file.metadata, None)
        teacher = TorchModel.load(load_weights(file, spec), spec, torch.device("cpu"), torch.float32)
        tokenizer = load_tokenizer(file.metadata)
        plan = plan_chats(load_chat_template(file.metadata, tokenizer), tokenizer)
    author = TorchAuthor(teacher, plan.chat, teacher.device)
    texts = plan.draw(6, 0)
    for vocabulary in (torch.arange(30, 100), None):
        rows, told = author.write_and_tell(texts, 40, 3, vocabulary)
        assert np.array_equal(rows, author.write(texts, 40, 3))
        said = ask(teacher.cut_head(vocabulary), rows, 1000, teacher.device)
        assert told.dtype == said.dtype
        np.testing.assert_allclose(told["probabilities"], said["probabilities"], atol=1e-3)
        assert (told["ids"][..., 0] == said["ids"][..., 0]).mean() > 0.99


def test_texts_written_at_once_fit_the_memory(path: Path) -> None:
    with GGUFFile.open(path) as file:
        spec = read_spec(file.metadata, None)
    row_bytes = 256 * spec.num_layers * spec.num_kv_heads * spec.head_dim * 4
    numbers = [rows_at_once(spec, num * 3 * row_bytes // 2) for num in (0, 1, 2, 3, 1000, 10**9)]
    assert numbers == [1, 1, 2, 2, 512, 8192]


def test_a_corpus(tokenizer: Tokenizer) -> None:
    text = "hello world\n" * 20_000  # longer than is encoded at once
    assert encode_corpus(text, tokenizer).tolist() == tokenizer.encode("hello world\n") * 20_000
    with pytest.raises(InvalidRequest, match="empty"):
        encode_corpus("", tokenizer)

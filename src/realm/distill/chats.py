"""Text that a target writes by itself: chats sampled from its template alone (Magpie, arXiv 2406.08464).

A model that was trained on chats continues the opening of a user's turn with a question, and then answers it. Models
without a template continue from the beginning of a text. Needs no torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from realm.core.errors import InvalidRequest
from realm.core.types import MAX_SEED, FinishReason, Int32Array
from realm.runtime.generation import Completion
from realm.runtime.model import Model
from realm.tokenizer.chat import ChatTemplate
from realm.tokenizer.tokenizer import Tokenizer

Rows = NDArray[np.int32]
"""[N, T] token ids."""

MIN_P = 0.05
"""Tokens less likely than this part of the likeliest are not drawn."""
_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer clearly and briefly.",
    "You are an expert who explains things step by step.",
)
# Otherwise models ask much the same again and again: most questions are begun for them, and many are given a topic.
# fmt: off
_STARTS = (
    "", "", "", "", "What", "What is", "What are", "What should I", "What happens", "How", "How do I", "How can I",
    "How does", "How would you", "How many", "Write", "Write a", "Write a function", "Write an", "Can you",
    "Could you please", "Please", "Explain", "Explain how", "Explain why", "Why", "Why is", "Why do", "Tell me",
    "Tell me about", "I", "I want to", "I need", "I'm", "My", "Describe", "Describe a", "Give me",
    "Give me a list of", "Give me some", "Create", "Create a", "The", "Is", "Is it", "Are", "Do", "Should I",
    "Summarize", "List", "Name", "Who", "Who was", "When", "Where", "Which", "In", "If", "Compare", "Imagine",
    "Help me", "Make", "Suggest", "Translate", "Rewrite", "Generate", "Design", "Plan", "Calculate", "Define",
    "Identify", "Discuss",
)
_STARTS_WITH_TOPIC = (
    "", "What is", "What are", "What is the", "What does", "How does the", "How do I", "How can I", "How to",
    "Why is the", "Why do", "Tell me about", "Explain", "Explain the", "Describe the", "Write about",
    "Write a story about", "Write a poem about", "Write a letter about", "Write an essay on", "Give me",
    "Give me tips on", "Who", "Can you explain", "Can you recommend", "I want to learn about",
    "I have a question about", "List the", "What do you know about", "Which", "When was the", "Where is the", "Is",
    "Are", "Compare", "Summarize the", "My", "The", "Create a", "Define",
)
# fmt: on
_WITH_TOPIC = 0.4
_MIN_TOPIC_LETTERS = 5
_QUESTION_TEMPERATURE = 1.0
_MAX_QUESTION_TOKENS = 64
_ANSWER_TEMPERATURES = (0.0, 0.7, 0.0, 1.0, 0.0, 0.5)
_TEXT_TEMPERATURES = (1.0, 0.7, 0.85, 0.6)
LENGTH_TOKENS, _LONG_TOKENS = 256, 1024
_SHORT_PER_LONG = 8  # rounds, the long one included
_MARKS = ("\u2460", "\u2461", "\u2462")  # stand for the messages of a chat


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """Token ids of the template's joints."""

    end_of_turn: int
    user_ended: tuple[int, ...]
    """What follows a user's end of turn, up to the first token of the answer."""
    assistant_ended: tuple[int, ...]
    """What follows an answer's end of turn, up to the first token of the next question."""

    @property
    def has_roles(self) -> bool:
        """Whether questions and answers can be told apart."""
        return self.user_ended != self.assistant_ended

    @property
    def max_question_tokens(self) -> int | None:
        """Tokens that the model asks on its own before it is made to answer; None if it never is."""
        return _MAX_QUESTION_TOKENS if self.has_roles else None


@dataclass(frozen=True, slots=True)
class Text:
    """How one row begins and goes on."""

    opening: tuple[int, ...]
    question_temperature: float
    answer_temperature: float
    """0 is greedy."""


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """How texts of one target begin and go on."""

    chat: ChatTokens
    openings: tuple[tuple[int, ...], ...]
    openings_with_topic: tuple[tuple[int, ...], ...] = ()
    topics: tuple[int, ...] = ()
    """Tokens, each a word by itself, one of which follows an opening of `openings_with_topic`."""

    def length(self, number: int, max_length: int) -> int:
        """Tokens of the rows of round `number`: short ones, for most answers are short, and now and then long ones."""
        is_long = number % _SHORT_PER_LONG == _SHORT_PER_LONG - 1
        return min(_LONG_TOKENS if is_long else LENGTH_TOKENS, max_length)

    def draw(self, num_rows: int, seed: int, answer_temperature: float | None = None) -> list[Text]:
        """Texts to write; with answers of all temperatures if none is given."""
        rng = random.Random(seed)
        texts = []
        for i in range(num_rows):
            if self.topics and rng.random() < _WITH_TOPIC:
                opening = (*rng.choice(self.openings_with_topic), rng.choice(self.topics))
            else:
                opening = rng.choice(self.openings)
            if self.chat.has_roles:
                temperatures = _QUESTION_TEMPERATURE, _ANSWER_TEMPERATURES[i % len(_ANSWER_TEMPERATURES)]
            else:
                temperatures = (_TEXT_TEMPERATURES[i % len(_TEXT_TEMPERATURES)],) * 2
            if answer_temperature is not None:
                temperatures = temperatures[0], answer_temperature
            texts.append(Text(opening, *temperatures))
        return texts

    def is_answer(self, rows: Rows) -> NDArray[np.bool_]:
        """[N, T] of rows [N, T]: whether what follows is part of an answer; all if there are no roles."""
        if not self.chat.has_roles:
            return np.ones(rows.shape, np.bool_)
        joint = (self.chat.end_of_turn, *self.chat.user_ended)
        length = rows.shape[1]
        begins = np.zeros(rows.shape, np.bool_)
        if length >= len(joint):
            begins[:, len(joint) - 1 :] = True
            for i, token in enumerate(joint):
                begins[:, len(joint) - 1 :] &= rows[:, i : length - len(joint) + 1 + i] == token
        # What came last, by position: an answer's beginning or the end of a turn.
        index = np.arange(1, length + 1)
        last_begin = np.maximum.accumulate(np.where(begins, index, 0), axis=1)
        last_end = np.maximum.accumulate(np.where(rows == self.chat.end_of_turn, index, 0), axis=1)
        answers: NDArray[np.bool_] = last_begin > last_end
        return answers


class Author(Protocol):
    """A target that writes."""

    def write(self, texts: Sequence[Text], length: int, seed: int) -> Rows:
        """Rows [N, length] that begin as `texts` say."""


def plan_chats(template: ChatTemplate, tokenizer: Tokenizer) -> ChatPlan:
    """How the target begins a text and takes turns, read off its template.

    Raises:
        InvalidRequest: a model with neither a template that ends turns by a token, nor a token that begins texts.
    """
    if template.source is not None:
        plan = _read_template(template, tokenizer)
        if plan is not None:
            return plan
    begin = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    end = tokenizer.eos_id if tokenizer.eos_id is not None else tokenizer.bos_id
    if begin is None or end is None:
        raise InvalidRequest(
            "the target has no token that begins or ends a text, so it can't write one by itself",
            param="corpus",
            hint="give a text with --corpus FILE",
        )
    again = (begin,) if tokenizer.add_bos else ()
    return ChatPlan(ChatTokens(end, again, again), ((begin,),))


def _read_template(template: ChatTemplate, tokenizer: Tokenizer) -> ChatPlan | None:
    """None for a template whose turns don't both end by the same token that ends generation."""
    question, answer, next_question = _MARKS
    chat = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": next_question},
    ]
    try:
        systems = [template.render([{"role": "system", "content": system}, *chat]) for system in _SYSTEMS]
        beginnings = [template.render(chat)] * len(systems) + systems  # most people leave it as it is
    except InvalidRequest:  # templates may refuse a system message
        beginnings = [template.render(chat)]
    joints = []
    for before, after in ((question, answer), (answer, next_question)):
        text = beginnings[0].partition(before)[2].partition(after)[0]
        joints.append(tokenizer.encode(text, add_special=False))
    if not all(joints) or joints[0][0] != joints[1][0] or joints[0][0] not in tokenizer.end_ids:
        return None
    tokens = ChatTokens(joints[0][0], tuple(joints[0][1:]), tuple(joints[1][1:]))
    heads = [text.partition(question)[0] for text in beginnings]

    def openings(starts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        spelled = {
            text: tuple(tokenizer.encode(text, add_special=False)) for text in {h + s for h in heads for s in starts}
        }
        return tuple(spelled[head + start] for head in heads for start in starts)

    return ChatPlan(tokens, openings(_STARTS), openings(_STARTS_WITH_TOPIC), _topics(tokenizer))


def _topics(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that are a space and a common word: vocabularies of merges begin with the most frequent ones."""
    texts = ((i, tokenizer.decode([i], continuation=True)) for i in range(tokenizer.vocab_size))
    words = [i for i, text in texts if text[:1] == " " and text[1:].isalpha() and len(text) > _MIN_TOPIC_LETTERS]
    return tuple(words[: len(words) // 2])


class Turns:
    """Who speaks in a row, and what the template still has to say."""

    def __init__(self, chat: ChatTokens) -> None:
        self._chat = chat
        self._pending: list[int] = []
        self._is_answer = False

    def feed(self, token: int) -> None:
        """The row goes on by `token`."""
        if self._pending:
            self._pending.pop(0)
        elif token == self._chat.end_of_turn:
            self._pending = list(self._chat.assistant_ended if self._is_answer else self._chat.user_ended)
            self._is_answer = not self._is_answer

    @property
    def is_answer(self) -> bool:
        """Whether the target answers, rather than asks."""
        return self._is_answer

    def take_joint(self) -> list[int]:
        """What the template says before anyone speaks again."""
        pending, self._pending = self._pending, []
        return pending


class EngineAuthor:
    """Writes with Realm's own engine: all rows in one continuous batch."""

    def __init__(self, model: Model, chat: ChatTokens) -> None:
        self._model = model
        self._chat = chat

    def write(self, texts: Sequence[Text], length: int, seed: int) -> Rows:
        """See `Author`."""
        rows = [list(text.opening) for text in texts]
        turns = [Turns(self._chat) for _ in rows]
        limit = self._model.limits.max_requests
        waiting, running = list(range(len(rows))), dict[Future[Completion], int]()
        while waiting or running:
            while waiting and len(running) < limit:
                index = waiting.pop(0)
                row, text = rows[index], texts[index]
                row += turns[index].take_joint()
                if len(row) < length:
                    running[self._go_on(row, length, text, turns[index], f"{seed}/{index}/{len(row)}")] = index
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index = running.pop(future)
                completion = future.result()
                rows[index] += completion.token_ids
                if completion.finish_reason is FinishReason.STOP or not turns[index].is_answer:
                    rows[index].append(self._chat.end_of_turn)
                    turns[index].feed(self._chat.end_of_turn)
                if len(rows[index]) < length:
                    waiting.append(index)
        return np.array([row[:length] for row in rows], np.int32)

    def _go_on(self, row: list[int], length: int, text: Text, turns: Turns, key: str) -> Future[Completion]:
        max_tokens = length - len(row)
        if not turns.is_answer:
            max_tokens = min(max_tokens, self._chat.max_question_tokens or max_tokens)
        return self._model.submit(
            row,
            max_tokens=max_tokens,
            temperature=text.answer_temperature if turns.is_answer else text.question_temperature,
            min_p=MIN_P,
            seed=random.Random(key).randrange(MAX_SEED),
        )


def encode_corpus(text: str, tokenizer: Tokenizer) -> Int32Array:
    """[T] token ids of a text; chats in it are best spelled by the model's template.

    Raises:
        InvalidRequest: there is nothing in it.
    """
    ids: list[int] = []
    for part in _pieces(text):
        ids += tokenizer.encode(part, add_special=False)
    if not ids:
        raise InvalidRequest("the corpus is empty", param="corpus")
    return np.array(ids, np.int32)


def _pieces(text: str, num_chars: int = 1 << 16) -> Iterator[str]:
    """`text` cut after line ends, into pieces that a tokenizer is quick with."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin + num_chars) + 1 or len(text)
        yield text[begin:end]
        begin = end

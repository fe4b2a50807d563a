"""Text that a target writes by itself: chats sampled from its template alone (Magpie, arXiv 2406.08464).

A model that was trained on chats continues the opening of a user's turn with a question, and then answers it. Models
without a template continue from the beginning of a text. Needs no torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import count
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
_SYSTEM = "You are a helpful assistant."
# fmt: off
_STARTS = (
    "What", "How", "Write", "Can", "Please", "Explain", "Why", "Tell me", "I", "Describe", "Give me", "Create", "The",
    "Is", "Summarize", "List", "Who", "In",
)
# fmt: on
_TEMPERATURES = (1.0, 0.7, 0.85, 0.6)
_LENGTH_TOKENS, _LONG_TOKENS = 384, 1024
_SHORT_PER_LONG = 5  # rounds, the long one included
_MARKS = ("\u2460", "\u2461", "\u2462")  # stand for the messages of a chat


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """Token ids of the template's joints."""

    end_of_turn: int
    user_ended: tuple[int, ...]
    """What follows a user's end of turn, up to the first token of the answer."""
    assistant_ended: tuple[int, ...]
    """What follows an answer's end of turn, up to the first token of the next question."""


@dataclass(frozen=True, slots=True)
class Round:
    """Rows to write that begin alike."""

    opening: tuple[int, ...]
    length: int
    """Tokens of a row, opening included."""
    temperature: float


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """How texts of one target begin and go on."""

    chat: ChatTokens
    openings: tuple[tuple[int, ...], ...]

    def rounds(self, max_length: int) -> Iterator[Round]:
        """Without end; rows have at most `max_length` tokens."""
        for i in count():
            length = _LONG_TOKENS if i % _SHORT_PER_LONG == _SHORT_PER_LONG - 1 else _LENGTH_TOKENS
            opening = self.openings[i % len(self.openings)]
            yield Round(opening, min(length, max_length), _TEMPERATURES[i % len(_TEMPERATURES)])


class Author(Protocol):
    """A target that writes."""

    def write(self, opening: Sequence[int], forced: Rows, length: int, temperature: float, seed: int) -> Rows:
        """Rows [N, length] that begin with `opening` and then `forced` [N, F]; `temperature` 0 is greedy."""


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
        beginnings = [template.render(chat), template.render([{"role": "system", "content": _SYSTEM}, *chat])]
    except InvalidRequest:  # templates may refuse a system message
        beginnings = [template.render(chat)]
    joints = []
    for before, after in ((question, answer), (answer, next_question)):
        text = beginnings[0].partition(before)[2].partition(after)[0]
        joints.append(tokenizer.encode(text, add_special=False))
    if not all(joints) or joints[0][0] != joints[1][0] or joints[0][0] not in tokenizer.end_ids:
        return None
    tokens = ChatTokens(joints[0][0], tuple(joints[0][1:]), tuple(joints[1][1:]))
    # Two in three say how the question begins: otherwise models ask much the same again and again.
    starts = [start for i in range(0, len(_STARTS), 2) for start in ("", *_STARTS[i : i + 2])]
    texts = [text.partition(question)[0] + start for start in starts for text in beginnings]
    return ChatPlan(tokens, tuple(tuple(tokenizer.encode(text, add_special=False)) for text in texts))


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

    def take_joint(self) -> list[int]:
        """What the template says before anyone speaks again."""
        pending, self._pending = self._pending, []
        return pending


class EngineAuthor:
    """Writes with Realm's own engine: all rows in one continuous batch."""

    def __init__(self, model: Model, chat: ChatTokens) -> None:
        self._model = model
        self._chat = chat

    def write(self, opening: Sequence[int], forced: Rows, length: int, temperature: float, seed: int) -> Rows:
        """See `Author`."""
        rows = [[*opening, *more] for more in forced.tolist()]
        turns = [Turns(self._chat) for _ in rows]
        for turn, more in zip(turns, forced.tolist(), strict=True):
            for token in more:
                turn.feed(token)
        limit = self._model.limits.max_requests
        waiting, running = list(range(len(rows))), dict[Future[Completion], int]()
        while waiting or running:
            while waiting and len(running) < limit:
                index = waiting.pop(0)
                row = rows[index]
                row += turns[index].take_joint()
                if len(row) < length:
                    running[self._go_on(row, length, temperature, f"{seed}/{index}/{len(row)}")] = index
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index = running.pop(future)
                completion = future.result()
                rows[index] += completion.token_ids
                if completion.finish_reason is FinishReason.STOP:
                    rows[index].append(self._chat.end_of_turn)
                    turns[index].feed(self._chat.end_of_turn)
                if len(rows[index]) < length:
                    waiting.append(index)
        return np.array([row[:length] for row in rows], np.int32)

    def _go_on(self, row: list[int], length: int, temperature: float, key: str) -> Future[Completion]:
        return self._model.submit(
            row,
            max_tokens=length - len(row),
            temperature=temperature,
            min_p=MIN_P,
            seed=random.Random(key).randrange(MAX_SEED),
        )


def no_tokens(num_rows: int) -> Rows:
    """`forced` for rows that have only their opening."""
    return np.zeros((num_rows, 0), np.int32)


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

"""The target writing its text in torch: many rows at once, for devices where that is quicker than the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from realm.distill.chats import LENGTH_TOKENS, MIN_P, ChatTokens, Rows, Text
from realm.distill.fused import Replayed, fused
from realm.distill.lessons import NUM_LIKELIEST, as_answers, likeliest
from realm.distill.sequence_ops import DenseCache
from realm.distill.student import TorchModel
from realm.models.config import ModelSpec

_GREEDY = 1e-4  # a temperature at which nothing but the likeliest token is within MIN_P
_MAX_ROWS_AT_ONCE = 8192
_SEEN_AT_ONCE = 64  # a step attends over this many tokens more than it must, at most


def rows_at_once(spec: ModelSpec, memory_bytes: int) -> int:
    """Short texts to write side by side on a GPU with this much memory: keys and values (2 bytes) take two thirds."""
    row_bytes = LENGTH_TOKENS * spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim * 2
    fitting = max(1, memory_bytes * 2 // 3 // row_bytes)
    power_of_two = 1 << (fitting.bit_length() - 1)  # so that similar GPUs write the same
    return min(_MAX_ROWS_AT_ONCE, power_of_two)


class TorchAuthor:
    """`chats.Author` in torch. On CUDA a step is captured as a graph and replayed."""

    def __init__(self, model: TorchModel, chat: ChatTokens, device: torch.device) -> None:
        self._model = model
        self._chat = chat
        self._device = device

    def write(self, texts: Sequence[Text], length: int, seed: int) -> Rows:
        """See `Author`."""
        return self._write(texts, length, seed, lambda _, __: None)

    def write_and_tell(
        self, texts: Sequence[Text], length: int, seed: int, vocabulary: Tensor | None
    ) -> tuple[Rows, NDArray[np.void]]:
        """Rows [N, length], and what `lessons.ask` would say of them with the tokens of `vocabulary` [V] only."""
        num_tokens = self._model.spec.vocab_size if vocabulary is None else len(vocabulary)
        shape = len(texts), length, min(NUM_LIKELIEST, num_tokens)
        ids = torch.empty(shape, dtype=torch.int32, device=self._device)
        probabilities = torch.empty(shape, dtype=torch.float16, device=self._device)

        def tell(position: Tensor, logits: Tensor) -> None:
            asked = likeliest(logits if vocabulary is None else logits.index_select(1, vocabulary))
            for kept, new in zip((ids, probabilities), asked, strict=True):
                kept.index_copy_(1, position, new[:, None].to(kept.dtype))

        rows = self._write(texts, length, seed, tell)
        return rows, as_answers(ids, probabilities, num_tokens)

    @torch.no_grad()
    def _write(self, texts: Sequence[Text], length: int, seed: int, hear: Callable[[Tensor, Tensor], None]) -> Rows:
        device, num_rows = self._device, len(texts)
        torch.manual_seed(seed)
        cache = DenseCache(num_rows, length)
        turns = _Turns(self._chat, texts, device)
        sizes = [min(len(text.opening), length) for text in texts]
        openings = np.zeros((num_rows, max(sizes)), np.int64)
        for opening, size, text in zip(openings, sizes, texts, strict=True):
            opening[:size] = text.opening[:size]
        given, num_given = torch.from_numpy(openings).to(device), torch.tensor(sizes, device=device)
        rows = torch.empty((num_rows, length), dtype=torch.long, device=device)
        token, position = given[:, 0].clone(), torch.zeros(1, dtype=torch.long, device=device)

        def one() -> None:
            rows.index_copy_(1, position, token[:, None])
            logits = self._model.step(token, position, cache)
            hear(position, logits)
            position.add_(1)
            said = turns.choose(_sample(logits, turns.temperature), num_given <= position)
            opening = given.index_select(1, position.clamp(max=given.shape[1] - 1))[:, 0]
            token.copy_(torch.where(num_given > position, opening, said))

        for begin in range(0, length, _SEEN_AT_ONCE):
            end = cache.num_seen = min(length, begin + _SEEN_AT_ONCE)
            step = Replayed(one, device)
            for _ in range(begin, end):
                step()
        return rows.to(torch.int32).cpu().numpy()


class _Turns:
    """`chats.Turns` for all rows together. State 0 speaks freely; every other one says one token of a joint."""

    def __init__(self, chat: ChatTokens, texts: Sequence[Text], device: torch.device) -> None:
        said, following, entries = [0], [0], []
        for joint in (chat.user_ended, chat.assistant_ended):
            entries.append(len(said) if joint else 0)
            said += joint
            following += [len(following) + 1 + i for i in range(len(joint) - 1)] + ([0] if joint else [])
        self._end_of_turn = chat.end_of_turn
        self._said = torch.tensor(said, device=device)
        self._following = torch.tensor(following, device=device)
        self._entries = torch.tensor(entries, device=device)
        self._state = torch.zeros(len(texts), dtype=torch.long, device=device)
        self._speaker = torch.zeros(len(texts), dtype=torch.long, device=device)  # 0: the user
        self._num_asked = torch.zeros(len(texts), dtype=torch.long, device=device)  # tokens of this question
        self._limit = chat.max_question_tokens
        by_speaker = [(text.question_temperature, text.answer_temperature) for text in texts]
        self._temperatures = torch.tensor(by_speaker, device=device)
        self.temperature = self._temperatures[:, 0].clone()
        """[B] of who speaks next; kept in place."""

    def choose(self, sampled: Tensor, speaking: Tensor | None = None) -> Tensor:
        """The rows' next tokens: `sampled` where someone speaks. Rows that aren't `speaking` [B] stay as they are."""
        asking = (self._state == 0) & (self._speaker == 0)
        if self._limit is not None:
            sampled = sampled.masked_fill(asking & (self._num_asked >= self._limit), self._end_of_turn)
        token = torch.where(self._state > 0, self._said[self._state], sampled)
        ended = (self._state == 0) & (token == self._end_of_turn)
        num_asked = (self._num_asked + 1).masked_fill(~asking | ended, 0)
        state = torch.where(ended, self._entries[self._speaker], self._following[self._state])
        speaker = torch.where(ended, 1 - self._speaker, self._speaker)
        if speaking is not None:
            state, speaker = torch.where(speaking, state, self._state), torch.where(speaking, speaker, self._speaker)
            num_asked = torch.where(speaking, num_asked, self._num_asked)
        self._state.copy_(state)
        self._speaker.copy_(speaker)
        self._num_asked.copy_(num_asked)
        self.temperature.copy_(self._temperatures.gather(1, speaker[:, None])[:, 0])
        return token


@fused
def _sample(logits: Tensor, temperature: Tensor) -> Tensor:
    """Token ids [B]: exponential race over logits [B, V] at a temperature [B] each."""
    scaled = logits.float() / temperature.clamp(min=_GREEDY)[:, None]
    keep = scaled >= scaled.amax(-1, keepdim=True) + math.log(MIN_P)
    race = scaled - torch.log(-torch.log(torch.rand_like(scaled)))
    return race.masked_fill(~keep, -torch.inf).argmax(-1)

"""The target writing its text in torch: many rows at once, for devices where that is quicker than the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from realm.distill.chats import MIN_P, ChatTokens, Rows
from realm.distill.sequence_ops import DenseCache
from realm.distill.student import TorchModel


class TorchAuthor:
    """`chats.Author` in torch. On CUDA a step is captured once as a graph and replayed."""

    def __init__(self, model: TorchModel, chat: ChatTokens, device: torch.device) -> None:
        self._model = model
        self._chat = chat
        self._device = device

    @torch.no_grad()
    def write(self, opening: Sequence[int], forced: Rows, length: int, temperature: float, seed: int) -> Rows:
        """See `Author`."""
        device, num_rows = self._device, len(forced)
        torch.manual_seed(seed)
        cache = DenseCache(num_rows, length)
        turns = _Turns(self._chat, num_rows, device)
        begin = torch.tensor(opening, device=device).expand(num_rows, -1)
        given = torch.cat([begin, torch.from_numpy(forced).to(device, torch.long)], dim=1)
        ids = given[:, :1].clone()
        position = torch.zeros(1, dtype=torch.long, device=device)
        sampled = torch.zeros(num_rows, dtype=torch.long, device=device)

        def one() -> None:
            sampled.copy_(_sample(self._model.step(ids, position, cache), temperature))

        replay = _captured(one) if device.type == "cuda" else one
        rows = torch.empty((num_rows, length), dtype=torch.int32, device=device)
        for i in range(length):
            if i < given.shape[1]:
                token = given[:, i]
                if i >= len(opening):
                    turns.feed(token)
            else:
                token = turns.choose(sampled)
            rows[:, i] = token
            ids.copy_(token[:, None])
            position.fill_(i)
            replay()
        return rows.cpu().numpy()


class _Turns:
    """`chats.Turns` for all rows together. State 0 speaks freely; every other one says one token of a joint."""

    def __init__(self, chat: ChatTokens, num_rows: int, device: torch.device) -> None:
        said, following, entries = [0], [0], []
        for joint in (chat.user_ended, chat.assistant_ended):
            entries.append(len(said) if joint else 0)
            said += joint
            following += [len(following) + 1 + i for i in range(len(joint) - 1)] + ([0] if joint else [])
        self._end_of_turn = chat.end_of_turn
        self._said = torch.tensor(said, device=device)
        self._following = torch.tensor(following, device=device)
        self._entries = torch.tensor(entries, device=device)
        self._state = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._speaker = torch.zeros(num_rows, dtype=torch.long, device=device)  # 0: the user

    def choose(self, sampled: Tensor) -> Tensor:
        """The rows' next tokens: `sampled` where someone speaks."""
        token = torch.where(self._state > 0, self._said[self._state], sampled)
        self.feed(token)
        return token

    def feed(self, token: Tensor) -> None:
        """The rows go on by `token`."""
        ended = (self._state == 0) & (token == self._end_of_turn)
        self._state = torch.where(ended, self._entries[self._speaker], self._following[self._state])
        self._speaker = torch.where(ended, 1 - self._speaker, self._speaker)


def _sample(logits: Tensor, temperature: float) -> Tensor:
    """Token ids [B]: exponential race over logits [B, V]."""
    if temperature == 0.0:
        return logits.argmax(-1)
    scaled = logits.float() / temperature
    keep = scaled >= scaled.amax(-1, keepdim=True) + math.log(MIN_P)
    noise = torch.empty_like(scaled).exponential_().log()
    return (scaled - noise).masked_fill(~keep, -torch.inf).argmax(-1)


def _captured(function: Callable[[], None]) -> Callable[[], None]:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay

"""Text to distil on that the target writes: chats sampled from the template alone (Magpie, arXiv 2406.08464)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from realm.distill.sequence_ops import DenseCache

StepFunction = Callable[[Tensor, Tensor, DenseCache], Tensor]
"""(token ids [B, 1], positions [1], cache) -> logits [B, V] of the next token."""


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """Token ids of the template's joints."""

    end_of_turn: int
    user_ended: tuple[int, ...]
    """What follows a user's end of turn, up to the first token of the answer."""
    assistant_ended: tuple[int, ...]
    """What follows an answer's end of turn, up to the first token of the next question."""


class _TurnMachine:
    """Per row: forces the template's joint after each end of turn. State 0 samples freely; others force one token."""

    def __init__(self, chat: ChatTokens, batch_size: int, device: torch.device) -> None:
        first_assistant = 1 + len(chat.user_ended)
        forced = [0, *chat.user_ended, *chat.assistant_ended]
        following = [0, *range(2, first_assistant), 0, *range(first_assistant + 1, len(forced)), 0]
        self.end_of_turn = chat.end_of_turn
        self.forced = torch.tensor(forced, device=device)
        self.following = torch.tensor(following, device=device)
        self.entries = torch.tensor([1, first_assistant], device=device)
        self.state = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.role = torch.zeros(batch_size, dtype=torch.long, device=device)  # 0: the user is speaking

    def reset(self) -> None:
        self.state.zero_()
        self.role.zero_()

    def apply(self, sampled: Tensor) -> Tensor:
        token = torch.where(self.state > 0, self.forced[self.state], sampled)
        ended = (self.state == 0) & (token == self.end_of_turn)
        self.state.copy_(torch.where(ended, self.entries[self.role], self.following[self.state]))
        self.role.copy_(torch.where(ended, 1 - self.role, self.role))
        return token


def _sample(logits: Tensor, temperature: float, min_p: float) -> Tensor:
    """Token ids [B]: exponential race over logits [B, V], tokens under `min_p` of the likeliest removed."""
    if temperature == 0.0:
        return logits.argmax(-1)
    scaled = logits.float() / temperature
    keep = scaled >= scaled.amax(-1, keepdim=True) + math.log(min_p)
    noise = torch.empty_like(scaled).exponential_().log()
    return (scaled - noise).masked_fill(~keep, -torch.inf).argmax(-1)


def write_chats(
    step: StepFunction,
    chat: ChatTokens,
    prefix: Sequence[int],
    *,
    batch_size: int,
    length: int,
    temperature: float,
    min_p: float = 0.05,
    device: torch.device,
) -> Tensor:
    """Sample `batch_size` chats of `length` tokens that all begin with `prefix`: [B, length] int32 on the CPU.

    On CUDA the step is captured once as a graph and replayed.
    """
    cache = DenseCache(batch_size, length)
    machine = _TurnMachine(chat, batch_size, device)
    ids = torch.full((batch_size, 1), prefix[0], dtype=torch.long, device=device)
    position = torch.zeros(1, dtype=torch.long, device=device)
    sampled = torch.zeros(batch_size, dtype=torch.long, device=device)

    def one() -> None:
        sampled.copy_(_sample(step(ids, position, cache), temperature, min_p))

    replay = _captured(one) if device.type == "cuda" else one
    rows = torch.empty((batch_size, length), dtype=torch.int32, device=device)
    for i in range(length):
        token = torch.full_like(sampled, prefix[i]) if i < len(prefix) else machine.apply(sampled)
        rows[:, i] = token
        ids.copy_(token[:, None])
        position.fill_(i)
        replay()
    return rows.cpu()


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

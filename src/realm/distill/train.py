"""Distilling a draft: minimise KL(target || draft) over text that the target wrote."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from realm.distill.chats import Rows

Forward = Callable[[Tensor], Tensor]
"""token ids [B, T] -> logits [B, T, V]."""
_REPORT_STEPS = 10
_EVALUATED_ROWS = 16  # at a time


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """AdamW with linear warm-up and cosine decay to a tenth."""

    num_steps: int
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    greedy_weight: float = 0.2
    """Share of the loss that is cross-entropy with the target's likeliest token."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of the training loop."""

    step: int
    loss: float
    agreement: float
    """Share of positions where draft and target have the same likeliest token."""


class Distillation:
    """Trains the tensors of `trainable` in place, a batch a step; can be stopped between two and gone on with.

    Args:
        target: Gives logits [B, T, V] over the tokens that the draft can propose, and no others.
        draft: Likewise, by `trainable`.
        trainable: What to train, by name.
        batches: Token ids [B, T] each, in an order that is drawn anew each time round.
        config: How.
    """

    def __init__(
        self,
        target: Forward,
        draft: Forward,
        trainable: dict[str, Tensor],
        batches: Sequence[Tensor],
        config: TrainConfig,
    ) -> None:
        self._target = target
        self._draft = draft
        self._trainable = trainable
        self._batches = batches
        self._config = config
        self._optimizer = torch.optim.AdamW(
            trainable.values(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )
        self._step = 0

    def run(self) -> Iterator[Progress]:
        """Train to the end; reports now and then."""
        num_steps = self._config.num_steps
        while self._step < num_steps:
            loss, agreement = self._train(self._batch(self._step))
            self._step += 1
            if self._step % _REPORT_STEPS == 0 or self._step == num_steps:
                yield Progress(self._step, loss.item(), agreement.item())

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on from here."""
        return {"step": self._step, "tensors": self._trainable, "optimizer": self._optimizer.state_dict()}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken, with the same batches and configuration."""
        self._step = state["step"]
        for name, values in state["tensors"].items():
            self._trainable[name].copy_(values)
        self._optimizer.load_state_dict(state["optimizer"])

    def _batch(self, step: int) -> Tensor:
        turn, index = divmod(step, len(self._batches))
        generator = torch.Generator().manual_seed(self._config.seed * 1_000_003 + turn)
        order = torch.randperm(len(self._batches), generator=generator)
        return self._batches[int(order[index])]

    def _train(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        config = self._config
        device = next(iter(self._trainable.values())).device
        ids = batch.to(device, torch.long)
        with torch.no_grad():
            wanted = self._target(ids)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            got = self._draft(ids)
        loss, agreement = _loss(wanted, got, config.greedy_weight)
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate(self._step, config)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._trainable.values(), 1.0)
        self._optimizer.step()
        return loss, agreement


def _rate(step: int, config: TrainConfig) -> float:
    warmup = min(config.warmup_steps, max(1, config.num_steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.num_steps - warmup)))


def _loss(wanted: Tensor, got: Tensor, greedy_weight: float) -> tuple[Tensor, Tensor]:
    likeliest = wanted.argmax(-1)
    log_draft = F.log_softmax(got.float(), dim=-1)
    soft = -(F.softmax(wanted.float(), dim=-1) * log_draft).sum(-1).mean()
    hard = F.nll_loss(log_draft.flatten(0, 1), likeliest.flatten())
    agreement = (got.argmax(-1) == likeliest).float().mean()
    return (1 - greedy_weight) * soft + greedy_weight * hard, agreement


@torch.no_grad()
def tokens_per_verification(
    draft: Forward, rows: Rows, num_prompt: int, vocabulary: Tensor | None, lengths: Sequence[int], device: torch.device
) -> dict[int, float]:
    """Mean tokens that one verification of a draft gives on the target's own greedy text, by length of the draft.

    There a draft is accepted exactly as far as the draft model, given the text, agrees with it.

    Args:
        draft: Gives logits [B, T, V_draft].
        rows: [N, T] greedy text.
        num_prompt: Tokens at the beginning of each row that don't count.
        vocabulary: [V_draft] the target's ids of the draft's logits; None if they are the same.
        lengths: Lengths of drafts.
        device: Where `draft` computes.
    """
    agreeing: list[list[bool]] = []
    for begin in range(0, len(rows), _EVALUATED_ROWS):
        ids = torch.from_numpy(rows[begin : begin + _EVALUATED_ROWS]).to(device, torch.long)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            proposed = draft(ids).argmax(-1)
        proposed = proposed if vocabulary is None else vocabulary[proposed]
        agreeing += (proposed[:, :-1] == ids[:, 1:])[:, num_prompt - 1 :].tolist()
    return {length: _mean_run(agreeing, length) for length in lengths}


def _mean_run(agreeing: list[list[bool]], draft_length: int) -> float:
    num_tokens, num_rounds = 0, 0
    for same in agreeing:
        position = 0
        while position < len(same) - draft_length:
            run = 0
            while run < draft_length and same[position + run]:
                run += 1
            num_tokens, num_rounds = num_tokens + run + 1, num_rounds + 1
            position += run + 1
    return num_tokens / max(1, num_rounds)

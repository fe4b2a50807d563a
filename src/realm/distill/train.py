"""Distilling a draft: minimise KL(target || draft) over text that the target wrote."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Forward = Callable[[Tensor], Tensor]
"""token ids [B, T] -> logits [B, T, V]."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """AdamW with linear warm-up and cosine decay to a tenth."""

    epochs: int = 2
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    greedy_weight: float = 0.2
    """Share of the loss that is cross-entropy with the target's likeliest token."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of the training loop."""

    step: int
    num_steps: int
    loss: float
    agreement: float
    """Share of positions where draft and target have the same likeliest token."""


def distil(
    target: Forward, draft: Forward, trainable: list[Tensor], batches: Sequence[Tensor], config: TrainConfig
) -> Iterator[Progress]:
    """Train the tensors of `trainable` in place; reports now and then.

    Args:
        target: gives logits [B, T, V] over the tokens that the draft can propose, and no others.
        batches: token ids [B, T] each; one optimiser step a batch, shuffled anew each epoch.
    """
    optimizer = torch.optim.AdamW(
        trainable, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
    )
    num_steps = config.epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _rate(i, num_steps, config.warmup_steps))
    generator = torch.Generator().manual_seed(0)
    device = trainable[0].device
    step = 0
    for _ in range(config.epochs):
        for index in torch.randperm(len(batches), generator=generator).tolist():
            ids = batches[index].to(device, torch.long)
            with torch.no_grad():
                wanted = target(ids)
            with torch.autocast(device.type, torch.bfloat16):
                got = draft(ids)
            loss, agreement = _loss(wanted, got, config.greedy_weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if step % 50 == 0 or step == num_steps:
                yield Progress(step, num_steps, loss.item(), agreement.item())


def _rate(step: int, num_steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def _loss(wanted: Tensor, got: Tensor, greedy_weight: float) -> tuple[Tensor, Tensor]:
    likeliest = wanted.argmax(-1)
    log_draft = F.log_softmax(got.float(), dim=-1)
    soft = -(F.softmax(wanted.float(), dim=-1) * log_draft).sum(-1).mean()
    hard = F.nll_loss(log_draft.flatten(0, 1), likeliest.flatten())
    agreement = (got.argmax(-1) == likeliest).float().mean()
    return (1 - greedy_weight) * soft + greedy_weight * hard, agreement


def tokens_per_step(
    target: Forward, draft: Forward, rows: Tensor, vocabulary: Tensor | None, draft_k: int, device: torch.device
) -> float:
    """Mean tokens that one verification of `draft_k` greedy draft tokens gives on greedy text `rows` [N, T].

    On the target's own greedy text a draft of k tokens is accepted exactly as far as teacher-forced agreement runs.
    """
    total, rounds = 0, 0
    for chunk in torch.split(rows, 16):
        ids = chunk.to(device, torch.long)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            proposed = draft(ids).argmax(-1)
            wanted = target(ids).argmax(-1)
        if vocabulary is not None:
            proposed = vocabulary[proposed]
        for same in (proposed == wanted).tolist():
            position = len(same) // 4
            while position < len(same) - draft_k - 1:
                run = 0
                while run < draft_k and same[position + 1 + run]:
                    run += 1
                total, rounds = total + run + 1, rounds + 1
                position += run + 1
    return total / max(1, rounds)

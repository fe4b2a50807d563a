"""Distilling a draft: minimise KL(target || draft) over the answers in text that the target wrote."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from realm.distill.chats import Rows
from realm.distill.fused import Replayed, fused
from realm.distill.lessons import Forward, Lesson
from realm.distill.optimizer import Muon

_REPORT_STEPS = 10
_NOT_MATRICES = 0.25  # of the learning rate; and the head's, each of whose rows stands for itself
_EVALUATED_ROWS = 16  # at a time
_STEPS_BEFORE_CAPTURE = 3


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Linear warm-up, then linear decay to nothing."""

    num_steps: int
    learning_rate: float
    warmup_steps: int = 100
    weight_decay: float = 0.01
    greedy_weight: float = 0.6
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
    """Trains tensors in place, a batch a step; can be stopped between two and gone on with.

    Args:
        draft: Gives logits [B, T, V_draft].
        trainable: What to train, by name.
        by_rows: Names of matrices that are learned row by row: heads.
        lessons: Batches, in an order that is drawn anew each time round.
        config: How.
    """

    def __init__(
        self,
        draft: Forward,
        trainable: Mapping[str, Tensor],
        by_rows: Collection[str],
        lessons: Sequence[Lesson],
        config: TrainConfig,
    ) -> None:
        self._draft = draft
        self._trainable = trainable
        self._lessons = lessons
        self._config = config
        whole = [t for name, t in trainable.items() if t.dim() == 2 and name not in by_rows]
        others = [t for name, t in trainable.items() if t.dim() != 2 or name in by_rows]
        decay = config.weight_decay
        device = next(iter(trainable.values())).device
        self._rates = {share: torch.tensor(0.0, device=device) for share in (1.0, _NOT_MATRICES)}
        """Learning rates, by their share of the largest; tensors, so that they can change in a CUDA graph."""
        on_cuda = device.type == "cuda"
        self._optimizers: tuple[torch.optim.Optimizer, ...] = (
            Muon(whole, self._rates[1.0], weight_decay=decay),
            torch.optim.AdamW(
                others, self._rates[_NOT_MATRICES], betas=(0.9, 0.95), weight_decay=decay, capturable=on_cuda
            ),
        )
        self._device = device
        self._by_shape: dict[torch.Size, tuple[Lesson, Replayed]] = {}
        self._step = 0

    def run(self) -> Iterator[Progress]:
        """Train to the end; reports now and then."""
        num_steps = self._config.num_steps
        while self._step < num_steps:
            loss, agreement = self._train(self._lesson(self._step))
            self._step += 1
            if self._step % _REPORT_STEPS == 0 or self._step == num_steps:
                yield Progress(self._step, loss.item(), agreement.item())

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on from here."""
        optimizers = [optimizer.state_dict() for optimizer in self._optimizers]
        return {"step": self._step, "tensors": dict(self._trainable), "optimizers": optimizers}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken, with the same lessons and configuration."""
        self._step = state["step"]
        for name, values in state["tensors"].items():
            self._trainable[name].copy_(values)
        for optimizer, rate, kept in zip(self._optimizers, self._rates.values(), state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
            for group in optimizer.param_groups:
                group["lr"] = rate
        self._by_shape.clear()

    def _lesson(self, step: int) -> Lesson:
        turn, index = divmod(step, len(self._lessons))
        generator = torch.Generator().manual_seed(self._config.seed * 1_000_003 + turn)
        order = torch.randperm(len(self._lessons), generator=generator)
        return self._lessons[int(order[index])]

    def _train(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        for share, rate in self._rates.items():
            rate.fill_(share * self._config.learning_rate * _rate(self._step, self._config))
        new = lesson.to(self._device)
        shape = new.token_ids.shape
        if shape not in self._by_shape:
            self._by_shape[shape] = new, Replayed(lambda: self._learn(new), self._device, _STEPS_BEFORE_CAPTURE)
        here, learn = self._by_shape[shape]
        if here is not new:
            here.fill(new)
        result: tuple[Tensor, Tensor] = learn()
        return result

    def _learn(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        loss, agreement = _loss(lesson, self._draft(lesson.token_ids), self._config.greedy_weight)
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._trainable.values(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        return loss.detach(), agreement


def _rate(step: int, config: TrainConfig) -> float:
    warmup = min(config.warmup_steps, max(1, config.num_steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return 1 - (step - warmup) / max(1, config.num_steps - warmup)


def _loss(lesson: Lesson, got: Tensor, greedy_weight: float) -> tuple[Tensor, Tensor]:
    soft, hard, best = _judged(got, lesson.likeliest, lesson.probabilities)
    num = lesson.counts.sum().clamp(min=1)
    loss = (((1 - greedy_weight) * soft + greedy_weight * hard) * lesson.counts).sum() / num
    agrees = (best == lesson.likeliest[..., 0]) & lesson.counts
    return loss, agrees.sum() / num


@fused
def _judged(got: Tensor, likeliest: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropies [B, T] of logits [B, T, V] with `probabilities` and with the likeliest token, and theirs."""
    chosen = got.gather(-1, likeliest).float()  # [B, T, K]
    total = torch.logsumexp(got.float(), dim=-1)
    return total - (probabilities * chosen).sum(-1), total - chosen[..., 0], got.detach().argmax(-1)


@torch.no_grad()
def tokens_per_verification(
    draft: Forward,
    rows: Rows,
    counts: NDArray[np.bool_],
    vocabulary: Tensor | None,
    lengths: Sequence[int],
    device: torch.device,
) -> dict[int, float]:
    """Mean tokens that one verification of a draft gives on the target's own greedy text, by length of the draft.

    There a draft is accepted exactly as far as the draft model, given the text, agrees with it.

    Args:
        draft: Gives logits [B, T, V_draft].
        rows: [N, T] text, greedy where it counts.
        counts: [N, T] whether what follows a position counts.
        vocabulary: [V_draft] the target's ids of the draft's logits; None if they are the same.
        lengths: Lengths of drafts.
        device: Where `draft` computes.
    """
    agreeing: list[list[bool]] = []
    for begin in range(0, len(rows), _EVALUATED_ROWS):
        some = rows[begin : begin + _EVALUATED_ROWS]
        proposed = draft(torch.from_numpy(some).to(device, torch.long)).argmax(-1)
        proposed = proposed if vocabulary is None else vocabulary[proposed]
        same = proposed.cpu().numpy()[:, :-1] == some[:, 1:]
        for row, counting in zip(same, counts[begin:, :-1], strict=False):
            ends = np.flatnonzero(np.diff(counting, prepend=False, append=False))
            agreeing += [row[first:end].tolist() for first, end in ends.reshape(-1, 2)]
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

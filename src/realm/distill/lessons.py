"""What a draft learns from: rows of text, and what the target says of each position, worked out once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from realm.distill.chats import Rows

Forward = Callable[[Tensor], Tensor]
"""token ids [B, T] -> logits [B, T, V]."""

NUM_LIKELIEST = 16
"""Tokens of which a position's probability is kept; they have nearly all of it."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A training batch. K: `NUM_LIKELIEST`, or the whole vocabulary of a small draft."""

    token_ids: Tensor  # [B, T]
    counts: Tensor  # [B, T] bool: whether the draft is to learn what follows
    likeliest: Tensor  # [B, T, K] what the target says may follow, likeliest first, as the draft calls it
    probabilities: Tensor  # [B, T, K] adding up to 1

    def to(self, device: torch.device) -> Lesson:
        """The same on `device`, in the types to compute with."""
        tensors = (self.token_ids, self.counts, self.likeliest, self.probabilities)
        dtypes = (torch.long, torch.bool, torch.long, torch.float32)
        if device.type == "cuda" and not self.token_ids.is_cuda:  # pinned, so that nobody waits for it
            tensors = tuple(t.pin_memory() for t in tensors)  # type: ignore[assignment]
        return Lesson(*(t.to(device, non_blocking=True).to(dtype) for t, dtype in zip(tensors, dtypes, strict=True)))

    def fill(self, other: Lesson) -> None:
        """Take over what `other`, of the same shape, says."""
        self.token_ids.copy_(other.token_ids)
        self.counts.copy_(other.counts)
        self.likeliest.copy_(other.likeliest)
        self.probabilities.copy_(other.probabilities)


@dataclass(frozen=True, slots=True)
class Taught:
    """Rows of one length, and the target's word on them."""

    rows: Rows  # [N, T]
    counts: NDArray[np.bool_]  # [N, T]
    answers: NDArray[np.void]  # [N, T], see `ask`


class Lessons(Sequence[Lesson]):
    """Batches of about `batch_tokens`; rows of one length together, whoever wrote them.

    Args:
        taught: What there is to learn.
        batch_tokens: Tokens of a batch.
        device: Where batches will be used; everything is kept there if it takes no more than a third of its memory.
    """

    def __init__(self, taught: Sequence[Taught], batch_tokens: int, device: torch.device) -> None:
        place = device if _fits(taught, device) else torch.device("cpu")
        self._parts = [[part.to(place) for part in _tensors(some)] for some in taught]
        self._batches: list[list[tuple[int, int]]] = []
        by_length: dict[int, list[tuple[int, int]]] = {}
        for number, some in enumerate(taught):
            by_length.setdefault(some.rows.shape[1], []).extend((number, row) for row in range(len(some.rows)))
        for length, places in by_length.items():
            size = max(1, batch_tokens // length)
            # Neighbours begin alike: a batch takes its rows from all over.
            order = torch.randperm(len(places), generator=torch.Generator().manual_seed(length)).tolist()
            drawn = [places[i] for i in order]
            batches = [drawn[i : i + size] for i in range(0, len(drawn), size)]
            self._batches += [batch for batch in batches if len(batch) == size or len(drawn) < size]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Lesson:  # type: ignore[override]
        places = self._batches[index]
        rows, counts, ids, probabilities = (
            torch.stack([self._parts[number][part][row] for number, row in places]) for part in range(4)
        )
        if ids.dtype == torch.int16:
            ids = ids.int() & 0xFFFF
        return Lesson(rows, counts, ids, probabilities)


def _tensors(taught: Taught) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids = taught.answers["ids"]
    if ids.dtype == np.uint16:  # torch moves these, but does not compute with them
        ids = ids.view(np.int16)
    parts = taught.rows, taught.counts, ids, taught.answers["probabilities"]
    rows, counts, ids_, probabilities = (torch.from_numpy(part) for part in parts)
    return rows, counts, ids_, probabilities


def _fits(taught: Sequence[Taught], device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    num_bytes = sum(some.rows.nbytes + some.counts.nbytes + some.answers.nbytes for some in taught)
    return num_bytes <= torch.cuda.get_device_properties(device).total_memory // 3


@torch.no_grad()
def ask(target: Forward, rows: Rows, batch_tokens: int, device: torch.device) -> NDArray[np.void]:
    """What `target` says of every position of `rows` [N, T].

    Returns:
        [N, T] records: `ids` [K] of the likeliest tokens, and their `probabilities` [K], which add up to 1.
    """
    parts = []
    for some in np.array_split(rows, max(1, rows.size // batch_tokens)):
        logits = target(torch.from_numpy(some).to(device, torch.long))
        parts.append(as_answers(*likeliest(logits), logits.shape[-1]))
    return np.concatenate(parts)


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and probabilities [..., K] of the likeliest tokens by `logits` [..., V]."""
    best = logits.topk(min(NUM_LIKELIEST, logits.shape[-1]), dim=-1)
    return best.indices, F.softmax(best.values.float(), dim=-1)


def as_answers(ids: Tensor, probabilities: Tensor, vocab_size: int) -> NDArray[np.void]:
    """[N, T] records as `ask` gives them, of `ids` and `probabilities` [N, T, K]."""
    kind = np.uint16 if vocab_size <= np.iinfo(np.uint16).max else np.int32
    num = ids.shape[-1]
    records = np.empty(ids.shape[:-1], [("ids", kind, num), ("probabilities", np.float16, num)])
    records["ids"] = ids.cpu().numpy()
    records["probabilities"] = probabilities.cpu().numpy()
    return records

"""What a draft learns from: rows of text, and what the target says of each position, worked out once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
        if device.type == "cuda":  # pinned, so that nobody waits for it
            tensors = tuple(t.pin_memory() for t in tensors)  # type: ignore[assignment]
        return Lesson(*(t.to(device, non_blocking=True).to(dtype) for t, dtype in zip(tensors, dtypes, strict=True)))


@dataclass(frozen=True, slots=True)
class Taught:
    """Rows of one length, and the target's word on them."""

    rows: Rows  # [N, T]
    counts: NDArray[np.bool_]  # [N, T]
    answers: NDArray[np.void]  # [N, T], see `ask`


class Lessons(Sequence[Lesson]):
    """Batches of about `batch_tokens`; rows of one length together, whoever wrote them."""

    def __init__(self, taught: Sequence[Taught], batch_tokens: int) -> None:
        self._taught = taught
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

        def gathered(name: str) -> NDArray[Any]:
            return np.stack([getattr(self._taught[number], name)[row] for number, row in places])

        answers = gathered("answers")
        parts = gathered("rows"), gathered("counts"), answers["ids"], answers["probabilities"]
        return Lesson(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))


@torch.no_grad()
def ask(target: Forward, rows: Rows, batch_tokens: int, device: torch.device) -> NDArray[np.void]:
    """What `target` says of every position of `rows` [N, T].

    Returns:
        [N, T] records: `ids` [K] of the likeliest tokens, and their `probabilities` [K], which add up to 1.
    """
    parts = []
    for some in np.array_split(rows, max(1, rows.size // batch_tokens)):
        logits = target(torch.from_numpy(some).to(device, torch.long))
        best = logits.topk(min(NUM_LIKELIEST, logits.shape[-1]), dim=-1)
        kind = np.uint16 if logits.shape[-1] <= np.iinfo(np.uint16).max else np.int32
        num = best.indices.shape[-1]
        records = np.empty(some.shape, [("ids", kind, num), ("probabilities", np.float16, num)])
        records["ids"] = best.indices.cpu().numpy()
        records["probabilities"] = F.softmax(best.values.float(), dim=-1).cpu().numpy()
        parts.append(records)
    return np.concatenate(parts)

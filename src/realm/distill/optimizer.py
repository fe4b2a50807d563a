"""Muon: momentum whose steps on matrices are made orthogonal, so that all directions are learned at one pace.

Keller Jordan 2024 (kellerjordan.github.io/posts/muon); steps are scaled as large as AdamW's, as in arXiv 2502.16982.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_ADAM_RMS = 0.2  # of a typical step of AdamW, in learning rates


class Muon(torch.optim.Optimizer):
    """For matrices only; those of one shape are computed together.

    Args:
        matrices: What to train.
        learning_rate: Comparable with AdamW's. A tensor's value counts when a step is made, in a CUDA graph, too.
        momentum: Share that is kept of the mean gradient, step by step.
        weight_decay: Part of each weight that a step of learning rate 1 would take away.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        learning_rate: float | Tensor,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(matrices, {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients."""
        assert closure is None
        for group in self.param_groups:
            self._step(group)

    def _step(self, group: dict[str, Any]) -> None:
        matrices: list[Tensor] = group["params"]
        gradients = [m.grad for m in matrices if m.grad is not None]
        assert len(gradients) == len(matrices)
        means = [self._mean(m) for m in matrices]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, means, group["momentum"])  # Nesterov
        by_shape: dict[tuple[int, int], list[int]] = {}
        wide = [u if u.shape[0] <= u.shape[1] else u.T for u in updates]
        for index, update in enumerate(wide):
            by_shape.setdefault((update.shape[0], update.shape[1]), []).append(index)
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        for shape, indices in by_shape.items():
            steps = orthogonal(torch.stack([wide[i] for i in indices]))
            size = -group["lr"] * _ADAM_RMS * math.sqrt(max(shape))
            for i, step in zip(indices, steps, strict=True):
                matrices[i].add_((step if wide[i] is updates[i] else step.T) * size)

    def _mean(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(matrix)
        mean: Tensor = state["mean"]
        return mean


def orthogonal(matrices: Tensor) -> Tensor:
    """Roughly the nearest matrix with orthonormal rows to each of [B, N, K], N <= K, by Newton-Schulz iterations."""
    a, b, c = _COEFFICIENTS
    x: Tensor = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x / (torch.linalg.matrix_norm(x.float(), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(matrices.dtype)

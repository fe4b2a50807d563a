"""Muon: its steps are orthogonal, as large as they should be, and go on after a stop."""

from __future__ import annotations

import pytest
import torch

from realm.distill.optimizer import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 8, 24), (1, 16, 16), (2, 1, 5)])
def test_it_makes_matrices_orthogonal(shape: tuple[int, int, int]) -> None:
    """Singular values come near 1, and directions stay."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    result = orthogonal(matrices)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.einsum("bij,bij->b", result, left @ right).min() / shape[1] > 0.6


def test_steps_are_as_large_as_adams() -> None:
    matrices = [torch.zeros(shape, requires_grad=True) for shape in ((32, 96), (96, 32), (64, 64), (32, 96))]
    optimizer = Muon(matrices, 0.5)
    for matrix in matrices:
        matrix.grad = torch.randn(matrix.shape) * 100
    optimizer.step()
    for matrix in matrices:
        assert matrix.detach().square().mean().sqrt().item() == pytest.approx(0.5 * 0.2, rel=0.2)
        assert (matrix.detach() * matrix.grad).sum() < 0


def test_matrices_of_one_shape_do_not_mix() -> None:
    generator = torch.Generator().manual_seed(4)
    gradients = [torch.randn(8, 24, generator=generator) for _ in range(3)]
    together = _after_a_step(gradients)
    alone = [_after_a_step([gradient])[0] for gradient in gradients]
    torch.testing.assert_close(together, alone)


def _after_a_step(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    matrices = [torch.zeros(8, 24, requires_grad=True) for _ in gradients]
    for matrix, gradient in zip(matrices, gradients, strict=True):
        matrix.grad = gradient
    Muon(matrices, 0.1).step()
    return matrices


def test_it_finds_a_minimum_that_is_steep_in_some_directions_and_flat_in_others() -> None:
    scales = torch.logspace(-1, 0, 16)
    wanted = torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
    matrix = torch.zeros(16, 16, requires_grad=True)
    optimizer = Muon([matrix], 0.1, weight_decay=0.0)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        optimizer.zero_grad()
        ((matrix - wanted) * scales).square().sum().backward()
        optimizer.step()
    assert (matrix - wanted).abs().max() < 0.1

"""What is expected of a draft model."""

from __future__ import annotations

import pytest

from realm.engine.draft_estimates import DraftCosts, DraftRates
from realm.kernels.drafting import NUM_CLASSES, DraftRound


def round_of(num_fed: int, later_seconds: list[float]) -> DraftRound:
    done = DraftRound.empty(1, 1 + len(later_seconds))
    done.step_rows[:] = [num_fed, *[1] * len(later_seconds)]
    done.step_seconds[1:] = later_seconds
    done.num_steps = 1 + len(later_seconds)
    return done


def test_a_class_and_all_together_are_told_apart() -> None:
    rates = DraftRates(None, memory=50.0)
    for _ in range(100):
        rates.observe([7, 0], 1, True)
    assert rates.values()[7] > 0.98
    assert rates.values()[0] < 0.02
    assert rates.mean == pytest.approx(0.5, abs=0.02)
    assert len(rates.values()) == NUM_CLASSES + 1


def test_little_known_is_much_to_hope() -> None:
    """A request starts from what its tenant's guesses were, and what it may be is bounded by what it was."""
    tenant = DraftRates(None, memory=200.0)
    for _ in range(200):
        tenant.observe([3], 0, True)
    request = DraftRates(tenant, memory=50.0)
    assert request.mean == pytest.approx(tenant.mean)
    assert request.hope > tenant.hope > tenant.mean
    for _ in range(200):
        request.observe([3], 1, False)
    assert request.mean > 0.9
    assert request.hope <= 1.0


def test_the_parts_of_a_round_are_timed_apart() -> None:
    costs = DraftCosts()
    costs.observe(round_of(2, [0.001]), 1, 1.0)
    assert not costs.measured, "memory is touched for the first time"
    for _ in range(20):
        costs.observe(round_of(2, [0.001, 0.001]), 1, 0.007)
        costs.observe(round_of(200, []), 1, 0.1)
    assert costs.first_seconds(2) == pytest.approx(0.005, rel=0.01)
    assert costs.later_seconds(1) == pytest.approx(0.001, rel=0.01)
    assert costs.catch_up_seconds([200, 2]) == pytest.approx(0.1, rel=0.01)
    assert costs.catch_up_seconds([2, 3]) == 0.0

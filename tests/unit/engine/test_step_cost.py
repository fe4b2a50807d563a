"""What a step takes, from steps that were timed on simulated machines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.engine.step_cost import StepCost


def test_costs_are_interpolated_and_never_fall() -> None:
    cost = StepCost()
    for _ in range(300):
        for rows, value in {1: 1.0, 4: 4.0, 8: 2.0, 12: 8.0}.items():
            cost.observe(rows, value)
    assert cost.seconds(2) == pytest.approx(2.0, rel=0.02)
    assert cost.seconds(6) == pytest.approx(4.0, rel=0.02)
    assert cost.seconds(10) == pytest.approx(6.0, rel=0.02)
    values = [cost.seconds(rows) for rows in range(1, 40)]
    assert values == sorted(values)


def test_a_size_not_timed_lately_is_no_dearer_than_a_larger_one_that_was() -> None:
    """Drafts in every step hide that steps without them have become quicker, too."""
    cost = StepCost()
    for _ in range(50):
        cost.observe(1, 3.0)
        cost.observe(4, 4.0)
    for _ in range(100):
        cost.observe(4, 2.0)
    assert cost.seconds(4) == pytest.approx(2.0, rel=0.05)
    assert cost.seconds(1) == pytest.approx(2.0, rel=0.05)


def test_sizes_never_timed_are_hopefully_cheap() -> None:
    cost = StepCost()
    cost.observe(1, 0.004)
    assert 0.004 < cost.seconds(5) < 0.005
    large = StepCost()
    large.observe(40, 0.1)
    assert 0.03 < large.seconds(1) < 0.04


def test_an_interrupted_step_hardly_counts() -> None:
    cost = StepCost()
    for _ in range(5):
        cost.observe(1, 1.0)
    cost.observe(1, 1000.0)
    assert 1.0 < cost.seconds(1) < 1.05


def test_steps_that_scatter_are_neither_hoped_nor_feared() -> None:
    cost = StepCost()
    for step in range(400):
        cost.observe(1, (0.9, 1.0, 1.1)[step % 3])
    assert cost.seconds(1) == pytest.approx(1.0, rel=0.01)


def test_the_first_step_of_a_size_may_have_been_interrupted() -> None:
    cost = StepCost()
    for _ in range(10):
        cost.observe(1, 1.0)
    cost.observe(2, 500.0)
    assert cost.seconds(2) < 2.6


def test_a_size_found_dear_once_is_tried_again_soon() -> None:
    """And the more often it was found dear, the later."""
    cost = StepCost()
    pauses = []
    for _ in range(6):
        cost.observe(5, 50.0)
        pauses.append(0)
        while cost.seconds(5) > 1.5 and pauses[-1] < 2000:
            cost.observe(1, 1.0)
            pauses[-1] += 1
    assert pauses[0] <= 48
    assert pauses == sorted(pauses)
    assert pauses[-1] > 400


def test_a_size_not_timed_for_long_is_tried_again() -> None:
    cost = StepCost()
    cost.observe(5, 100.0)
    for _ in range(600):
        cost.observe(1, 1.0)
    assert cost.seconds(5) < 1.5


@given(st.integers(1, 5000))
def test_a_size_timed_is_known_about_exactly(num_rows: int) -> None:
    cost = StepCost()
    cost.observe(num_rows, 1.0)
    assert cost.seconds(num_rows) == pytest.approx(1.0, rel=0.1)

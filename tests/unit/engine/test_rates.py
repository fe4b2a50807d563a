"""How often guesses of a class are right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.engine.rates import ClassRates, count_right


def test_rates_follow_what_happens_to_their_class() -> None:
    rates = ClassRates([0.5, 0.9], weight=4.0, memory=50.0)
    assert rates.values() == [0.5, 0.9]
    for _ in range(100):
        rates.observe([0, 0, 0, 0], 3, True)
    assert rates.values() == [pytest.approx(0.75, abs=0.02), 0.9]
    for _ in range(200):
        rates.observe([0], 0, True)
    assert rates.values()[0] < 0.05


def test_guesses_after_a_wrong_one_tell_nothing() -> None:
    rates = ClassRates([0.5, 0.5, 0.5], weight=1.0, memory=50.0)
    rates.observe([0, 1, 2], 1, True)
    first, second, third = rates.values()
    assert first > 0.5 > second
    assert third == 0.5


def test_a_guess_longer_than_what_came_is_not_wrong() -> None:
    assert count_right([1, 2, 3], [1, 2]) == (2, False)
    assert count_right([1, 2, 3], [1, 9]) == (1, True)
    assert count_right([1], [1, 5]) == (1, False)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_a_wrong_token_is_named_only_if_there_is_one(guess: list[int], came: list[int]) -> None:
    num_right, wrong = count_right(guess, came)
    assert guess[:num_right] == came[:num_right]
    assert wrong == (
        guess[num_right : num_right + 1] != came[num_right : num_right + 1] and num_right < min(len(guess), len(came))
    )

"""Classes of guesses."""

from __future__ import annotations

import pytest

from realm.core.config import MAX_DRAFT_TOKENS
from realm.engine.sureness import (
    AGREED,
    DISPUTED,
    INSERTED,
    LONG_MATCH,
    MAX_MATCH,
    PRIORS,
    RESUMED,
    SINGLE,
    classes_of,
)


@pytest.mark.parametrize("kind", [SINGLE, DISPUTED, AGREED, RESUMED, INSERTED])
def test_guesses_get_surer_with_each_token_that_was_right(kind: int) -> None:
    rates = [PRIORS[which] for which in classes_of(kind, 1, MAX_MATCH)]
    assert rates == sorted(rates)
    assert len(rates) == MAX_MATCH


def test_every_token_of_the_longest_draft_has_a_class() -> None:
    assert len(classes_of(SINGLE, 10**6, MAX_DRAFT_TOKENS)) == MAX_DRAFT_TOKENS


def test_short_matches_of_different_kinds_are_told_apart_and_long_ones_are_not() -> None:
    kinds = (SINGLE, DISPUTED, AGREED, RESUMED)
    assert len({tuple(classes_of(kind, 2, 1)) for kind in kinds}) == 4
    assert len({tuple(classes_of(kind, LONG_MATCH, 9)) for kind in kinds}) == 1


def test_after_an_insertion_only_the_first_guess_is_a_kind_of_its_own() -> None:
    assert classes_of(INSERTED, 1, 1) != classes_of(RESUMED, 1, 1)
    assert classes_of(INSERTED, 1, 30)[1:] == classes_of(RESUMED, 1, 30)[1:]

"""When it is worth looking for drafts."""

from __future__ import annotations

import itertools

import pytest

from realm.engine.worth import Ledger, Probing, Rest


def test_a_source_that_costs_more_than_it_gains_does_not_pay_until_it_gains() -> None:
    ledger = Ledger()
    assert ledger.pays
    for _ in range(50):
        ledger.spend(0.001)
        ledger.settle(0.0)
    assert not ledger.pays
    needed = 0
    while not ledger.pays:
        ledger.spend(0.001)
        ledger.settle(0.003)
        needed += 1
    assert 5 < needed < 30


def test_an_old_debt_is_bounded() -> None:
    ledger = Ledger()
    for _ in range(100_000):
        ledger.spend(0.001)
        ledger.settle(0.0)
    needed = 0
    while not ledger.pays:
        ledger.spend(0.001)
        ledger.settle(0.003)
        needed += 1
    assert needed < 100


def test_steps_without_a_look_change_nothing() -> None:
    ledger = Ledger()
    ledger.spend(0.001)
    ledger.settle(0.0)
    for _ in range(1000):
        ledger.settle(0.0)
    assert not ledger.pays


def test_looks_in_vain_get_rarer_up_to_a_bound() -> None:
    rest = Rest()
    looks = []
    for step in range(100):
        if rest.is_over():
            looks.append(step)
            rest.after(step == 0, 8)
    assert looks[:5] == [0, 1, 3, 6, 11]
    assert {b - a for a, b in itertools.pairwise(looks[5:])} == {9}


def test_nothing_rests_while_a_look_is_cheap() -> None:
    rest = Rest()
    for _ in range(5):
        assert rest.is_over()
        rest.after(False, 0)


def test_probes_take_a_small_share_of_the_time() -> None:
    probing = Probing(share=0.01)
    cheap = sum(probing.due(0.002, 0.001) for _ in range(5000))
    assert cheap * 0.001 == pytest.approx(0.01 * 5000 * 0.002, rel=0.05)
    assert not any(probing.due(0.002, 1.0) for _ in range(5000))
    # What was saved for a costly probe does not become a row of cheap ones.
    assert sum(probing.due(0.002, 0.001) for _ in range(10)) <= 1

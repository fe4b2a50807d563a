"""When it is worth looking for drafts."""

from __future__ import annotations

import pytest

from realm.engine.worth import Ledger, Probing, Rest


def spend(ledger: Ledger, num_looks: int, gained_seconds: float) -> list[bool]:
    pays = []
    for _ in range(num_looks):
        ledger.spend(0.001)
        ledger.settle(gained_seconds, step_seconds=0.002)
        pays.append(ledger.pays)
    return pays


def test_a_source_that_gains_nothing_uses_up_its_credit_and_pays_again_when_it_gains() -> None:
    ledger = Ledger()
    assert ledger.pays
    pays = spend(ledger, 100, 0.0)
    assert 10 <= pays.count(True) <= 16  # of 0.024 seconds, and looks count one and a half times
    assert not ledger.pays
    assert 5 < spend(ledger, 100, 0.003).count(False) < 60


def test_an_old_debt_is_bounded() -> None:
    ledger = Ledger()
    spend(ledger, 100_000, 0.0)
    assert spend(ledger, 100, 0.003).count(False) < 100


def test_another_credit_comes_later_and_later() -> None:
    ledger = Ledger()
    spend(ledger, 100, 0.0)
    waits = []
    for _ in range(5):
        waits.append(0)
        while not ledger.pays:
            ledger.settle(0.0, 0.002)
            waits[-1] += 1
        spend(ledger, 50, 0.0)
    assert 400 < waits[0] <= 500
    assert waits == sorted(waits)
    assert waits[-1] <= 8000
    spend(ledger, 300, 0.01)
    spend(ledger, 300, 0.0)
    waited = 300
    while not ledger.pays:
        ledger.settle(0.0, 0.002)
        waited += 1
    assert waited < 800, "what has paid is tried again soon"


def test_looks_in_vain_get_rarer_up_to_a_bound() -> None:
    rest = Rest()
    steps = []
    for found in (True, False, False, False, False, False, True, False):
        rest.after(found, 8)
        steps.append(rest.num_steps)
    assert steps == [0, 1, 2, 4, 8, 8, 0, 1]


def test_nothing_rests_while_a_look_is_cheap() -> None:
    rest = Rest()
    for _ in range(5):
        rest.after(False, 0)
        assert rest.num_steps == 0


def test_probes_take_a_small_share_of_the_time() -> None:
    probing = Probing(share=0.01)
    cheap = sum(probing.due(0.002, 0.001) for _ in range(5000))
    assert cheap * 0.001 == pytest.approx(0.01 * 5000 * 0.002, rel=0.05)
    assert not any(probing.due(0.002, 1.0) for _ in range(5000))
    # What was saved for a costly probe does not become a row of cheap ones.
    assert sum(probing.due(0.002, 0.001) for _ in range(10)) <= 1

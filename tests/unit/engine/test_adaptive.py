"""Draft lengths against simulated costs and acceptance."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.engine.adaptive import AcceptanceRate, DraftLength, Probing, StepCost


def controller(seconds: dict[int, float], max_draft_tokens: int = 16) -> DraftLength:
    length = DraftLength(max_draft_tokens)
    for _ in range(60):
        for num_rows, value in seconds.items():
            length.end_step(num_rows, value)
    return length


FREE_ROWS = dict.fromkeys(range(1, 65), 1.0)
ROWS_AT_FULL_PRICE = {rows: float(rows) for rows in range(1, 65)}
MEMORY_BOUND = {rows: max(1.0, rows / 12) for rows in range(1, 65)}


@pytest.mark.parametrize("acceptance", [0.3, 0.9])
def test_free_rows_are_used(acceptance: float) -> None:
    length = controller(FREE_ROWS)
    length.begin_step(1, 1.0)
    assert length.choose(acceptance, 16) == (16 if acceptance == 0.9 else 3)


@pytest.mark.parametrize("acceptance", [0.3, 0.9, 0.99])
def test_rows_at_full_price_never_pay(acceptance: float) -> None:
    length = controller(ROWS_AT_FULL_PRICE)
    length.begin_step(8, 8.0)
    assert length.choose(acceptance, 16) == 0


def test_drafts_get_shorter_as_the_batch_grows() -> None:
    lengths = []
    for batch in (1, 4, 8, 16, 32):
        length = controller(MEMORY_BOUND)
        length.begin_step(batch, float(batch))
        lengths.append(length.choose(0.8, 16))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > 4
    assert lengths[-1] == 0


def test_each_choice_counts_for_the_next() -> None:
    length = controller(ROWS_AT_FULL_PRICE | {1: 4.0, 2: 4.0, 3: 4.0, 4: 4.0, 5: 4.0, 6: 4.0, 7: 4.0})
    length.begin_step(4, 4.0)
    assert [length.choose(0.8, 16) for _ in range(4)] == [3, 0, 0, 0]


def test_requests_learn_to_share_rows() -> None:
    length = controller(MEMORY_BOUND)
    for _ in range(50):
        length.begin_step(4, 4.0)
        lengths = [length.choose(0.8, 16) for _ in range(4)]
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) > 0


def test_a_step_in_which_nothing_could_pay_is_known_from_its_start() -> None:
    length = controller(MEMORY_BOUND)
    length.begin_step(4, 4.0)
    assert length.hopeful
    length.begin_step(32, 32.0)
    assert not length.hopeful


def test_what_drafting_costs_is_counted() -> None:
    length = controller(MEMORY_BOUND)
    length.begin_step(1, 1.0)
    assert length.speed() == pytest.approx(1.0)
    assert length.speed(4, 3.0) == pytest.approx(4.0)
    assert length.speed(4, 3.0, draft_seconds=1.0) == pytest.approx(2.0)


@given(
    st.dictionaries(st.integers(1, 40), st.floats(0.001, 10.0), max_size=10),
    st.floats(0.0, 1.0),
    st.integers(1, 40),
    st.integers(0, 20),
)
def test_the_choice_is_the_fastest_there_is(
    seconds: dict[int, float], acceptance: float, batch: int, max_tokens: int
) -> None:
    length = controller(seconds)
    length.begin_step(batch, float(batch))
    chosen = length.choose(acceptance, max_tokens)
    assert 0 <= chosen <= min(max_tokens, 16)

    def speed(num_drafts: int) -> float:
        gained = sum(acceptance**i for i in range(1, num_drafts + 1))
        return (batch + gained) / length.cost.seconds(batch + num_drafts)

    # Gains below 3%, and tokens that are right less than once in 50 times, aren't worth having.
    likely = [n for n in range(min(max_tokens, 16) + 1) if n == 0 or acceptance**n >= 0.02]
    assert speed(chosen) * 1.0300001 >= max(map(speed, likely))


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
    assert cost.seconds(1) == pytest.approx(1.05)


def test_the_first_step_of_a_size_may_have_been_interrupted() -> None:
    cost = StepCost()
    for _ in range(10):
        cost.observe(1, 1.0)
    cost.observe(2, 500.0)
    assert cost.seconds(2) < 2.5


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
    assert 400 < pauses[-1] < 600


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


def test_acceptance_follows_what_happens() -> None:
    rate = AcceptanceRate(0.5)
    assert rate.value == 0.5
    for _ in range(100):
        rate.observe(3, 1)
    assert rate.value == pytest.approx(0.75, abs=0.02)
    for _ in range(200):
        rate.observe(0, 1)
    assert rate.value < 0.05


def test_probes_take_a_small_share_of_the_time() -> None:
    probing = Probing(share=0.01)
    cheap = sum(probing.due(0.002, 0.001) for _ in range(5000))
    assert cheap * 0.001 == pytest.approx(0.01 * 5000 * 0.002, rel=0.05)
    assert not any(probing.due(0.002, 1.0) for _ in range(5000))
    # What was saved for a costly probe does not become a row of cheap ones.
    assert sum(probing.due(0.002, 0.001) for _ in range(10)) <= 1

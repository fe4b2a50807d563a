"""Draft lengths against simulated costs and acceptance."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm.engine.adaptive import Bias, DraftLength


def controller(seconds: dict[int, float], max_draft_tokens: int = 16) -> DraftLength:
    length = DraftLength(max_draft_tokens)
    for _ in range(60):
        for num_rows, value in seconds.items():
            length.end_step(num_rows, value)
    return length


def chances(*rates: float, num_tokens: int = 16) -> list[list[float]]:
    """Of guesses whose every token is right at a rate, given that those before it are."""
    return [[rate**i for i in range(1, num_tokens + 1)] for rate in rates]


FREE_ROWS = dict.fromkeys(range(1, 65), 1.0)
ROWS_AT_FULL_PRICE = {rows: float(rows) for rows in range(1, 65)}
MEMORY_BOUND = {rows: max(1.0, rows / 12) for rows in range(1, 65)}


@pytest.mark.parametrize("acceptance", [0.3, 0.9])
def test_free_rows_are_used(acceptance: float) -> None:
    length = controller(FREE_ROWS)
    length.begin_step(1, 1.0)
    assert length.choose(chances(acceptance)) == [16 if acceptance == 0.9 else 3]


@pytest.mark.parametrize("acceptance", [0.3, 0.9, 0.99])
def test_rows_at_full_price_never_pay(acceptance: float) -> None:
    length = controller(ROWS_AT_FULL_PRICE, max_draft_tokens=7)
    length.begin_step(8, 8.0)
    assert length.choose(chances(*[acceptance] * 8)) == [0] * 8


def test_drafts_get_shorter_as_the_batch_grows() -> None:
    lengths = []
    for batch in (1, 4, 8, 16, 32):
        length = controller(MEMORY_BOUND)
        length.begin_step(batch, float(batch))
        lengths.append(sum(length.choose(chances(*[0.8] * batch))) / batch)
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > 4
    assert lengths[-1] == 0


def test_rows_go_to_those_who_are_right_most_often() -> None:
    length = controller(MEMORY_BOUND)
    length.begin_step(4, 4.0)
    lengths = length.choose(chances(0.9, 0.5, 0.8, 0.0))
    assert lengths[0] > lengths[2] > lengths[1]
    assert lengths[3] == 0
    assert 6 <= sum(lengths) <= 8 + 1  # rows up to 12 are free


def test_equal_requests_share_rows() -> None:
    length = controller(MEMORY_BOUND)
    length.begin_step(4, 4.0)
    lengths = length.choose(chances(*[0.8] * 4))
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) > 0


def test_long_drafts_where_only_many_rows_are_cheap() -> None:
    """Rows cost their full price up to 64, and nothing from there to 128."""
    length = controller({8: 8.0, 16: 16.0, 32: 32.0, 64: 64.0, 72: 64.0, 128: 64.0}, max_draft_tokens=32)
    length.begin_step(8, 8.0)
    assert length.hopeful
    assert sum(length.choose(chances(*[0.99] * 8))) >= 112
    length.begin_step(8, 8.0)
    assert sum(length.choose(chances(*[0.99] * 4, num_tokens=8))) == 0


def test_hopes_that_were_too_high_are_lowered_and_come_back() -> None:
    bias = Bias(prior=20.0, memory=200.0)
    assert bias.value == 1.0
    for _ in range(200):
        bias.observe(1.0, 2.0)
    assert bias.value == pytest.approx(0.5, abs=0.05)
    for _ in range(5000):
        bias.forgive()
    assert bias.value == pytest.approx(1.0, abs=0.01)


def test_rows_dearer_than_thought_are_used_less(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {rows: 1.0 + 0.1 * rows for rows in range(1, 65)}
    length = controller(costs)
    monkeypatch.setattr(length.cost, "observe", lambda num_rows, seconds: None)
    drafted = []
    for _ in range(60):
        length.begin_step(1, 1.0)
        drafted.append(length.choose(chances(0.8, num_tokens=8))[0])
        added = length.end_step(1 + drafted[-1], costs[1] + 0.25 * drafted[-1])
        assert added == pytest.approx(0.25 * drafted[-1], abs=0.05)
    assert drafted[-1] < drafted[0]


def test_a_step_in_which_nothing_could_pay_is_known_from_its_start() -> None:
    length = controller({4: 1.0, 8: 1.0, 16: 2.0}, max_draft_tokens=1)
    length.begin_step(4, 4.0)
    assert length.hopeful
    length.begin_step(8, 8.0)
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
    st.integers(1, 3),
    st.integers(0, 20),
)
def test_of_few_requests_the_choice_is_the_fastest_there_is(
    seconds: dict[int, float], acceptance: float, batch: int, max_tokens: int
) -> None:
    length = controller(seconds)
    length.begin_step(batch, float(batch))
    (chosen,) = length.choose(chances(acceptance, num_tokens=max_tokens))
    assert 0 <= chosen <= min(max_tokens, 16)

    def speed(num_drafts: int) -> float:
        gained = sum(acceptance**i for i in range(1, num_drafts + 1))
        return (batch + gained) / length.cost.seconds(batch + num_drafts)

    # Gains below 0.5%, and tokens that are right less than once in 50 times, aren't worth having.
    likely = [n for n in range(min(max_tokens, 16) + 1) if n == 0 or acceptance**n >= 0.02]
    assert speed(chosen) * 1.0050001 >= max(map(speed, likely))


def test_prompts_in_the_step_make_no_token_worth_more() -> None:
    """They take their time whatever is drafted: the choice is that of a step without them."""
    chosen = []
    for num_prompt_rows in (0, 24):
        length = controller({rows: 4.0 + 0.5 * rows for rows in range(1, 65)})
        length.begin_step(8 + num_prompt_rows, 8.0)
        chosen.append(length.choose(chances(*[0.9] * 8)))
    assert chosen[0] == chosen[1]
    assert 0 < sum(chosen[0]) < 128


def test_tokens_surer_than_those_before_them_are_weighed_one_by_one() -> None:
    """A match of two tokens is right in half of all cases; then it is a longer one, which is nearly always right."""
    length = controller({rows: 1.0 + 0.1 * rows for rows in range(1, 65)})
    length.begin_step(1, 1.0)
    of_a_start, of_a_coin = length.choose([[0.5, 0.49, 0.48, 0.47], [0.5, 0.25, 0.125, 0.06]])
    assert of_a_start == 4
    assert of_a_coin <= 2


@pytest.mark.parametrize("num_guessing", [1, 3, 8])
def test_in_a_batch_each_draft_is_as_long_as_is_best_for_its_request(num_guessing: int) -> None:
    """Not longer because others, which have no guess, gain nothing in this step."""
    length = controller({rows: 1.6 + 0.3 * rows for rows in range(1, 129)})
    length.begin_step(8, 8.0)
    lengths = length.choose([*chances(*[0.95] * num_guessing), *[[]] * (8 - num_guessing)])

    def speed(num_drafts: int) -> float:
        return sum(0.95**i for i in range(num_drafts + 1)) / (0.5 + 0.3 * num_drafts)

    assert set(lengths[num_guessing:]) <= {0}
    assert all(speed(chosen) >= 0.99 * max(map(speed, range(17))) for chosen in lengths[:num_guessing])

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from realm.engine.policy import prefill_budget, share_prefill


@given(st.lists(st.integers(1, 1000), max_size=12), st.integers(0, 600))
def test_shares_spend_what_they_can_and_no_more(remaining: list[int], budget: int):
    shares = share_prefill(remaining, budget)
    assert sum(shares) == min(budget, sum(remaining))
    assert all(0 <= share <= most for share, most in zip(shares, remaining, strict=True))
    if remaining:
        assert shares[0] >= min(remaining[0], (budget + 1) // 2)


def test_short_prompts_dont_wait_for_long_ones():
    assert share_prefill([1000, 500, 10, 20], 100) == [50, 20, 10, 20]
    assert share_prefill([1000, 10], 100) == [90, 10]
    assert share_prefill([1000], 100) == [100]


def test_decoding_requests_bound_the_prefill_of_a_step():
    assert prefill_budget(512, 0) == 512
    assert prefill_budget(512, 1) == 128
    assert prefill_budget(64, 1) == 63
    assert prefill_budget(32, 32) == 0

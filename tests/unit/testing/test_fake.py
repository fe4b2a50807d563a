"""The fake model must notice what it is there to notice."""

import numpy as np
import pytest

from realm.core.types import Batch, Float32Array
from realm.testing.clock import FakeClock
from realm.testing.fake import FakeExecutor


def batch(
    tokens: list[list[int]], contexts: list[int], tables: list[list[int]], adapters: list[int] | None = None
) -> Batch:
    starts = np.cumsum([0, *map(len, tokens)])
    return Batch(
        token_ids=np.array([t for row in tokens for t in row], np.int32),
        query_starts=starts.astype(np.int32),
        context_lens=np.array(contexts, np.int32),
        block_tables=np.array(tables, np.int32),
        logit_rows=(starts[1:] - 1).astype(np.int32),
        adapter_slots=np.array(adapters or [-1] * len(tokens), np.int32),
    )


def last(executor: FakeExecutor, b: Batch) -> Float32Array:
    return executor.step(b)[-1].copy()


def test_chunks_order_and_place_do_not_matter() -> None:
    tokens = list(range(1, 40))
    whole = last(FakeExecutor(), batch([tokens], [0], [[0, 1, 2]]))
    chunked = FakeExecutor()
    chunked.step(batch([tokens[:7]], [0], [[9, 0, 0]]))
    chunked.step(batch([[5, 5], tokens[7:20]], [0, 7], [[1, 0, 0], [9, 4, 0]]))
    assert (last(chunked, batch([[1], tokens[20:]], [2, 20], [[1, 0, 0], [9, 4, 3]])) == whole).all()


@pytest.mark.parametrize("change", ["token", "order", "adapter"])
def test_a_changed_history_changes_the_logits(change: str) -> None:
    history = {"token": [1, 2, 4], "order": [2, 1, 3], "adapter": [1, 2, 3]}[change]
    outputs = []
    for tokens, adapters in (([1, 2, 3], [-1]), (history, [0] if change == "adapter" else [-1])):
        executor = FakeExecutor()
        executor.step(batch([tokens], [0], [[0]], adapters))
        outputs.append(last(executor, batch([[7]], [3], [[0]])))
    assert (outputs[0] != outputs[1]).mean() > 0.9


def test_an_overwritten_block_changes_the_logits() -> None:
    executor = FakeExecutor()
    executor.step(batch([list(range(16))], [0], [[0, 1]]))
    before = last(executor, batch([[7]], [16], [[0, 1]]))
    executor.step(batch([list(range(1, 17))], [0], [[0, 1]]))
    assert (last(executor, batch([[7]], [16], [[0, 1]])) != before).any()


def test_adapter_is_known_by_content_not_by_slot() -> None:
    a, b = FakeExecutor(adapters={0: "x"}), FakeExecutor(adapters={5: "x"})
    assert (a.step(batch([[1]], [0], [[0]], [0])) == b.step(batch([[1]], [0], [[0]], [5]))).all()


def test_wrong_schedules_are_caught() -> None:
    executor = FakeExecutor()
    with pytest.raises(AssertionError, match="not written"):
        executor.step(batch([[1]], [3], [[0]]))
    with pytest.raises(AssertionError, match="two requests write"):
        executor.step(batch([[1], [2]], [0, 0], [[0], [0]]))
    executor.step(batch([[1, 2]], [0], [[0]]))
    with pytest.raises(AssertionError, match="in a context"):
        executor.step(batch([[1], [2]], [2, 0], [[0], [0]]))
    executor.forget(0)
    with pytest.raises(AssertionError, match="not written"):
        executor.step(batch([[1]], [2], [[0]]))
    with pytest.raises(AssertionError, match="out of range"):
        executor.step(batch([[1]], [0], [[64]]))


def test_logits_die_with_the_next_step() -> None:
    executor = FakeExecutor()
    view = executor.step(batch([[1]], [0], [[0]]))
    assert np.isfinite(view).all()
    executor.step(batch([[1]], [1], [[0]]))
    assert np.isnan(view).all()


def test_clock_moves_by_hand() -> None:
    clock = FakeClock()
    clock.advance(1.5)
    assert clock() == 1.5

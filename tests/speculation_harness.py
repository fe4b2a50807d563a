"""Draft models and step costs for tests: drafts whatever they cost; right, wrong, or now and then right."""

from __future__ import annotations

from realm.core.types import Batch, Float32Array
from realm.engine.draft import DraftModelProposer
from realm.engine.engine import Engine
from realm.engine.step_cost import StepCost
from realm.engine.worth import Ledger
from realm.testing.fake import FakeExecutor


class FreeSteps(StepCost):
    """Steps of every size take the same time, so that drafts always seem to pay."""

    def __init__(self, every_seconds: float) -> None:
        super().__init__()
        self._every_seconds = every_seconds

    @property
    def measured(self) -> bool:
        return True

    def observe(self, num_rows: int, seconds: float) -> None:
        pass

    def is_stale(self, num_rows: int) -> bool:
        return False

    def seconds(self, num_rows: int) -> float:
        return self._every_seconds


class NoLedger(Ledger):
    """Looking for drafts costs nothing."""

    def spend(self, seconds: float) -> None:
        pass


def always_draft(engine: Engine) -> Engine:
    """Let `engine` draft whatever it costs, so that what it does depends on no clock."""
    drafter = engine._drafter
    assert drafter is not None
    drafter._length.cost = FreeSteps(1.0)
    drafter._ledgers_by_size = [{source: NoLedger() for source in drafter.proposers}] * len(drafter._ledgers_by_size)
    if (proposer := draft_proposer_of(engine)) is not None:
        proposer._costs.first = proposer._costs.later = FreeSteps(1e-6)
    return engine


def draft_proposer_of(engine: Engine) -> DraftModelProposer | None:
    assert engine._drafter is not None
    found = [proposer for proposer in engine._drafter.proposers.values() if isinstance(proposer, DraftModelProposer)]
    return found[0] if found else None


class FakeDraft(FakeExecutor):
    """A draft model that agrees with a `FakeExecutor` of the same vocabulary and no adapter.

    The engine goes on without drafts when a draft model fails, so what its checks find is kept in `failures`.
    """

    def __init__(
        self,
        vocab_size: int = 64,
        num_kv_blocks: int = 64,
        block_tokens: int = 16,
        *,
        num_proposable: int | None = None,
        wrong: bool = False,
    ) -> None:
        super().__init__(vocab_size, num_kv_blocks, block_tokens)
        self.failures: list[Exception] = []
        self._num_proposable = num_proposable
        self._wrong = wrong

    def step(self, batch: Batch) -> Float32Array:
        try:
            assert (batch.adapter_slots == -1).all(), "a draft model has no adapters"
            logits = super().step(batch)[:, : self._num_proposable]
        except Exception as error:
            self.failures.append(error)
            raise
        return -logits if self._wrong else logits

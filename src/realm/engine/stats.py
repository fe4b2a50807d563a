"""Counters of one engine, for metrics and tests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from realm.core.types import FinishReason


@dataclass(slots=True)
class EngineStats:
    """Totals since the start, and gauges as they were when `Engine.stats()` was called."""

    num_steps: int = 0
    """Forward passes."""
    num_scheduled_tokens: int = 0
    """Rows over all forward passes: prompt tokens computed, output tokens and drafts."""
    num_prompt_tokens: int = 0
    """Prompt tokens of admitted requests."""
    num_cached_tokens: int = 0
    """Those of them found in the prefix cache."""
    num_generated_tokens: int = 0
    drafted_tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By source of the draft and tenant."""
    accepted_tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    num_preemptions: int = 0
    finished: Counter[FinishReason] = field(default_factory=lambda: Counter(dict.fromkeys(FinishReason, 0)))
    """Requests ended, by reason."""
    schedule_seconds: float = 0.0
    batch_seconds: float = 0.0
    forward_seconds: float = 0.0
    sample_seconds: float = 0.0
    emit_seconds: float = 0.0
    last_step_seconds: float = 0.0

    num_running: int = 0
    num_waiting: int = 0
    kv_blocks_total: int = 0
    kv_blocks_used: int = 0
    kv_blocks_cached: int = 0

    @property
    def num_drafted_tokens(self) -> int:
        """Drafted tokens of all sources."""
        return self.drafted_tokens.total()

    @property
    def num_accepted_tokens(self) -> int:
        """Drafted tokens that became output."""
        return self.accepted_tokens.total()

    def count_drafts(self, source: str, tenant_id: str, num_drafted: int, num_accepted: int) -> None:
        """Count one draft that was verified."""
        self.drafted_tokens[source, tenant_id] += num_drafted
        self.accepted_tokens[source, tenant_id] += num_accepted

    def drafted_by(self, source: str) -> int:
        """Drafted tokens of one source."""
        return sum(count for (of, _), count in self.drafted_tokens.items() if of == source)

    def accepted_by(self, source: str) -> int:
        """Drafted tokens of one source that became output."""
        return sum(count for (of, _), count in self.accepted_tokens.items() if of == source)

    @property
    def step_seconds(self) -> float:
        """Time spent in steps."""
        return (
            self.schedule_seconds + self.batch_seconds + self.forward_seconds + self.sample_seconds + self.emit_seconds
        )

    @property
    def kv_usage(self) -> float:
        """Part of the KV blocks that requests own, 0 to 1."""
        return self.kv_blocks_used / self.kv_blocks_total if self.kv_blocks_total else 0.0

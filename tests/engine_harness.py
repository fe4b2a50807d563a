"""Drives an engine in tests and keeps the books: which request got what, and exactly one terminal event."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from realm.core.config import EngineConfig
from realm.core.types import FinishReason, Request, SamplingParams, StepOutput, TokenLogprobs, Usage
from realm.engine.engine import Engine
from realm.engine.sequence import Sequence
from realm.testing.fake import FakeExecutor


@dataclass
class Result:
    """All that came out for one request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    reason: FinishReason | None = None
    error: Exception | None = None
    usage: Usage | None = None


class Driver:
    """An engine, stepped by hand, that is checked after every step."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.results: dict[str, Result] = {}

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.engine.add(request)
            self.results[request.request_id] = Result()

    def step(self) -> list[StepOutput]:
        outputs = self.engine.step()
        for output in outputs:
            result = self.results[output.request_id]
            assert result.reason is None, "an event after the terminal event"
            result.token_ids += output.token_ids
            result.logprobs += output.logprobs
            result.reason, result.error, result.usage = output.finish_reason, output.error, output.usage
            assert (output.usage is not None) == (output.finish_reason is not None)
        self.engine.check_integrity()
        return outputs

    def drain(self, max_steps: int = 5000) -> dict[str, Result]:
        for _ in range(max_steps):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, "the engine doesn't come to an end"
        assert all(result.reason is not None for result in self.results.values()), "a terminal event is missing"
        assert_idle(self.engine)
        return self.results


def assert_idle(engine: Engine) -> None:
    """Every pool whole and nothing held."""
    engine.check_integrity()
    stats = engine.stats()
    assert stats.kv_blocks_used == 0
    assert stats.num_running == 0
    assert stats.num_waiting == 0


def make_engine(
    config: EngineConfig | None = None,
    *,
    vocab_size: int = 64,
    num_kv_blocks: int = 64,
    executor: FakeExecutor | None = None,
    **options: object,
) -> Engine:
    config = config or EngineConfig(kv_block_tokens=16, num_threads=1)
    executor = executor or FakeExecutor(vocab_size, num_kv_blocks, config.kv_block_tokens)
    return Engine(executor, config, **options)  # type: ignore[arg-type]


def prompt_of(seed: int, num_tokens: int, vocab_size: int = 64) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, vocab_size, num_tokens).tolist())


def request_of(request_id: str, prompt: Iterable[int] | int = 20, *, domain: bytes = b"", **params: object) -> Request:
    """A greedy request for 8 tokens unless told otherwise; an int prompt is its length."""
    if isinstance(prompt, int):
        prompt = prompt_of(sum(request_id.encode()), prompt)
    options = {
        key: params.pop(key)
        for key in ("adapter", "deadline", "max_draft_tokens", "speculate", "tenant_id")
        if key in params
    }
    params = {"temperature": 0.0, "max_tokens": 8} | params
    return Request(request_id, tuple(prompt), SamplingParams(**params), cache_domain=domain, **options)  # type: ignore[arg-type]


def alone(request: Request, **options: object) -> Result:
    """What `request` gives in an engine of its own."""
    driver = Driver(make_engine(**options))  # type: ignore[arg-type]
    driver.add(request)
    return driver.drain()[request.request_id]


class ScriptedProposer:
    """Proposes from the right continuation: all right, all wrong, or wrong from a random place on."""

    source = "script"

    def __init__(self, continuations: dict[str, list[int]], kind: str, vocab_size: int = 64) -> None:
        self.continuations = continuations
        self.kind = kind
        self.vocab_size = vocab_size
        self.rng = np.random.default_rng(0)
        self.observed: list[tuple[int, int]] = []

    def propose(self, seq: Sequence, max_tokens: int) -> list[int]:
        right = self.continuations.get(seq.request_id, [])[seq.num_output :][:max_tokens]
        if self.kind == "perfect":
            return right
        if self.kind == "hopeless":
            return [(token + 1) % self.vocab_size for token in right]
        length = int(self.rng.integers(0, max_tokens + 1))
        draft = right[:length]
        for i in range(len(draft)):
            if self.rng.random() < 0.3:
                draft[i] = int(self.rng.integers(0, self.vocab_size))
        return draft

    def observe(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        assert 0 <= num_accepted <= num_drafted
        self.observed.append((num_drafted, num_accepted))

    def finish(self, seq: Sequence) -> None:
        pass

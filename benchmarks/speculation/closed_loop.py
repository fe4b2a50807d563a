"""A closed loop: a batch that is always full, because each request that ends is replaced at once by the next prompt."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

from realm.core.types import Batch, Float32Array, Request, SamplingParams
from realm.engine.engine import Engine
from realm.kernels.ops import Executor


class KVPart:
    """An executor with a part of another's KV blocks, so that several engines can be in the middle of requests."""

    def __init__(self, executor: Executor, first_block: int, num_blocks: int) -> None:
        assert first_block + num_blocks <= executor.num_kv_blocks
        self.vocab_size = executor.vocab_size
        self.num_kv_blocks = num_blocks
        self._executor = executor
        self._first_block = first_block

    def step(self, batch: Batch) -> Float32Array:
        """As the executor's, on this part."""
        return self._executor.step(replace(batch, block_tables=batch.block_tables + self._first_block))


@dataclass
class Work:
    """What was done while the clock ran."""

    seconds: float = 0.0
    num_tokens: int = 0
    num_steps: int = 0
    num_rows: int = 0
    drafted: int = 0
    accepted: int = 0
    python_seconds: float = 0.0
    """Of `seconds`, outside the target's forward pass and sampling: drafting is in it."""

    def add(self, other: Work) -> None:
        """Count `other` too."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of all requests."""
        return self.num_tokens / self.seconds


@dataclass
class Loop:
    """Keeps `batch_size` requests in flight, in the order of `prompts` over and over.

    The first ones are cut to different lengths, so that from the beginning requests end one by one as they will later.
    """

    engine: Engine
    prompts: Sequence[tuple[int, ...]]
    params: SamplingParams
    batch_size: int
    outputs: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Of requests that have ended, by number, in full."""
    num_tokens: int = 0

    def __post_init__(self) -> None:
        self._numbers: Iterator[int] = itertools.count()
        self._open: dict[str, list[int]] = {}

    def run(self, num_tokens: int) -> Work:
        """Go on until `num_tokens` tokens in all have come since the loop began; what it took."""
        engine, work, before = self.engine, Work(), self.engine.stats()
        num_before = self.num_tokens
        began = time.perf_counter()
        while self.num_tokens < num_tokens:
            while len(self._open) < self.batch_size:
                number = next(self._numbers)
                share = min(1.0, (number + 1) / self.batch_size)
                self._add(number, math.ceil(self.params.max_tokens * share))
            self._step()
        work.seconds = time.perf_counter() - began
        after = engine.stats()
        work.num_tokens = self.num_tokens - num_before
        work.num_steps = after.num_steps - before.num_steps
        work.num_rows = after.num_scheduled_tokens - before.num_scheduled_tokens
        work.drafted = after.num_drafted_tokens - before.num_drafted_tokens
        work.accepted = after.num_accepted_tokens - before.num_accepted_tokens
        native = after.forward_seconds + after.sample_seconds - before.forward_seconds - before.sample_seconds
        work.python_seconds = work.seconds - native
        return work

    def run_once(self, from_first_token: bool) -> float:
        """Complete the first `batch_size` prompts, all in full. Returns the seconds that it took."""
        for number in range(self.batch_size):
            self._add(number, self.params.max_tokens)
        began = time.perf_counter()
        while self.engine.has_work:
            is_first = not self.num_tokens
            self._step()
            if is_first and from_first_token and self.num_tokens:
                began = time.perf_counter()
        return time.perf_counter() - began

    def stop(self) -> None:
        """End what is open."""
        for request_id in self._open:
            self.engine.cancel(request_id)
        while self.engine.has_work:
            self.engine.step()
        self._open.clear()

    def _step(self) -> None:
        for output in self.engine.step():
            self.num_tokens += len(output.token_ids)
            tokens = self._open[output.request_id]
            tokens += output.token_ids
            if output.finish_reason is not None:
                assert output.error is None, output.error
                self.outputs[int(output.request_id)] = tuple(tokens)
                del self._open[output.request_id]

    def _add(self, number: int, max_tokens: int) -> None:
        params = replace(self.params, seed=number, max_tokens=max_tokens)
        self._open[f"{number}"] = []
        self.engine.add(Request(f"{number}", self.prompts[number % len(self.prompts)], params))

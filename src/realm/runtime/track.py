"""One request on the engine thread: its text so far, its clock, and where its events go."""

from __future__ import annotations

from dataclasses import replace

from realm.core.errors import RealmError
from realm.core.types import FinishReason, Request, StepOutput, TokenLogprobs, Usage
from realm.runtime.adapters import Adapter
from realm.runtime.events import Consumer, Event
from realm.runtime.stats import LoopStats
from realm.tokenizer.stream import TextStream


class Track:
    """State of one accepted request. Only the engine thread touches it after `EngineLoop.submit`.

    Args:
        request: What the engine runs.
        index: The choice that its events name.
        text: Its detokeniser.
        consumer: Where its events go.
        stream: One event a step; otherwise a single event at the end, which saves the others' wake-ups.
        arrived: When the call came in, on the loop's clock.
        adapter: What it runs with: held here so that its weights stay for as long.
    """

    __slots__ = (
        "adapter",
        "arrived",
        "consumer",
        "index",
        "last_token_at",
        "logprobs",
        "request",
        "stream",
        "text",
        "token_ids",
        "written",
    )

    def __init__(
        self,
        request: Request,
        index: int,
        text: TextStream,
        consumer: Consumer,
        *,
        stream: bool,
        arrived: float,
        adapter: Adapter | None = None,
    ) -> None:
        self.request = request
        self.index = index
        self.text = text
        self.consumer = consumer
        self.stream = stream
        self.arrived = arrived
        self.adapter = adapter
        self.last_token_at = 0.0
        self.written: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text; the engine is then told to finish the request."""
        return self.text.matched is not None

    def advance(self, output: StepOutput, now: float, stats: LoopStats) -> Event | None:
        """The event that `output` makes, or None if there is nothing to tell yet."""
        token_ids, logprobs, text = output.token_ids, output.logprobs, ""
        if token_ids:
            self._count_tokens(len(token_ids), now, stats)
            before = self.text.num_tokens
            text = self.text.push(token_ids)
            taken = self.text.num_tokens - before
            if taken < len(token_ids):  # verified drafts beyond the stop string
                token_ids, logprobs = token_ids[:taken], logprobs[:taken]
        if output.finish_reason is None:
            if self.stream:
                return Event(self.index, text, token_ids, logprobs)
            self._keep(text, token_ids, logprobs)
            return None
        self._keep(text, token_ids, logprobs)
        return self._last(output.finish_reason, output.usage, output.error, now, stats)

    def fail(self, error: RealmError, reason: FinishReason, now: float, stats: LoopStats) -> Event:
        """The last event of a request that the engine refused, or lost."""
        return self._last(reason, None, error, now, stats)

    def _keep(self, text: str, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...]) -> None:
        """For the last event: all of the output, or for a stream its last step."""
        self.written.append(text)
        self.token_ids.extend(token_ids)
        self.logprobs.extend(logprobs)

    def _last(
        self, reason: FinishReason, usage: Usage | None, error: RealmError | None, now: float, stats: LoopStats
    ) -> Event:
        self.written.append(self.text.flush())
        matched = self.text.matched
        usage = usage or Usage()
        if matched is not None:
            usage = replace(usage, completion_tokens=self.text.num_tokens)
            if error is None:
                reason = FinishReason.STOP
        self._count_request(error.code if error else reason.value, usage, now, stats)
        return Event(
            self.index,
            "".join(self.written),
            tuple(self.token_ids),
            tuple(self.logprobs),
            reason,
            matched,
            usage,
            error,
        )

    def _count_tokens(self, count: int, now: float, stats: LoopStats) -> None:
        stats.tokens_per_step.observe(count)
        if self.last_token_at:
            share = (now - self.last_token_at) / count
            for _ in range(count):
                stats.between_tokens_seconds.observe(share)
        else:
            stats.first_token_seconds.observe(now - self.arrived)
        self.last_token_at = now

    def _count_request(self, outcome: str, usage: Usage, now: float, stats: LoopStats) -> None:
        stats.requests[outcome] += 1
        stats.prompt_tokens += usage.prompt_tokens
        stats.cached_tokens += usage.cached_tokens
        stats.completion_tokens += usage.completion_tokens
        stats.request_seconds.observe(now - self.arrived)

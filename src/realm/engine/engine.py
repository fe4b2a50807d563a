"""One model, many requests, one forward pass a step."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from operator import attrgetter

from realm.cache.block_pool import BlockPool, chain_root
from realm.core.config import EngineConfig
from realm.core.errors import (
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
    RealmError,
    Unavailable,
)
from realm.core.types import FinishReason, Request, StepOutput, TokenLogprobs
from realm.engine.adapters import AdapterSlots, NoAdapters
from realm.engine.admission import check_request
from realm.engine.draft import draft_proposer
from realm.engine.runner import Runner
from realm.engine.sampling import Sampler, SamplingKernels, sampling_of, token_logprobs
from realm.engine.scheduler import Scheduler
from realm.engine.sequence import Sequence
from realm.engine.speculation import Proposer, make_drafter
from realm.engine.stats import EngineStats
from realm.engine.verification import verify
from realm.kernels.ops import Executor
from realm.kernels.sampling_reference import SampleOutputs
from realm.models.draft import DraftModel

_log = logging.getLogger(__name__)
_DEFAULT_MAX_SEQ_LEN = 8192
_by_adapter = attrgetter("adapter_slot")


class Engine:
    """Accepts requests and turns them into tokens, one `step` at a time. Not thread-safe: one thread owns it.

    Every accepted request ends with exactly one `StepOutput` that has a `finish_reason`, whatever happens. A token that
    ends a request (end of sequence, stop token) is counted in its usage but not handed out.

    Args:
        executor: The model. Its KV cache has `num_kv_blocks` blocks of `config.kv_block_tokens` tokens.
        config: Limits. `max_seq_len` is also bounded by the KV cache.
        end_ids: Tokens that end a sequence, unless a request ignores them.
        clock: Seconds, monotonic; requests' deadlines are on it.
        proposer: Source of drafts; lookup, if `config.speculative` asks for it, if None.
        draft: A draft model, used if `config.speculative` is given.
        adapters: Pool of resident adapters; requests for adapters are refused without one.
        sampling: Sampling kernels; the executor's own if None, or the reference where it has none.
    """

    def __init__(
        self,
        executor: Executor,
        config: EngineConfig,
        end_ids: Iterable[int] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        proposer: Proposer | None = None,
        draft: DraftModel | None = None,
        adapters: AdapterSlots | None = None,
        sampling: SamplingKernels | None = None,
    ) -> None:
        self._executor = executor
        self._config = config
        self._end_ids = frozenset(end_ids)
        self._clock = clock
        self._adapters: AdapterSlots = adapters or NoAdapters()
        pool = BlockPool(executor.num_kv_blocks, config.kv_block_tokens, config.prefix_cache)
        self._kv_tokens = pool.num_blocks * pool.block_tokens
        self.max_seq_len = min(config.max_seq_len or _DEFAULT_MAX_SEQ_LEN, self._kv_tokens)
        """Tokens of prompt plus output that one request may have."""
        make_draft = None if draft is None else partial(draft_proposer, draft, config, self.max_seq_len)
        self._drafter = make_drafter(config.speculative, proposer, executor.vocab_size, make_draft)
        self._scheduler = Scheduler(pool, config.max_batch_size, config.max_batch_tokens, self._adapters, self._drafter)
        self._runner = Runner(config.max_batch_size, config.max_batch_tokens, pool.blocks_for(self.max_seq_len))
        self._sampler = Sampler(config.max_batch_size, sampling or sampling_of(executor))
        self._sequences: dict[str, Sequence] = {}
        self._deadlines: list[tuple[float, int, str]] = []
        self._pending: list[StepOutput] = []
        self._num_arrivals = 0
        self._stats = EngineStats()
        self._shut_down = False
        self._stalled = False

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to hand out."""
        return bool(self._sequences or self._pending)

    @property
    def is_stalled(self) -> bool:
        """Whether the last step could do nothing, because all that is open waits for an adapter to be loaded."""
        return self._stalled and not self._pending

    def add(self, request: Request) -> None:
        """Accept a request; its outputs come from `step`.

        Raises:
            InvalidRequest: an empty prompt, a token outside the vocabulary, an id that is already in use.
            ContextLengthExceeded: prompt plus output can't fit.
            UnsupportedParameter, NotFound: its adapter can't be served.
            Overloaded: as many requests wait as are allowed to.
            Unavailable: the engine is shutting down.
        """
        if self._shut_down:
            raise Unavailable("the engine is shutting down")
        if request.request_id in self._sequences:
            raise InvalidRequest(f"request id {request.request_id!r} is in use", param="request_id")
        max_total_tokens = check_request(request, self._executor.vocab_size, self.max_seq_len)
        if request.adapter is not None:
            self._adapters.check(request.adapter)
        limit = self._config.max_queued + self._config.max_batch_size
        if len(self._sequences) >= limit:
            raise Overloaded(f"{self._config.max_queued} requests are waiting already, which is the limit; retry later")
        params = request.params
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self._end_ids
        root = chain_root(request.cache_domain)
        seq = Sequence(request, self._num_arrivals, max_total_tokens, stop_ids, root)
        seq.num_logprobs = min(seq.num_logprobs, self._executor.vocab_size)
        self._num_arrivals += 1
        self._sequences[request.request_id] = seq
        self._scheduler.add(seq)
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, seq.arrival, request.request_id))

    def cancel(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> bool:
        """End a request at once; its terminal event comes from the next `step`. False if it has ended already."""
        seq = self._sequences.get(request_id)
        if seq is None:
            return False
        self._pending.append(self._end(seq, reason))
        return True

    def finish(self, request_id: str, reason: FinishReason = FinishReason.STOP) -> bool:
        """End a request that has reached its goal outside the engine's sight, such as a stop string; as `cancel`."""
        return self.cancel(request_id, reason)

    def step(self) -> list[StepOutput]:
        """One forward pass for everyone who can use it. At most a few outputs for each request, in order.

        Raises nothing that a request or the executor causes: such requests end with `FinishReason.ERROR`.
        """
        started = time.perf_counter()
        self._expire()
        outputs, self._pending = self._pending, []
        self._stalled = False
        if not self._sequences:
            return outputs
        plan: list[Sequence] = []
        try:
            plan = self._schedule(outputs)
            if plan:
                self._run(plan, outputs, started)
            self._stalled = not plan and not outputs
        except Exception:
            _log.exception("a step failed; its %d requests end with an error", len(plan))
            self._fail(plan or self._scheduler.running.copy(), outputs)
        return outputs

    def shut_down(self) -> list[StepOutput]:
        """End everything with `shutting_down` and accept nothing more. Returns the outputs not handed out yet."""
        self._shut_down = True
        outputs, self._pending = self._pending, []
        for seq in list(self._sequences.values()):
            outputs.append(self._end(seq, FinishReason.ERROR, Unavailable("the engine is shutting down")))
        return outputs

    def stats(self) -> EngineStats:
        """A snapshot of the counters and gauges."""
        pool = self._scheduler.pool
        return replace(
            self._stats,
            finished=self._stats.finished.copy(),
            drafted_tokens=self._stats.drafted_tokens.copy(),
            accepted_tokens=self._stats.accepted_tokens.copy(),
            num_preemptions=self._scheduler.num_preemptions,
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            kv_blocks_total=pool.num_blocks,
            kv_blocks_used=pool.num_used,
            kv_blocks_cached=pool.num_cached,
        )

    def check_integrity(self) -> None:
        """Assert that queues, table rows and KV blocks agree; call it between steps."""
        self._scheduler.check_integrity()
        queued = self._scheduler.waiting + self._scheduler.running
        assert {seq.request_id for seq in queued} == set(self._sequences), "a request is lost"
        if self._drafter is not None:
            self._drafter.check_integrity(set(self._sequences))

    def _expire(self) -> None:
        """End requests whose deadline has passed."""
        while self._deadlines and self._deadlines[0][0] <= self._clock():
            _, arrival, request_id = heapq.heappop(self._deadlines)
            seq = self._sequences.get(request_id)
            if seq is not None and seq.arrival == arrival:
                waited = "while it waited for a place in the batch" if seq.num_cached is None else "while it generated"
                error = DeadlineExceeded(f"the request's deadline passed {waited}")
                self._pending.append(self._end(seq, FinishReason.TIMEOUT, error))

    def _schedule(self, outputs: list[StepOutput]) -> list[Sequence]:
        scheduler = self._scheduler
        plan = scheduler.schedule()
        if any([seq.adapter_slot >= 0 for seq in plan]):  # noqa: C419  (a list is quicker here)
            plan.sort(key=_by_adapter)  # rows of one adapter side by side share each read of it
        for seq, error in scheduler.failed:
            outputs.append(self._end(seq, FinishReason.ERROR, error))
        for seq in scheduler.admitted:
            self._runner.load(seq)
            self._sampler.load(seq)
        return plan

    def _run(self, plan: list[Sequence], outputs: list[StepOutput], started: float) -> None:
        """Forward, sample, verify and hand out."""
        stats, clock = self._stats, time.perf_counter
        scheduled = clock()
        batch = self._runner.build(plan)
        built = clock()
        logits = self._executor.step(batch)
        ran = clock()
        judged = [seq for seq in plan if seq.num_computed + seq.num_scheduled >= len(seq.tokens)]
        tokens, sampled = self._sampler.sample(judged, logits) if judged else ([], None)
        drawn = clock()
        self._emit(plan, tokens, sampled, outputs)
        done = clock()
        stats.num_steps += 1
        stats.num_scheduled_tokens += len(batch.token_ids)
        stats.schedule_seconds += scheduled - started
        stats.batch_seconds += built - scheduled
        stats.forward_seconds += ran - built
        stats.sample_seconds += drawn - ran
        stats.emit_seconds += done - drawn
        stats.last_step_seconds = done - started
        if self._drafter is not None and len(batch.logit_rows) == len(batch.token_ids):
            self._drafter.end_step(len(batch.token_ids), drawn - built)

    def _emit(
        self, plan: list[Sequence], tokens: list[int], sampled: SampleOutputs | None, outputs: list[StepOutput]
    ) -> None:
        """Advance each sequence by what was computed and drawn."""
        scheduler = self._scheduler
        block_tokens = scheduler.pool.block_tokens
        row = 0
        for seq in plan:
            if seq.num_computed + seq.num_scheduled < len(seq.tokens):  # in the middle of its prompt
                seq.num_computed += seq.num_scheduled
                scheduler.publish(seq)
                continue
            num_drafts = len(seq.drafts)
            num_known = len(seq.tokens)
            verified = verify(seq, tokens[row : row + num_drafts + 1])
            logprobs: tuple[TokenLogprobs, ...] = ()
            if sampled is not None and seq.num_logprobs >= 0:
                num_emitted = len(seq.tokens) - num_known
                logprobs = tuple([token_logprobs(sampled, row + i, seq.num_logprobs) for i in range(num_emitted)])
            row += num_drafts + 1
            self._stats.num_generated_tokens += verified.num_drawn
            if seq.num_computed // block_tokens > seq.num_published:
                scheduler.publish(seq)
            if num_drafts:
                self._settle_drafts(seq, num_drafts, verified.num_accepted)
            output = StepOutput(seq.request_id, tuple(seq.tokens[num_known:]), logprobs)
            if verified.reason is not None:
                end = self._end(seq, verified.reason, verified.error)
                output = replace(end, token_ids=output.token_ids, logprobs=logprobs)
            outputs.append(output)

    def _settle_drafts(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Count drafts, tell their source, and take back what the rejected ones occupied."""
        assert self._drafter is not None
        self._stats.count_drafts(seq.draft_source, seq.request.tenant_id, num_drafted, num_accepted)
        self._scheduler.truncate(seq)
        self._drafter.observe(seq, num_drafted, num_accepted)

    def _end(self, seq: Sequence, reason: FinishReason, error: RealmError | None = None) -> StepOutput:
        """Take `seq` out, give back what it holds and make its terminal event."""
        self._scheduler.remove(seq)
        if self._drafter is not None:
            self._drafter.finish(seq)
        del self._sequences[seq.request_id]
        self._stats.finished[reason] += 1
        self._stats.num_prompt_tokens += seq.num_prompt if seq.num_cached is not None else 0
        self._stats.num_cached_tokens += seq.num_cached or 0
        return StepOutput(seq.request_id, (), (), reason, error, seq.usage())

    def _fail(self, sequences: list[Sequence], outputs: list[StepOutput]) -> None:
        """End these with an internal error, those that are still there."""
        for seq in sequences:
            if self._sequences.get(seq.request_id) is seq:
                error = Internal("the step that computed this request failed", hint="see the server's log")
                outputs.append(self._end(seq, FinishReason.ERROR, error))

"""Whatever happens around a request, it gives what it gives alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine_harness import Driver, ScriptedProposer
from tests.speculation_harness import FakeDraft, always_draft

from realm.core.config import EngineConfig, SpeculativeConfig
from realm.core.types import AdapterRef, Batch, FinishReason, Request, SamplingParams
from realm.engine.engine import Engine
from realm.models.draft import DraftModel
from realm.testing.clock import FakeClock
from realm.testing.fake import FakeExecutor

VOCAB = 48
KV_TOKENS = 160
ADAPTERS = [None, None, AdapterRef("a", "aa"), AdapterRef("b", "bb"), AdapterRef("c", "cc")]
END_IDS = (7,)
DRAFT_MODEL = SpeculativeConfig(draft_k=2, max_draft_tokens=7, lookup=False)
SPECULATION = {
    "lookup": SpeculativeConfig(lookup_history=True),
    "model": DRAFT_MODEL,
    "wrong model": DRAFT_MODEL,
    "all": SpeculativeConfig(lookup_history=True),
}


class TwoSlots:
    """Adapter slots like those of a real pool: two of them, reference counts, eviction of what nobody holds."""

    def __init__(self, executor_slots: dict[int, str]) -> None:
        self.slots = executor_slots
        self.pins = [0, 0]

    def check(self, ref: AdapterRef) -> None:
        pass

    def acquire(self, ref: AdapterRef) -> int | None:
        for slot, content in self.slots.items():
            if content == ref.content_hash:
                self.pins[slot] += 1
                return slot
        for slot in (0, 1):
            if not self.pins[slot]:
                self.slots[slot] = ref.content_hash
                self.pins[slot] = 1
                return slot
        return None

    def release(self, slot: int) -> None:
        self.pins[slot] -= 1
        assert self.pins[slot] >= 0


@dataclass
class Storm:
    """One random scenario."""

    seed: int
    num_requests: int
    max_batch_size: int
    max_batch_tokens: int
    num_kv_blocks: int
    prefix_cache: bool
    drafts: str
    num_draft_blocks: int
    trouble: float


storms = st.builds(
    Storm,
    seed=st.integers(0, 2**32 - 1),
    num_requests=st.integers(1, 14),
    max_batch_size=st.integers(1, 6),
    max_batch_tokens=st.sampled_from([6, 7, 16, 33, 64, 256]),
    num_kv_blocks=st.integers(KV_TOKENS // 16, 40),
    prefix_cache=st.booleans(),
    drafts=st.sampled_from(["none", "perfect", "random", "hopeless", "lookup", "model", "wrong model", "all"]),
    num_draft_blocks=st.sampled_from([2, 12, 40]),
    trouble=st.sampled_from([0.0, 0.1, 0.4]),
)


def random_request(rng: np.random.Generator, name: str) -> Request:
    """Prompts share prefixes, so that there are prefix hits; domains and adapters differ."""
    adapter = ADAPTERS[rng.integers(len(ADAPTERS))]
    shared = np.random.default_rng(int(rng.integers(3))).integers(0, VOCAB, 60)
    prompt = [*shared[: rng.integers(0, 60)], *rng.integers(0, VOCAB, rng.integers(1, 30))]
    sampled = rng.random() < 0.6
    params = SamplingParams(
        max_tokens=None if rng.random() < 0.1 else int(rng.integers(1, 60)),
        temperature=float(rng.choice([0.5, 1.0, 1.5])) if sampled else 0.0,
        top_p=float(rng.choice([0.8, 1.0])),
        top_k=int(rng.choice([0, 10])),
        min_p=float(rng.choice([0.0, 0.01])),
        repetition_penalty=float(rng.choice([1.0, 1.0, 1.3])),
        presence_penalty=float(rng.choice([0.0, 0.0, 0.7])),
        frequency_penalty=float(rng.choice([0.0, 0.0, 0.3])),
        logit_bias={int(rng.integers(VOCAB)): 2.0} if rng.random() < 0.2 else {},
        seed=int(rng.integers(-(2**62), 2**62)),
        ignore_eos=bool(rng.random() < 0.5),
        logprobs=int(rng.integers(0, 4)) if rng.random() < 0.3 else None,
    )
    domain = adapter.content_hash.encode() if adapter else bytes([rng.integers(2)])
    deadline = float(rng.integers(5, 80)) if rng.random() < 0.1 else None
    return Request(name, tuple(int(t) for t in prompt), params, domain, adapter=adapter, deadline=deadline)


def run_alone(request: Request) -> Driver:
    slots: dict[int, str] = {}
    config = EngineConfig(max_seq_len=KV_TOKENS, kv_block_tokens=16, prefix_cache=False, num_threads=1)
    executor = FakeExecutor(VOCAB, KV_TOKENS // 16, 16, adapters=slots)
    driver = Driver(Engine(executor, config, END_IDS, clock=FakeClock(), adapters=TwoSlots(slots)))
    driver.add(request)
    driver.drain()
    return driver


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(storms)
def test_each_request_gives_what_it_gives_alone(storm: Storm):
    rng = np.random.default_rng(storm.seed)
    requests = [random_request(rng, f"r{i}") for i in range(storm.num_requests)]
    expected = {r.request_id: run_alone(r).results[r.request_id] for r in requests}
    proposer = None
    if storm.drafts in ("perfect", "random", "hopeless"):
        proposer = ScriptedProposer({name: e.token_ids for name, e in expected.items()}, storm.drafts, VOCAB)
    models = storm.drafts in ("model", "wrong model", "all")
    draft = FakeDraft(VOCAB, storm.num_draft_blocks, wrong=storm.drafts == "wrong model") if models else None
    failing = False

    def on_step(batch: Batch) -> None:
        if failing:
            raise RuntimeError("device lost")

    slots: dict[int, str] = {}
    clock = FakeClock()
    config = EngineConfig(
        max_batch_size=storm.max_batch_size,
        max_seq_len=KV_TOKENS,
        max_batch_tokens=storm.max_batch_tokens,
        kv_block_tokens=16,
        prefix_cache=storm.prefix_cache,
        num_threads=1,
        speculative=SPECULATION.get(storm.drafts),
    )
    executor = FakeExecutor(VOCAB, storm.num_kv_blocks, 16, adapters=slots, on_step=on_step)
    adapters = TwoSlots(slots)
    engine = Engine(
        executor,
        config,
        END_IDS,
        clock=clock,
        proposer=proposer,
        adapters=adapters,
        draft=None if draft is None else DraftModel(draft),
    )
    if storm.drafts in SPECULATION:
        always_draft(engine)
    driver = Driver(engine)
    touched: set[str] = set()
    for request in requests:
        driver.add(request)
        for _ in range(rng.integers(0, 8)):
            if rng.random() < storm.trouble:
                victim = f"r{rng.integers(storm.num_requests)}"
                if rng.random() < 0.5:
                    engine.cancel(victim)
                else:
                    engine.finish(victim)
                touched.add(victim)
            failing = rng.random() < storm.trouble / 20
            driver.step()
            failing = False
            clock.advance(1.0)
    driver.drain()
    assert adapters.pins == [0, 0]
    assert draft is None or not draft.failures
    for request in requests:
        result, right = driver.results[request.request_id], expected[request.request_id]
        whole = result.reason in (FinishReason.LENGTH, FinishReason.STOP) and request.request_id not in touched
        length = len(right.token_ids) if whole else len(result.token_ids)
        assert result.token_ids == right.token_ids[:length]
        assert result.logprobs == right.logprobs[: len(result.logprobs)]
        if whole:
            assert result.reason == right.reason
            assert result.usage.completion_tokens == right.usage.completion_tokens
        elif request.request_id not in touched:
            assert result.reason is FinishReason.ERROR or request.deadline is not None

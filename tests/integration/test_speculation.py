"""Drafts never show: the same tokens and log-probabilities, bit for bit, whoever guesses and however wrongly.

On the native kernels, through every sampling rule, alone and in mixed batches with adapters. Drafts are made whatever
they cost (`always_draft`), so that the tests verify many of them and depend on no clock.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.engine_harness import Driver, Result
from tests.speculation_harness import always_draft, draft_proposer_of

from realm.core.config import EngineConfig, SpeculativeConfig
from realm.core.domain import cache_domain
from realm.core.quant import QuantType
from realm.core.types import AdapterRef, Request, SamplingParams
from realm.distill.make import make_draft
from realm.engine.engine import Engine
from realm.gguf.reader import GGUFFile
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.lora.pool import AdapterPool
from realm.models.loader import load_draft, load_model
from realm.testing.tiny import TinyModel, write_tiny_model

pytest.importorskip("realm._cpu", reason="the native module is not built")

MODELS = {
    "llama": TinyModel("llama", QuantType.Q4_1, {"token_embd": QuantType.Q8_0}, num_layers=3),
    "qwen3": TinyModel("qwen3", QuantType.Q4_K, {"ffn_down": QuantType.Q6_K}),
    "gemma3": TinyModel("gemma3", QuantType.Q5_0, sliding_window=24),
}
SOURCES = ("lookup", "perfect", "hopeless", "pruned", "few tokens", "lookup and draft")
NUM_PROMPTS = {"llama": 216, "qwen3": 48, "gemma3": 48}
CONFIG = EngineConfig(
    max_batch_size=24, max_seq_len=160, max_batch_tokens=256, kv_block_tokens=16, kv_cache_tokens=8192, num_threads=1
)


class Model:
    """A tiny model on disk, its adapters, its drafts, and what it gives without drafts."""

    def __init__(self, name: str, folder: Path) -> None:
        self.path = write_tiny_model(folder / "target.gguf", MODELS[name])
        with GGUFFile.open(self.path) as file:
            base = BaseModel.from_gguf(file)
            few = sorted(np.random.default_rng(0).choice(MODELS[name].vocab_size, 200, replace=False).tolist())
            self.drafts = {
                "perfect": self.path,
                "hopeless": write_tiny_model(folder / "hopeless.gguf", replace(MODELS[name], seed=77, num_layers=1)),
                "pruned": make_draft(file, folder / "pruned.gguf", [0]),
                "few tokens": make_draft(file, folder / "few.gguf", [0, 1], few),
            }
        self.drafts["lookup and draft"] = self.drafts["pruned"]
        self.adapters = [random_adapter(base, seed) for seed in range(3)]
        self.requests = [self.request(i) for i in range(NUM_PROMPTS[name])]
        longer = SamplingParams(max_tokens=80, ignore_eos=True, logprobs=2)
        self.long_requests = [
            replace(r, request_id=f"long{i}", params=replace(longer, temperature=0.9 * (i % 2), seed=i))
            for i, r in enumerate(self.requests[:16])
        ]
        plain = self.engine(None, prefix_cache=False)
        self.expected = each_alone(plain, self.requests)
        self.expected_long = each_alone(plain, self.long_requests)

    def engine(self, source: str | None, *, num_draft_tokens: int | None = None, **limits: object) -> Engine:
        """An engine whose drafts come from `source`; without any if None."""
        speculative = (
            None if source is None else SpeculativeConfig(lookup=source.startswith("lookup"), max_draft_tokens=8)
        )
        config = replace(CONFIG, speculative=speculative, **limits)
        loaded = load_model(self.path, config)
        draft = None
        if source in self.drafts:
            draft_config = replace(config, kv_cache_tokens=num_draft_tokens or config.kv_cache_tokens)
            draft = load_draft(self.drafts[source], self.path, loaded, draft_config)
        by_hash = {adapter.content_hash: adapter for adapter in self.adapters}
        pool = AdapterPool(loaded.executor, by_hash.__getitem__, 1 << 30, submit=lambda job: job())
        engine = Engine(loaded.executor, config, (2,), adapters=pool, draft=draft)
        return engine if source is None else always_draft(engine)

    def request(self, i: int) -> Request:
        """Every third with an adapter; prompts that repeat themselves and prompts that don't; every sampling rule."""
        rng = np.random.default_rng(i)
        adapter = self.adapters[i // 3 % 3] if i % 3 == 0 else None
        period = int(rng.integers(2, 30)) if i % 2 else 200
        prompt = np.resize(rng.integers(3, 259, period), rng.integers(1, 70))
        params = SamplingParams(
            max_tokens=int(rng.integers(1, 40)),
            temperature=(0.0, 0.0, 0.3, 0.7, 1.0, 1.5)[i % 6],
            top_k=int(rng.choice([0, 0, 3, 40])),
            top_p=float(rng.choice([1.0, 0.9])),
            min_p=float(rng.choice([0.0, 0.05])),
            repetition_penalty=float(rng.choice([1.0, 1.0, 1.2])),
            presence_penalty=float(rng.choice([0.0, 0.0, 0.6])),
            frequency_penalty=float(rng.choice([0.0, 0.0, 0.4])),
            logit_bias={int(rng.integers(3, 259)): 3.0} if i % 5 == 0 else {},
            seed=int(rng.integers(2**40)),
            ignore_eos=bool(rng.integers(2)),
            logprobs=None if i % 4 == 3 else int(rng.integers(0, 6)),
        )
        domain = cache_domain("t", "m", adapter.content_hash if adapter else "", 1.0, "f16")
        ref = AdapterRef(adapter.adapter_id, adapter.content_hash) if adapter else None
        return Request(f"r{i}", tuple(prompt.tolist()), params, domain, adapter=ref)


def random_adapter(base: BaseModel, seed: int) -> LoRAWeights:
    rng = np.random.default_rng(seed)
    adapter = LoRAWeights(f"a{seed}", 4, 8.0, architecture=base.architecture)
    for name, (rows, columns) in base.modules.items():
        adapter.add_layer_weights(name, rng.normal(0, columns**-0.5, (4, columns)), rng.normal(0, 0.1, (rows, 4)))
    return adapter.bind(base)


def bits(result: Result) -> tuple[object, ...]:
    assert result.usage is not None
    return result.token_ids, result.logprobs, result.reason, result.usage.completion_tokens


def each_alone(engine: Engine, requests: list[Request]) -> dict[str, tuple[object, ...]]:
    driver = Driver(engine)
    for request in requests:
        driver.add(request)
        driver.drain()
    return {name: bits(result) for name, result in driver.results.items()}


def together(engine: Engine, requests: list[Request]) -> dict[str, tuple[object, ...]]:
    driver = Driver(engine)
    driver.add(*requests)
    return {name: bits(result) for name, result in driver.drain().items()}


def assert_drafted(engine: Engine, source: str) -> None:
    """Many drafts, and as many of them right as this source gives; nothing held at the end."""
    stats = engine.stats()
    assert stats.num_drafted_tokens > 100
    rate = stats.num_accepted_tokens / stats.num_drafted_tokens
    assert (rate < 0.05) if source == "hopeless" else (rate > 0), rate
    if (proposer := draft_proposer_of(engine)) is not None:
        assert stats.drafted_by("draft") > 0
        assert proposer.kv.pool.num_used == 0


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("source", SOURCES)
def test_invisible_alone(model: Model, source: str):
    engine = model.engine(source)
    assert each_alone(engine, model.requests) == model.expected
    assert_drafted(engine, source)


def test_a_perfect_draft_is_always_right(model: Model):
    """The target drafts for itself: what either computes with other chunks and other company is the same."""
    engine = model.engine("perfect")
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    plain = [replace(r, params=params, adapter=None, cache_domain=b"") for r in model.requests[:24]]
    together(engine, plain)
    stats = engine.stats()
    assert stats.num_accepted_tokens == stats.num_drafted_tokens > 24 * 25


@pytest.mark.parametrize("source", SOURCES)
def test_invisible_in_mixed_batches(model: Model, source: str):
    """With and without adapters, prefilling, decoding and verifying, in one step; prefixes found in the cache."""
    engine = model.engine(source, num_threads=2)
    assert together(engine, model.requests) == model.expected
    assert_drafted(engine, source)


@pytest.mark.parametrize("source", SOURCES)
def test_invisible_where_everything_is_scarce(model: Model, source: str):
    """Few KV blocks: requests are preempted and drafts find no room. Few rows: drafts are cut."""
    engine = model.engine(source, num_draft_tokens=96, kv_cache_tokens=192, max_batch_size=6, max_batch_tokens=24)
    assert together(engine, model.long_requests) == model.expected_long
    assert engine.stats().num_preemptions > 0
    assert engine.stats().num_drafted_tokens > 0


@pytest.mark.parametrize("source", ["lookup", "perfect", "pruned"])
def test_only_accepted_tokens_are_found_in_the_prefix_cache(model: Model, source: str):
    """A conversation goes on from what was generated with drafts: its cached blocks are worth what fresh ones are."""
    engine = model.engine(source)
    first = replace(model.requests[1], params=SamplingParams(max_tokens=50, temperature=0.0, ignore_eos=True))
    driver = Driver(engine)
    driver.add(first)
    answer = driver.drain()[first.request_id].token_ids
    prompt = (*first.prompt_token_ids, *answer)
    params = replace(first.params, max_tokens=12, logprobs=3)
    going_on = replace(first, request_id="next", prompt_token_ids=prompt, params=params)
    driver.add(going_on)
    found = driver.drain()["next"]
    assert found.usage.cached_tokens >= (len(prompt) - 1) // 16 * 16
    fresh = Driver(model.engine(None, prefix_cache=False))
    fresh.add(going_on)
    assert bits(found) == bits(fresh.drain()["next"])


@pytest.mark.parametrize("source", ["lookup", "perfect", "hopeless"])
def test_requests_cancelled_between_verifications_take_nothing_along(model: Model, source: str):
    rng = np.random.default_rng(3)
    engine = model.engine(source)
    driver = Driver(engine)
    cancelled: set[str] = set()
    for request in model.requests[:40]:
        driver.add(request)
        for _ in range(2):
            driver.step()
        name = f"r{rng.integers(40)}"
        if rng.random() < 0.8 and engine.cancel(name):
            cancelled.add(name)
    driver.drain()
    assert len(cancelled) > 3
    for name, result in driver.results.items():
        whole = model.expected[name]
        if name in cancelled:
            assert result.token_ids == whole[0][: len(result.token_ids)]
        else:
            assert bits(result) == whole


def chi_square_limit(num_degrees: int) -> float:
    """What a chi-square statistic exceeds once in a thousand (Wilson and Hilferty's approximation)."""
    spread = 2 / (9 * num_degrees)
    return num_degrees * (1 - spread + 3.0902 * spread**0.5) ** 3


@pytest.mark.parametrize("source", ["perfect", "hopeless", "few tokens"])
def test_draws_follow_the_distribution(model: Model, source: str):
    """Of 4,000 seeds, the second tokens after each first token, all of them drawn while a draft was verified.

    A verifier that favoured drafts, or shunned them, would show against the probabilities that the model reports.
    """
    num_seeds, temperature, top_k = 4000, 2.0, 12
    params = SamplingParams(max_tokens=3, temperature=temperature, top_k=top_k, logprobs=top_k)
    engine = model.engine(source, max_batch_size=16)
    driver = Driver(engine)
    for seed in range(num_seeds):
        driver.add(Request(f"s{seed}", (100, 120), replace(params, seed=seed)))
        if seed % 16 == 15:
            driver.drain()
    drafted = [result for result in driver.drain().values() if result.usage.drafted_tokens]
    assert len(drafted) > 0.9 * num_seeds
    statistic, num_degrees = 0.0, 0
    for first in {result.token_ids[0] for result in drafted}:
        group = [result for result in drafted if result.token_ids[0] == first]
        top = group[0].logprobs[1].top
        weights = np.exp(np.array([logprob for _, logprob in top]) / temperature)
        expected = len(group) * weights / weights.sum()
        seen = np.array([sum(result.token_ids[1] == token for result in group) for token, _ in top])
        assert seen.sum() == len(group), "a token outside of top_k"
        common = expected >= 5  # the others count as one
        if common.sum() > 1:
            expected = np.append(expected[common], max(expected[~common].sum(), 1e-9))
            seen = np.append(seen[common], seen[~common].sum())
            statistic += float(((seen - expected) ** 2 / expected).sum())
            num_degrees += len(expected) - 1
    assert num_degrees >= 8
    assert statistic < chi_square_limit(num_degrees)

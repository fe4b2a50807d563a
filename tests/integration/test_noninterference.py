"""A request's tokens and log-probabilities are the same bits alone and in any company, on the native kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine_harness import Driver, Result, ScriptedProposer

from realm.core.config import EngineConfig, KVType
from realm.core.quant import QuantType
from realm.core.types import Request, SamplingParams
from realm.engine.engine import Engine
from realm.models.loader import load_model
from realm.testing.tiny import TinyModel, write_tiny_model

ISAS = pytest.importorskip("realm._cpu", reason="the native module is not built").available_isas()

MODELS = {
    "llama": TinyModel("llama", QuantType.Q4_1, {"token_embd": QuantType.Q8_0}),
    "qwen3": TinyModel("qwen3", QuantType.Q4_K, {"ffn_down": QuantType.Q6_K}, num_heads=4, num_kv_heads=1),
    "gemma3": TinyModel("gemma3", QuantType.Q5_0, num_layers=3, sliding_window=24),
}
CONFIG = EngineConfig(
    max_batch_size=40, max_seq_len=256, max_batch_tokens=512, kv_block_tokens=16, kv_cache_tokens=16384, num_threads=1
)


@pytest.fixture(scope="module", params=list(MODELS))
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf", MODELS[request.param])


def engine_of(path: Path, config: EngineConfig = CONFIG, proposer: ScriptedProposer | None = None) -> Engine:
    loaded = load_model(path, config)
    return Engine(loaded.executor, replace(config, max_seq_len=loaded.max_seq_len), proposer=proposer)


def random_request(rng: np.random.Generator, name: str) -> Request:
    prompt = rng.integers(0, 256, rng.integers(1, 90))
    params = SamplingParams(
        max_tokens=int(rng.integers(1, 40)),
        temperature=float(rng.choice([0.0, 0.7, 1.0])),
        top_k=int(rng.choice([0, 20])),
        top_p=float(rng.choice([0.9, 1.0])),
        repetition_penalty=float(rng.choice([1.0, 1.2])),
        frequency_penalty=float(rng.choice([0.0, 0.5])),
        seed=int(rng.integers(2**40)),
        logprobs=int(rng.integers(0, 6)),
    )
    return Request(name, tuple(prompt.tolist()), params)


def subjects() -> list[Request]:
    """The requests whose output is compared: short, long, greedy, sampled."""
    rng = np.random.default_rng(5)
    lengths = (1, 17, 64, 150)
    return [
        Request(
            f"subject{i}",
            tuple(rng.integers(0, 256, length).tolist()),
            SamplingParams(max_tokens=40, temperature=0.8 * (i % 2), seed=i, logprobs=5),
        )
        for i, length in enumerate(lengths)
    ]


def outputs(results: dict[str, Result]) -> dict[str, tuple[object, ...]]:
    return {name: (r.token_ids, r.logprobs, r.reason) for name, r in results.items() if name.startswith("subject")}


def each_alone(path: Path, config: EngineConfig = CONFIG) -> dict[str, tuple[object, ...]]:
    engine = engine_of(path, replace(config, prefix_cache=False))
    expected = {}
    for request in subjects():
        driver = Driver(engine)
        driver.add(request)
        expected |= outputs(driver.drain())
    return expected


@pytest.fixture(scope="module")
def expected(model_path: Path) -> dict[str, tuple[object, ...]]:
    return each_alone(model_path)


def strangers(num: int) -> list[Request]:
    rng = np.random.default_rng(9)
    return [random_request(rng, f"stranger{i}") for i in range(num)]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_among_strangers(model_path: Path, expected: dict[str, object], num_threads: int):
    driver = Driver(engine_of(model_path, replace(CONFIG, num_threads=num_threads)))
    crowd = strangers(32)
    driver.add(*crowd[:16])
    driver.step()
    driver.add(*subjects(), *crowd[16:])
    assert outputs(driver.drain()) == expected


def test_two_threads_alone(model_path: Path, expected: dict[str, object]):
    assert each_alone(model_path, replace(CONFIG, num_threads=2)) == expected


@pytest.mark.parametrize("max_batch_tokens", [5, 16, 37, 512])
def test_chunked_prefill(model_path: Path, expected: dict[str, object], max_batch_tokens: int):
    driver = Driver(engine_of(model_path, replace(CONFIG, max_batch_tokens=max_batch_tokens, max_batch_size=4)))
    driver.add(*subjects())
    assert outputs(driver.drain()) == expected


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_preempted(model_path: Path, expected: dict[str, object], prefix_cache: bool):
    config = replace(CONFIG, kv_cache_tokens=256, prefix_cache=prefix_cache)
    driver = Driver(engine_of(model_path, config))
    driver.add(*subjects(), *strangers(4))
    assert outputs(driver.drain()) == expected
    assert driver.engine.stats().num_preemptions > 0


def test_prefix_hit(model_path: Path, expected: dict[str, object]):
    engine = engine_of(model_path)
    for _ in range(2):
        driver = Driver(engine)
        driver.add(*subjects())
        assert outputs(driver.drain()) == expected
    assert driver.results["subject3"].usage.cached_tokens == 144
    assert driver.results["subject2"].usage.cached_tokens == 48


@pytest.mark.parametrize("kind", ["perfect", "random", "hopeless"])
def test_speculation(model_path: Path, expected: dict[str, tuple[list[int], object, object]], kind: str):
    proposer = ScriptedProposer({name: row[0] for name, row in expected.items()}, kind, vocab_size=256)
    driver = Driver(engine_of(model_path, proposer=proposer))
    driver.add(*subjects(), *strangers(8))
    assert outputs(driver.drain()) == expected
    assert driver.engine.stats().num_drafted_tokens > 0


@pytest.mark.parametrize("kv_type", [KVType.F32, KVType.INT8])
def test_other_kv_types(model_path: Path, kv_type: KVType):
    config = replace(CONFIG, kv_type=kv_type)
    right = each_alone(model_path, config)
    driver = Driver(engine_of(model_path, replace(config, num_threads=2, max_batch_tokens=48)))
    driver.add(*subjects(), *strangers(16))
    assert outputs(driver.drain()) == right
    driver = Driver(driver.engine)
    driver.add(*subjects())
    assert outputs(driver.drain()) == right


@pytest.fixture(scope="module")
def llama_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf", MODELS["llama"])


@pytest.fixture(scope="module")
def run_alone(llama_path: Path) -> Callable[[Request], Result]:
    engine = engine_of(llama_path, replace(CONFIG, prefix_cache=False))

    def run(request: Request) -> Result:
        driver = Driver(engine)
        driver.add(request)
        return driver.drain()[request.request_id]

    return run


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_threads=st.sampled_from([1, 2]),
    max_batch_size=st.integers(1, 8),
    max_batch_tokens=st.sampled_from([8, 21, 64, 256]),
    kv_blocks=st.integers(9, 40),
    kind=st.sampled_from(["none", "perfect", "random", "hopeless"]),
    isa=st.sampled_from(ISAS),
)
def test_random_schedules(
    llama_path: Path,
    run_alone: Callable[[Request], Result],
    seed: int,
    num_threads: int,
    max_batch_size: int,
    max_batch_tokens: int,
    kv_blocks: int,
    kind: str,
    isa: str,
):
    rng = np.random.default_rng(seed)
    requests = [random_request(rng, f"r{i}") for i in range(rng.integers(1, 10))]
    right = {request.request_id: run_alone(request) for request in requests}
    proposer = None if kind == "none" else ScriptedProposer({n: r.token_ids for n, r in right.items()}, kind, 256)
    config = replace(
        CONFIG,
        max_batch_size=max_batch_size,
        max_batch_tokens=max_batch_tokens,
        max_seq_len=140,
        kv_cache_tokens=16 * kv_blocks,
        num_threads=num_threads,
    )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("REALM_CPU_ISA", isa)
        driver = Driver(engine_of(llama_path, config, proposer))
    cancelled = set()
    for request in requests:
        driver.add(request)
        for _ in range(rng.integers(0, 6)):
            driver.step()
            if rng.random() < 0.05:
                cancelled.add(request.request_id)
                driver.engine.cancel(request.request_id)
    driver.drain()
    for name, result in driver.results.items():
        expected = right[name]
        if name in cancelled:
            num_tokens = len(result.token_ids)
            assert result.token_ids == expected.token_ids[:num_tokens]
        else:
            assert (result.token_ids, result.logprobs) == (expected.token_ids, expected.logprobs)


@pytest.mark.model
def test_a_real_model_among_strangers(smollm2_path: Path):
    """SmolLM2 at 2 threads: chunked, batched with 32 others, then from the prefix cache."""
    rng = np.random.default_rng(1)
    config = EngineConfig(max_batch_size=40, max_seq_len=512, max_batch_tokens=96, kv_cache_tokens=8192, num_threads=2)
    subject = Request(
        "subject",
        tuple(rng.integers(0, 49152, 130).tolist()),
        SamplingParams(max_tokens=12, temperature=0.9, seed=4, logprobs=3),
    )
    crowd = [replace(r, params=replace(r.params, max_tokens=6)) for r in strangers(32)]
    engine = engine_of(smollm2_path, config)
    expected = None
    for company in ([], crowd, []):
        driver = Driver(engine)
        driver.add(*company[:16], subject, *company[16:])
        results = outputs(driver.drain())
        expected = expected or results
        assert results == expected
    assert driver.results["subject"].usage.cached_tokens == 128

"""Greedy requests of a model with a large head get the tokens that the whole head gives, and read less of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.engine_harness import Driver

from realm.core.config import EngineConfig
from realm.core.quant import QuantType
from realm.core.types import Batch, Float32Array, Request, SamplingParams
from realm.engine.engine import Engine
from realm.kernels import cpu
from realm.kernels.cpu import NativeExecutor
from realm.kernels.ops import LoRALayer
from realm.models.loader import load_model
from realm.testing.batches import chunk
from realm.testing.tiny import TinyModel, write_tiny_model

MODEL = TinyModel("gemma3", QuantType.Q8_0, vocab_size=4096, num_layers=2, sliding_window=24)
CONFIG = EngineConfig(
    max_batch_size=8, max_seq_len=256, max_batch_tokens=256, kv_block_tokens=16, kv_cache_tokens=4096, num_threads=2
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf", MODEL)


def executor_of(path: Path) -> NativeExecutor:
    executor = load_model(path, CONFIG).executor
    assert isinstance(executor, NativeExecutor)
    return executor


def tokens_of(executor: NativeExecutor, requests: list[Request], at_once: int) -> dict[str, list[int]]:
    driver = Driver(Engine(executor, CONFIG))
    for first in range(0, len(requests), at_once):
        driver.add(*requests[first : first + at_once])
        driver.drain()
    return {name: result.token_ids for name, result in driver.results.items()}


def requests(params: SamplingParams, vocab_size: int = MODEL.vocab_size) -> list[Request]:
    rng = np.random.default_rng(0)
    return [Request(f"r{i}", tuple(rng.integers(0, vocab_size, 5 + 11 * i).tolist()), params) for i in range(6)]


def test_greedy_requests_get_the_tokens_of_the_whole_head(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = executor_of(path)
    work = requests(SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True))
    alone = tokens_of(executor, work, at_once=1)
    assert executor.skipped_bytes != 0  # it was screened (that this saves something is for other sizes)
    assert tokens_of(executor, work, at_once=3) == alone
    assert tokens_of(executor, work, at_once=6) == alone
    monkeypatch.setattr(cpu._Builder, "_screened_head", lambda self, tensors: None)
    whole = executor_of(path)
    assert tokens_of(whole, work, at_once=1) == alone
    assert whole.skipped_bytes == 0


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=9, temperature=1.0),
        SamplingParams(max_tokens=9, temperature=0.0, logprobs=2),
        SamplingParams(max_tokens=9, temperature=0.0, logit_bias={7: 1.0}),
        SamplingParams(max_tokens=9, temperature=0.0, repetition_penalty=1.2),
    ],
    ids=["sampled", "logprobs", "bias", "penalty"],
)
def test_requests_that_want_more_than_the_likeliest_read_the_whole_head(path: Path, params: SamplingParams) -> None:
    executor = executor_of(path)
    tokens_of(executor, requests(params)[:1], at_once=1)
    assert executor.skipped_bytes == 0


def test_rows_whose_adapter_changes_the_head_get_the_whole_head(path: Path) -> None:
    executor = executor_of(path)
    rng = np.random.default_rng(1)
    hidden = MODEL.sizes()[0]
    a = rng.normal(size=(4, hidden)).astype(np.float32)
    b = rng.normal(size=(MODEL.vocab_size, 4)).astype(np.float32)
    executor.set_adapter(0, executor.pack_adapter({"output": LoRALayer(a, b, 1.0)}))

    def logits(slot: int, likeliest_only: bool) -> Float32Array:
        batch: Batch = chunk([5, 6, 7], 0, [0], first_row=2, adapter_slot=slot)
        return executor.step(replace(batch, likeliest_only=likeliest_only)).copy()

    np.testing.assert_array_equal(logits(0, True), logits(0, False))
    assert executor.skipped_bytes == 0
    assert (logits(0, False) != logits(-1, False)).all()
    assert logits(-1, True).argmax() == logits(-1, False).argmax()


def test_a_small_head_stays_whole(tmp_path: Path) -> None:
    executor = executor_of(write_tiny_model(tmp_path / "tiny.gguf", replace(MODEL, vocab_size=600)))
    tokens_of(executor, requests(SamplingParams(max_tokens=9, temperature=0.0), vocab_size=600), at_once=1)
    assert executor.skipped_bytes == 0

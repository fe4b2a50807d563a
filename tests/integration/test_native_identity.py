"""On the native kernels a row's logits are the same bits whatever shares its steps: all families, all tensor types."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from realm.core.config import EngineConfig, KVType, default_threads
from realm.core.quant import QuantType
from realm.core.types import Batch, Float32Array
from realm.kernels.ops import Executor
from realm.models.config import SUPPORTED_ARCHITECTURES
from realm.models.loader import load_model
from realm.testing.batches import logits_in_chunks
from realm.testing.tiny import TinyModel, write_tiny_model

BLOCK_TOKENS = 16
MAX_BATCH_TOKENS = 64
CONFIG = EngineConfig(
    kv_block_tokens=BLOCK_TOKENS,
    kv_cache_tokens=1024,
    max_batch_size=16,
    max_batch_tokens=MAX_BATCH_TOKENS,
    num_threads=1,
)
PROMPT_LENGTHS_TOKENS = (130, 1, 33, 70, 16, 90)


def tiny(architecture: str, quant_type: QuantType) -> TinyModel:
    # A window that is shorter than the prompts, and layers of both kinds where the family has both.
    gemma = architecture == "gemma3"
    return TinyModel(architecture, quant_type, sliding_window=50 if gemma else None, num_layers=6 if gemma else 2)


def prompts(vocab_size: int) -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, vocab_size, n).tolist() for n in PROMPT_LENGTHS_TOKENS]


def alone(executor: Executor, ids: Sequence[int], size: int) -> Float32Array:
    """Logits of every position, nobody else in the batch, `size` tokens a step."""
    return np.concatenate(list(logits_in_chunks(executor, ids, size, BLOCK_TOKENS)))


def together(
    executor: Executor, requests: Sequence[Sequence[int]], rng: np.random.Generator, share_judged: float = 1.0
) -> list[Float32Array]:
    """The same for several requests in steps that mix them at random: chunks of any size, some requests waiting.

    NaN where a row was not judged: each is with a chance of `share_judged`.
    """
    num_blocks = -(-max(map(len, requests)) // BLOCK_TOKENS)
    tables = rng.permutation(executor.num_kv_blocks)[: num_blocks * len(requests)].reshape(len(requests), -1)
    done = [0] * len(requests)
    logits = [np.full((len(ids), executor.vocab_size), np.nan, np.float32) for ids in requests]
    while unfinished := [r for r, ids in enumerate(requests) if done[r] < len(ids)]:
        chosen = rng.permutation(unfinished)[: rng.integers(1, len(unfinished) + 1)]
        budget = MAX_BATCH_TOKENS // len(chosen)
        sizes = [min(int(rng.choice([1, 2, 9, budget])), budget, len(requests[r]) - done[r]) for r in chosen]
        starts = np.cumsum([0, *sizes])
        tokens = [requests[r][done[r] : done[r] + n] for r, n in zip(chosen, sizes, strict=True)]
        judged = np.flatnonzero(rng.random(starts[-1]) < share_judged).astype(np.int32)
        batch = Batch(
            token_ids=np.concatenate(tokens).astype(np.int32),
            query_starts=starts.astype(np.int32),
            context_lens=np.array([done[r] for r in chosen], np.int32),
            block_tables=tables[chosen].astype(np.int32),
            logit_rows=judged,
            adapter_slots=np.full(len(chosen), -1, np.int32),
        )
        rows = np.full((starts[-1], executor.vocab_size), np.nan, np.float32)
        rows[judged] = executor.step(batch)
        for r, n, start in zip(chosen, sizes, starts[:-1], strict=True):
            logits[r][done[r] : done[r] + n] = rows[start : start + n]
            done[r] += n
    return logits


@pytest.mark.parametrize("quant_type", QuantType, ids=lambda t: t.name)
@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
def test_alone_equals_chunked_equals_mixed(architecture: str, quant_type: QuantType, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", tiny(architecture, quant_type))
    one_thread = load_model(path, CONFIG).executor
    requests = prompts(one_thread.vocab_size)
    expected = [alone(one_thread, ids, MAX_BATCH_TOKENS) for ids in requests]
    assert np.isfinite(expected[0]).all()
    assert np.array_equal(alone(one_thread, requests[0], 1), expected[0])
    two_threads = load_model(path, replace(CONFIG, num_threads=2)).executor
    for executor, seed in ((one_thread, 1), (two_threads, 2)):
        for mixed, single in zip(together(executor, requests, np.random.default_rng(seed)), expected, strict=True):
            assert np.array_equal(mixed, single)


def test_more_threads_than_cpus(tmp_path: Path) -> None:
    """Threads that must wait for a CPU sleep at the barriers; none may miss being woken."""
    path = write_tiny_model(tmp_path / "tiny.gguf", tiny("llama", QuantType.Q4_1))
    ids = prompts(load_model(path, CONFIG).executor.vocab_size)[0]
    expected = alone(load_model(path, CONFIG).executor, ids, 1)
    crowded = load_model(path, replace(CONFIG, num_threads=4 * default_threads())).executor
    assert np.array_equal(alone(crowded, ids, 1), expected)


@pytest.mark.parametrize("kv_type", KVType)
def test_every_kv_type_on_every_instruction_set(
    kv_type: KVType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from realm import _cpu

    path = write_tiny_model(tmp_path / "tiny.gguf", tiny("gemma3", QuantType.Q4_1))
    expected: list[Float32Array] = []
    for isa in _cpu.available_isas():
        monkeypatch.setenv("REALM_CPU_ISA", isa)
        executor = load_model(path, replace(CONFIG, kv_type=kv_type, num_threads=2)).executor
        requests = prompts(executor.vocab_size)
        expected = expected or [alone(executor, ids, 64) for ids in requests]
        mixed = together(executor, requests, np.random.default_rng(3))
        assert all(np.array_equal(m, single) for m, single in zip(mixed, expected, strict=True)), isa


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
def test_every_instruction_set_gives_the_same_bits(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from realm import _cpu

    overrides = {"ffn_down": QuantType.Q6_K, "attn_v": QuantType.Q5_1, "token_embd": QuantType.Q8_0}
    model = replace(tiny(architecture, QuantType.Q4_K), quant_overrides=overrides)
    path = write_tiny_model(tmp_path / "tiny.gguf", model)
    logits = {}
    for isa in _cpu.available_isas():
        monkeypatch.setenv("REALM_CPU_ISA", isa)
        executor = load_model(path, CONFIG).executor
        logits[isa] = alone(executor, prompts(executor.vocab_size)[0], 50)
    assert all(np.array_equal(logits[isa], logits["portable"]) for isa in logits)


@pytest.mark.parametrize("share_judged", [0.03, 0.5])
@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
def test_any_rows_may_be_judged(architecture: str, share_judged: float, tmp_path: Path) -> None:
    """The last layer is computed for these only; in some steps there is none."""
    path = write_tiny_model(tmp_path / "tiny.gguf", tiny(architecture, QuantType.Q4_1))
    one_thread, two_threads = (load_model(path, replace(CONFIG, num_threads=n)).executor for n in (1, 2))
    # In float32: one bit more or less would be a thousandth after rounding to float16.
    reference = load_model(path, replace(CONFIG, kv_type=KVType.F32), "reference").executor
    requests = prompts(reference.vocab_size)
    for executor, is_exact in ((one_thread, True), (two_threads, True), (reference, False)):
        expected = [alone(executor, ids, MAX_BATCH_TOKENS) for ids in requests]
        mixed = together(executor, requests, np.random.default_rng(4), share_judged)
        judged = [np.isfinite(rows[:, 0]) for rows in mixed]
        assert 0 < sum(map(sum, judged)) < sum(map(len, requests))
        for rows, which, single in zip(mixed, judged, expected, strict=True):
            if is_exact:
                assert np.array_equal(rows[which], single[which])
            else:
                np.testing.assert_allclose(rows[which], single[which], rtol=1e-4, atol=1e-4)


def test_a_row_that_is_not_judged_changes_nothing(tmp_path: Path) -> None:
    executor = load_model(write_tiny_model(tmp_path / "tiny.gguf", tiny("llama", QuantType.Q4_1)), CONFIG).executor
    ids = prompts(executor.vocab_size)[0]
    expected = alone(executor, ids, 40)
    judged = np.concatenate(list(logits_in_chunks(executor, ids, 40, BLOCK_TOKENS, first=100)))
    assert np.array_equal(judged, expected[100:])

"""Draft models through the runtime: named, chosen, refused with a reason, and never seen in an output."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from tests.runtime_harness import assert_idle
from tests.speculation_harness import always_draft

import realm
from realm.cli.measure_drafts import measure_drafts
from realm.core.config import AUTO_DRAFT, EngineConfig, ModelConfig, SpeculativeConfig
from realm.core.errors import InvalidRequest, ModelFileError, NotFound, UnsupportedParameter
from realm.distill.make import make_draft
from realm.gguf.reader import GGUFFile
from realm.runtime.drafts import shipped_draft
from realm.runtime.manager import RuntimeManager
from realm.testing.tiny import TinyModel, write_tiny_model

pytest.importorskip("realm._cpu", reason="the native module is not built")

OPTIONS = {"max_tokens": 60, "temperature": 0.0, "ignore_eos": True}
DRAFT_ONLY = SpeculativeConfig(lookup=False)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf", TinyModel())


@pytest.fixture(scope="module")
def pruned(path: Path) -> Path:
    with GGUFFile.open(path) as file:
        return make_draft(file, path.with_name("pruned.gguf"), [1])


def runtime_of(**limits: object) -> RuntimeManager:
    return RuntimeManager(EngineConfig(num_threads=1, kv_block_tokens=16, **limits))


def test_a_draft_model_drafts_and_changes_nothing(path: Path, pruned: Path) -> None:
    with runtime_of() as runtime:
        plain = runtime.load_model(ModelConfig(path, "plain"))
        assert plain.limits.max_draft_tokens == 0
        expected = str(plain.generate("hello", **OPTIONS))
        for number, (draft, name) in enumerate(((path, None), (pruned, "small"))):
            model = runtime.load_model(ModelConfig(path, f"m{number}", draft, name))
            model.loop.call(partial(always_draft, model.loop._engine)).result()
            assert model.draft_model_id == (name or "tiny")
            assert model.limits.max_draft_tokens == SpeculativeConfig().max_draft_tokens
            assert str(model.generate("hello", **OPTIONS)) == expected
            assert str(model.generate("hello", speculate=False, **OPTIONS)) == expected
            assert str(model.generate("hello", max_draft_tokens=1, **OPTIONS)) == expected
            assert model.loop.engine_stats().drafted_by("draft") > 0
            assert_idle(model)


def test_load_takes_a_draft(path: Path, pruned: Path) -> None:
    with realm.load(path, draft=pruned, num_threads=1) as model:
        assert model.draft_model_id == "pruned"
        completion = model.generate("hello", **OPTIONS)
        assert completion.usage.drafted_tokens == model.loop.engine_stats().num_drafted_tokens


def test_asking_for_drafts_where_there_are_none(path: Path) -> None:
    with runtime_of() as runtime:
        model = runtime.load_model(ModelConfig(path))
        with pytest.raises(UnsupportedParameter):
            model.generate("hello", speculate=True, **OPTIONS)
        with pytest.raises(InvalidRequest, match="max_draft_tokens"):
            model.generate("hello", max_draft_tokens=0, **OPTIONS)


def test_auto_without_a_shipped_draft_leaves_lookup(path: Path) -> None:
    with runtime_of() as runtime:
        model = runtime.load_model(ModelConfig(path, draft_model_path=AUTO_DRAFT))
        assert model.draft_model_id is None
        assert model.limits.max_draft_tokens > 0


def test_nothing_to_draft_with_is_an_error(path: Path) -> None:
    for draft in (None, AUTO_DRAFT):
        with runtime_of(speculative=DRAFT_ONLY) as runtime, pytest.raises(InvalidRequest, match="no draft model"):
            runtime.load_model(ModelConfig(path, draft_model_path=draft))


def test_a_draft_of_another_vocabulary_is_told(path: Path) -> None:
    other = write_tiny_model(path.with_name("other.gguf"), TinyModel("gemma3"))
    with runtime_of() as runtime, pytest.raises(ModelFileError) as told:
        runtime.load_model(ModelConfig(path, draft_model_path=other))
    assert told.value.code == "draft_mismatch"


def test_files_that_are_no_drafts(path: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"GGUF" + bytes(100))
    with runtime_of() as runtime:
        with pytest.raises(NotFound):
            runtime.set_default_model(ModelConfig(path, draft_model_path=tmp_path / "missing.gguf"))
        with pytest.raises(ModelFileError):
            runtime.load_model(ModelConfig(path, draft_model_path=garbage))


def test_a_draft_file_is_no_model(pruned: Path) -> None:
    with runtime_of() as runtime, pytest.raises(ModelFileError):
        runtime.load_model(pruned)


def test_a_model_has_one_draft(path: Path, pruned: Path) -> None:
    with runtime_of() as runtime:
        first = runtime.load_model(ModelConfig(path, "m", pruned))
        assert runtime.load_model(ModelConfig(path, "m")) is first
        with pytest.raises(InvalidRequest, match="was set with draft"):
            runtime.load_model(ModelConfig(path, "m", path))


def test_bench_measures_the_same_outputs_with_and_without(path: Path, pruned: Path) -> None:
    with realm.load(path, draft=pruned, num_threads=1, max_batch_size=2) as model:
        results = measure_drafts(model, [1, 2], 8)
        assert [(r.work, r.batch_size) for r in results] == [("copy", 1), ("copy", 2), ("chat", 1), ("chat", 2)]
        assert all(r.same_output and r.tokens_per_step >= 1 and r.plain_rate > 0 < r.draft_rate for r in results)


@pytest.mark.model
def test_the_shipped_draft_is_told_by_content(smollm2_path: Path, gemma3_path: Path, path: Path) -> None:
    found = {}
    for model in (smollm2_path, gemma3_path, path):
        with GGUFFile.open(model) as file:
            found[model] = shipped_draft(model, file.metadata)
    assert found.pop(smollm2_path).name == "smollm2-135m-draft.gguf"
    assert set(found.values()) == {None}

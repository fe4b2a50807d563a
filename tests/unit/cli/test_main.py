"""The command line as a user meets it: help, errors, exit codes, listings."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from realm.cli import main as cli
from realm.cli.options import ENGINE
from realm.core.config import EngineConfig
from realm.core.errors import RealmError
from realm.distill.make import make_draft
from realm.gguf.reader import GGUFFile
from realm.testing.tiny import TinyModel, write_tiny_model


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    directory = tmp_path / "models"
    directory.mkdir()
    monkeypatch.setenv("REALM_MODELS", str(directory))
    monkeypatch.setenv("COLUMNS", "200")
    return directory


@pytest.fixture
def tiny(models: Path) -> Path:
    return write_tiny_model(models / "tiny.gguf", TinyModel())


def invoke(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(cli.app, arguments, input=input)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["realm", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, realm.cli.main; print([m for m in ('torch', 'numpy', 'fastapi', 'httpx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command() -> None:
    output = invoke("--help").output
    for command in ("pull", "run", "serve", "bench", "info", "models"):
        assert command in output


def test_defaults_shown_are_those_of_the_configuration() -> None:
    output = invoke("serve", "--help").output
    assert EngineConfig() == ENGINE
    assert f"[default: {ENGINE.max_batch_size}]" in output
    assert f"[default: {ENGINE.max_batch_tokens}]" in output


def test_an_error_is_one_line_and_a_hint(
    monkeypatch: pytest.MonkeyPatch, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "info", "no-such-model") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: no model 'no-such-model'")
    assert lines[1].startswith("hint: known names: smollm2-135m")
    assert len(lines) == 2


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["realm", "--debug", "info", "no-such-model"])
    with pytest.raises(RealmError):
        cli.main()


def test_a_bug_is_told_apart_from_a_mistake(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("realm.cli.info.print_card", broken)
    assert run_main(monkeypatch, "info", str(tiny)) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: ZeroDivisionError: oops",
        "hint: this is a bug in Realm; `realm --debug …` shows where",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("run",),
        ("serve", "x", "--no-such-option"),
        ("serve", "x", "--kv-type", "f8"),
        ("bench", "x", "--batch-sizes", "8,zero"),
        ("bench", "x", "--batch-sizes", "0"),
    ],
)
def test_wrong_usage_is_exit_code_2(monkeypatch: pytest.MonkeyPatch, models: Path, arguments: tuple[str, ...]) -> None:
    assert run_main(monkeypatch, *arguments) == 2


@pytest.mark.parametrize("option", [("--max-batch-size", "0"), ("--port", "70000"), ("--request-timeout", "-1")])
def test_a_value_out_of_range_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    assert run_main(monkeypatch, "serve", str(tiny), *option) == 1
    assert option[0].removeprefix("--").replace("-", "_") in capsys.readouterr().err


def test_models_lists_the_catalogue_and_what_is_on_disk(tiny: Path, models: Path) -> None:
    output = invoke("models").output
    assert "smollm2-135m" in output
    assert "Gemma Terms of Use" in output
    assert "tiny.gguf" in output
    assert str(models) in output


def test_info_prints_a_card(tiny: Path) -> None:
    output = invoke("info", str(tiny)).output
    for label in ("architecture", "parameters", "quantisation", "memory", "tokenizer", "context length"):
        assert label in output
    card = json.loads(invoke("info", "tiny.gguf", "--json").output)
    assert card["architecture"] == TinyModel().architecture


def test_info_of_a_draft_file(tiny: Path) -> None:
    with GGUFFile.open(tiny) as target:
        draft = make_draft(target, tiny.with_name("draft.gguf"), [1], [3, 4, 5])
    assert "drafts for a model: 1 of the model's layers, proposes 3 tokens" in " ".join(
        invoke("info", str(draft)).output.split()
    )
    facts = json.loads(invoke("info", str(draft), "--json").output)["draft"]
    assert (facts["layers"], facts["num_tokens"], facts["own"]) == ([1], 3, True)
    assert json.loads(invoke("info", str(tiny), "--json").output)["draft"] is None


def test_info_of_a_broken_file(
    monkeypatch: pytest.MonkeyPatch, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (models / "broken.gguf").write_bytes(b"GGUF\x03\x00")
    assert run_main(monkeypatch, "info", str(models / "broken.gguf")) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_pull_of_an_unknown_name_lists_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "pull", "gpt-5") == 1
    assert "smollm2-135m, gemma3-270m" in capsys.readouterr().err


def test_version() -> None:
    assert invoke("--version").output.startswith("realm 0.")


def test_a_terminal_that_lacks_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    assert run_main(monkeypatch, "--version") == 0
    sys.stdout.write("größe")  # as a model's answer might
    assert written.getvalue().endswith(b"gr??e")

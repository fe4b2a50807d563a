"""`realm draft` as a user meets it: what it writes, and what it says to bad input."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from realm.cli import main as cli
from realm.core.errors import RealmError
from realm.gguf.reader import GGUFFile
from realm.models.draft import read_draft
from realm.testing.tiny import TinyModel, write_tiny_model


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli-draft") / "target.gguf"
    return write_tiny_model(path, TinyModel(num_layers=6, context_length_tokens=64))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("hello world, said the king\n" * 40)
    return path


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["draft", *map(str, arguments)])


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[str]:
    """What it says on stderr when it ends with 1."""
    monkeypatch.setattr(sys, "argv", ["realm", "draft", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("loading", "writing"))]
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2
    return lines


def test_make_keeps_four_layers_and_all_tokens(target: Path, tmp_path: Path) -> None:
    out = tmp_path / "draft.gguf"
    result = invoke("make", target, "-o", out)
    assert "layers 0,2,3,5" in result.output
    with GGUFFile.open(out) as draft, GGUFFile.open(target) as file:
        read = read_draft(draft, file)
    assert len(read.weights.layers) == 4
    assert read.token_ids is None


def test_make_chooses_tokens_that_a_text_has(target: Path, tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "draft.gguf"
    assert invoke("make", target, "-o", out, "--layers", "1", "--vocab", "5", "--corpus", corpus).exit_code == 0
    with GGUFFile.open(out) as draft, GGUFFile.open(target) as file:
        token_ids = read_draft(draft, file).token_ids
    assert token_ids is not None
    assert len(token_ids) == 5


def test_make_chooses_tokens_that_the_target_writes(target: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a.gguf", "b.gguf")]
    for out in outs:
        result = invoke("make", target, "-o", out, "--vocab", "40", "--tokens", "1000", "--threads", "1")
        assert result.exit_code == 0, result.output
    assert outs[0].read_bytes() == outs[1].read_bytes()
    with GGUFFile.open(outs[0]) as draft:
        assert len(draft.metadata.get_ints("realm.draft.token_ids")) == 40


def test_distill_writes_a_draft_and_tells_how_good_it_is(target: Path, tmp_path: Path) -> None:
    out = tmp_path / "draft.gguf"
    few = ["--tokens", "2000", "--steps", "3", "--batch-tokens", "256", "--device", "cpu", "--threads", "1"]
    result = invoke("distill", target, "-o", out, *few)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["draft", "of", "2", "3", "4", "6", "8"] in lines
    assert {"pruned", "distilled"} <= {line[0] for line in lines if line}
    with GGUFFile.open(out) as draft, GGUFFile.open(target) as file:
        assert "2000 tokens" in draft.metadata.get_str("realm.draft.recipe")
        assert len(read_draft(draft, file).weights.layers) == 4
    assert not out.with_name("draft.gguf.work").exists()


def test_distill_on_a_given_text_keeps_its_work_where_told(target: Path, tmp_path: Path, corpus: Path) -> None:
    out, work = tmp_path / "draft.gguf", tmp_path / "work"
    few = ["--steps", "2", "--batch-tokens", "128", "--device", "cpu", "--threads", "1", "--work", str(work)]
    assert invoke("distill", target, "-o", out, "--corpus", corpus, *few).exit_code == 0
    assert {path.name for path in work.iterdir()} >= {"plan.json", "held-out.npy"}
    assert not list(work.glob("text-*"))


def test_distill_that_is_stopped_says_how_to_go_on(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("realm.cli.draft._distill", stopped)
    result = invoke("distill", target, "-o", tmp_path / "draft.gguf", "--device", "cpu")
    assert result.exit_code == 130
    assert f"the same command goes on with what is in {tmp_path / 'draft.gguf.work'}" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layers", "0,6"], "layer 6 is out of range: the target has layers 0 to 5"),
        (["--layers", "-1"], "layer -1 is out of range"),
        (["--layers", "2,2"], "ascending order"),
        (["--vocab", "321"], "between 1 and 320 tokens"),
        (["--vocab", "0"], "between 1 and 320 tokens"),
        (["--vocab", "8", "--corpus", "no-such-file.txt"], "No such file"),
    ],
)
@pytest.mark.parametrize("command", ["make", "distill"])
def test_what_the_target_does_not_have(
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    arguments: list[str],
    said: str,
) -> None:
    assert said in refused(monkeypatch, capsys, command, target, "-o", tmp_path / "draft.gguf", *arguments)[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("content", "said"), [(b"", "empty"), (b"caf\xe9", "not a text in UTF-8")])
def test_a_corpus_that_is_no_text(
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    said: str,
) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "draft.gguf"
    corpus.write_bytes(content)
    for command in ("make", "distill"):
        arguments = [command, target, "-o", out, "--vocab", "8", "--corpus", corpus]
        assert said in refused(monkeypatch, capsys, *arguments)[0]


def test_a_target_that_is_no_model(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "draft.gguf"
    (tmp_path / "notes.gguf").write_text("not a model at all")
    refused(monkeypatch, capsys, "make", tmp_path / "notes.gguf", "-o", out)
    refused(monkeypatch, capsys, "make", tmp_path / "missing.gguf", "-o", out)
    invoke("make", target, "-o", out)
    assert "a draft itself" in refused(monkeypatch, capsys, "make", out, "-o", tmp_path / "second.gguf")[0]


def test_a_place_that_cannot_be_written(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("make", "distill"):
        out = tmp_path / "no" / "such" / "directory" / "draft.gguf"
        assert str(out.parent) in refused(monkeypatch, capsys, command, target, "-o", out)[0]
    assert not list(tmp_path.iterdir())


def test_a_corpus_without_a_vocabulary_is_not_ignored(target: Path, tmp_path: Path, corpus: Path) -> None:
    assert invoke("make", target, "-o", tmp_path / "draft.gguf", "--corpus", corpus).exit_code == 2


def test_without_torch_distill_says_what_to_install(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    lines = refused(monkeypatch, capsys, "distill", target, "-o", tmp_path / "draft.gguf")
    assert lines == [
        "error: distilling needs torch, which is not installed",
        "hint: pip install 'realm[torch]'",
    ]


def test_a_gpu_that_is_not_there(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = invoke("distill", target, "-o", tmp_path / "draft.gguf", "--device", "cuda")
    assert isinstance(result.exception, RealmError)
    assert "CUDA" in result.exception.message

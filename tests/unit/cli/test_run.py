"""`realm run` and `realm bench` on a tiny model: answers, chat, interruption, measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from realm.cli import main as cli
from realm.cli import run as run_module
from realm.cli.run import Chat
from realm.core.errors import ContextLengthExceeded
from realm.runtime.load import load
from realm.runtime.model import Model
from realm.testing.tiny import TinyModel, write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("cli") / "tiny.gguf", TinyModel())


@pytest.fixture(scope="module")
def model(tiny: Path) -> Iterator[Model]:
    with load(tiny, max_batch_size=1, max_seq_len=128, num_threads=1) as loaded:
        yield loaded


def test_run_prints_the_same_text_as_python(tiny: Path, model: Model) -> None:
    expected = model.generate("hello", max_tokens=6, temperature=0.0)
    arguments = ["run", str(tiny), "hello", "--raw", "--max-tokens", "6", "--temperature", "0", "--threads", "1"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.output == f"{expected.text}\n"
    piped = CliRunner().invoke(cli.app, [*arguments[:2], "-", *arguments[3:]], input="hello")
    assert piped.output == result.output


def test_a_piped_chat_prints_answers_only(tiny: Path, model: Model) -> None:
    expected = model.generate("hello", max_tokens=6, temperature=0.0)
    arguments = ["run", str(tiny), "--raw", "--max-tokens", "6", "--temperature", "0", "--threads", "1"]
    assert CliRunner().invoke(cli.app, arguments, input="hello\n\nhello\n").output == f"{expected.text}\n" * 2


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Prompts that the chat sends; each is answered with its count."""
    prompts: list[object] = []

    def answer(_model: object, prompt: object, _options: object) -> str:
        prompts.append(prompt)
        return f"answer {len(prompts)}"

    monkeypatch.setattr(run_module, "stream_answer", answer)
    return prompts


def chat(monkeypatch: pytest.MonkeyPatch, model: Model, lines: list[str], *, raw: bool = False) -> None:
    feed = iter(lines)

    def read(_prompt: str) -> str:
        try:
            return next(feed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    Chat(model, "Be kind.", {}, raw=raw).loop()


def test_a_chat_remembers_what_was_said(monkeypatch: pytest.MonkeyPatch, model: Model, asked: list[object]) -> None:
    chat(monkeypatch, model, ["one", "", "two", "/exit", "never"])
    system = {"role": "system", "content": "Be kind."}
    first = {"role": "user", "content": "one"}
    assert asked[0] == [system, first]
    assert asked[1] == [system, first, {"role": "assistant", "content": "answer 1"}, {"role": "user", "content": "two"}]
    assert len(asked) == 2


def test_chat_commands(monkeypatch: pytest.MonkeyPatch, model: Model, asked: list[object]) -> None:
    chat(monkeypatch, model, ["one", "/clear", "two", "/system Be brief.", "three", "/help"])
    assert asked[1] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "two"}]
    assert asked[2] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "three"}]


def test_a_base_model_continues_the_line(monkeypatch: pytest.MonkeyPatch, model: Model, asked: list[object]) -> None:
    chat(monkeypatch, model, ["once upon a time"], raw=True)
    assert asked == ["once upon a time"]


@pytest.mark.parametrize("end", [KeyboardInterrupt(), ContextLengthExceeded("too long")])
def test_an_answer_that_breaks_off_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, model: Model, capsys: pytest.CaptureFixture[str], end: BaseException
) -> None:
    prompts: list[list[dict[str, str]]] = []

    def answer(_model: object, prompt: list[dict[str, str]], _options: object) -> str:
        prompts.append(prompt)
        if len(prompts) == 1:
            raise end
        return "fine"

    monkeypatch.setattr(run_module, "stream_answer", answer)
    chat(monkeypatch, model, ["one", "two"])
    assert [m["content"] for m in prompts[1]] == ["Be kind.", "two"]
    assert ("hint: /clear" in capsys.readouterr().err) == isinstance(end, ContextLengthExceeded)


def test_an_interrupted_answer_leaves_nothing_running(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting:
        def write(self, _text: str) -> None:
            raise KeyboardInterrupt

        def flush(self) -> None:
            pass

    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", Interrupting())
        with pytest.raises(KeyboardInterrupt):
            run_module.stream_answer(model, "hello", {"max_tokens": 100, "ignore_eos": True})
    assert model.generate("hello", max_tokens=1, temperature=0.0).finish_reason in ("length", "stop")
    assert model.loop.num_open == 0


def test_bench_writes_a_row(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["bench", str(tiny), "--batch-sizes", "1,2", "--context", "8", "--prefill", "16", "--steps", "8"]
    result = CliRunner().invoke(cli.app, [*arguments, "--threads", "1", "--profile", "--out", str(out)])
    assert result.exit_code == 0, result.output
    row = json.loads(out.read_text())
    assert [d["batch_size"] for d in row["decode"]] == [1, 2]
    assert all(d["tokens_per_second"] > 0 and 0 <= d["python_share"] <= 1 for d in row["decode"])
    assert row["prefill"]["tokens_per_second"] > 0
    assert {"cpu", "num_cores", "isa"} <= set(row["machine"])
    assert row["commit"]

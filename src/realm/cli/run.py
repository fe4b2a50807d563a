"""`realm run`: one answer, or a chat, in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from realm.cli.options import (
    ENGINE,
    SPECULATIVE,
    DeviceOption,
    DraftOption,
    KVTypeOption,
    MaxDraftTokens,
    MaxSeqLen,
    Model,
    SpeculateOption,
    Threads,
    speculation,
)
from realm.core.config import AUTO_DRAFT
from realm.core.errors import RealmError

if TYPE_CHECKING:
    from realm.runtime.model import Model as LoadedModel
    from realm.runtime.model import Options, Prompt

_CHAT_HELP = "/exit ends, /clear forgets the chat, /system TEXT sets the system message; Ctrl-C stops an answer"


def run(
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(help="What to say; - reads it from stdin. Without it: a chat.")
    ] = None,
    system: Annotated[
        str, typer.Option(help='System message of the chat; "" for the one in the model\'s template.')
    ] = "You are a helpful assistant.",
    raw: Annotated[bool, typer.Option("--raw", help="Complete the text as it is, without the chat template.")] = False,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens to generate at most.  [default: what the context leaves]")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that make up this probability.")] = 0.95,
    top_k: Annotated[int, typer.Option(help="Draw from this many likeliest tokens; 0: all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Draw the same again.  [default: random]")] = None,
    max_seq_len: MaxSeqLen = ENGINE.max_seq_len,
    kv_type: KVTypeOption = ENGINE.kv_type,
    speculate: SpeculateOption = "auto",
    draft: DraftOption = AUTO_DRAFT,
    max_draft_tokens: MaxDraftTokens = SPECULATIVE.max_draft_tokens,
    threads: Threads = ENGINE.num_threads,
    device: DeviceOption = "cpu",
) -> None:
    """Answer a prompt, streamed; or chat when there is no prompt."""
    from realm.cli.progress import fetch_model
    from realm.runtime.load import load

    if prompt == "-":
        prompt = sys.stdin.read()
    speculative, draft_path = speculation(speculate, draft, max_draft_tokens)
    path = fetch_model(model)
    options: Options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
    }
    with load(
        path,
        draft=draft_path,
        device=device,
        max_batch_size=1,
        max_seq_len=max_seq_len,
        kv_type=kv_type,
        num_threads=threads,
        speculative=speculative,
    ) as loaded:
        raw = raw or not loaded.has_chat_template
        if prompt is None:
            Chat(loaded, system, options, raw=raw).loop()
            return
        text: Prompt = prompt if raw else [*_system_message(system), {"role": "user", "content": prompt}]
        try:
            stream_answer(loaded, text, options)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _system_message(system: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}] if system else []


def stream_answer(model: LoadedModel, prompt: Prompt, options: Options) -> str:
    """Print the answer as it comes and return it. Interrupted, it is cancelled and what came is kept on screen."""
    pieces: list[str] = []
    generation = model.stream(prompt, **options)
    try:
        for event in generation:
            pieces.append(event.text)
            sys.stdout.write(event.text)
            sys.stdout.flush()
    finally:
        generation.close()
        sys.stdout.write("\n")
        sys.stdout.flush()
    return "".join(pieces)


class Chat:
    """A conversation in the terminal. Base models, which have no chat template, continue each line as it is."""

    def __init__(self, model: LoadedModel, system: str, options: Options, *, raw: bool) -> None:
        self._model = model
        self._system = system
        self._options = options
        self._raw = raw
        self._messages: list[dict[str, str]] = []

    def loop(self) -> None:
        """Read and answer until /exit or the end of input."""
        _enable_line_editing()
        mark = ""
        if sys.stdin.isatty():  # piped input is not answered by a prompt
            typer.echo(_CHAT_HELP, err=True)
            mark = ">>> "
        while True:
            try:
                line = input(mark).strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                typer.echo("\n(type /exit or Ctrl-D to leave)", err=True)
                continue
            if line == "/exit":
                return
            if line:
                self._handle(line)

    def _handle(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        if command == "/clear":
            self._messages.clear()
        elif command == "/system":
            self._system = argument
            self._messages.clear()
        elif command.startswith("/"):
            typer.echo(_CHAT_HELP, err=True)
        else:
            self._answer(line)

    def _answer(self, line: str) -> None:
        self._messages.append({"role": "user", "content": line})
        prompt: Prompt = line if self._raw else [*_system_message(self._system), *self._messages]
        try:
            answer = stream_answer(self._model, prompt, self._options)
        except KeyboardInterrupt:
            self._messages.pop()  # half an answer would be taken for a whole one
            return
        except RealmError as error:
            self._messages.pop()
            typer.echo(f"error: {error.message}", err=True)
            if error.code == "context_length_exceeded":
                typer.echo("hint: /clear starts a new chat", err=True)
            return
        self._messages.append({"role": "assistant", "content": answer})


def _enable_line_editing() -> None:
    """Arrow keys and history in `input`, where Python was built with readline."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return

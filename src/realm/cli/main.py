"""The `realm` command. Commands import what they need when they run, so that `realm --help` is quick."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from realm.cli import adapters, bench, draft, info, models, pull, run, serve
from realm.core.errors import RealmError

app = typer.Typer(
    name="realm",
    help="Serve one GGUF model to many: all requests share one continuously batched forward pass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"realm {version('realm')}")
        raise typer.Exit


@app.callback()
def _global_options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", envvar="REALM_DEBUG")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    global _show_tracebacks
    _show_tracebacks = debug


_show_tracebacks = False

app.command()(pull.pull)
app.command()(run.run)
app.command()(serve.serve)
app.command()(bench.bench)
app.command()(info.info)
app.command()(models.models)
app.add_typer(adapters.app, name="adapters")
app.add_typer(draft.app, name="draft")


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed (one line and a hint on stderr), 2 wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a model may write what the terminal's encoding lacks
    try:
        app()
    except RealmError as error:
        if _show_tracebacks:
            raise
        typer.echo(f"error: {error.message}", err=True)
        if error.hint:
            typer.echo(f"hint: {error.hint}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # `realm … | head`: the reader has gone, and there is nobody to tell
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if _show_tracebacks:
            raise
        typer.echo(f"error: {type(error).__name__}: {error}", err=True)
        typer.echo("hint: this is a bug in Realm; `realm --debug …` shows where", err=True)
        sys.exit(1)

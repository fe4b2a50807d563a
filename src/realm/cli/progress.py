"""Progress bars for downloads, and the one call that makes a model argument a file."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class DownloadBars:
    """One bar for each file, on stderr; plain lines when it is not a terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> DownloadBars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def progress(self, label: str, done_bytes: int, total_bytes: int | None) -> None:
        """Move the bar of one file."""
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total_bytes)
        self._bars.update(self._tasks[label], completed=done_bytes, total=total_bytes)

    def notify(self, line: str) -> None:
        """Print a line above the bars."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def fetch_model(model: str, source: str | None = None) -> Path:
    """Path of a model given by catalogue name, path or URL; downloads it, showing progress, if it is missing."""
    from realm.runtime.catalogue import CATALOGUE, local_path
    from realm.runtime.download import ensure_model

    if local_path(model).is_file() and source is None:
        return ensure_model(model)
    entry = CATALOGUE.get(model)
    with DownloadBars() as bars:
        if entry is not None and entry.license_note:
            bars.notify(f"{entry.title} comes under the {entry.license}. {entry.license_note}")
        return ensure_model(model, source=source, progress=bars.progress, notify=bars.notify)

"""Progress bars for downloads, and the one call that makes a model argument a file."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_LINE_SECONDS = 10.0


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


class StageBars:
    """A bar for each stage of a long job, on stderr; a line now and then when it is not a terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._next_line = 0.0

    def __enter__(self) -> StageBars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def report(self, stage: str, done: int, total: int, remark: str) -> None:
        """`stage` has come to `done` of `total`."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, remark=remark)
        self._bars.update(self._tasks[stage], completed=done, total=total, remark=remark)
        if not self.console.is_terminal and (time.monotonic() >= self._next_line or done == total):
            self._next_line = time.monotonic() + _LINE_SECONDS
            line = f"{stage}: {done} of {total}"
            self.console.print(f"{line}, {remark}" if remark else line, highlight=False, markup=False, soft_wrap=True)


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

"""Resident memory of a process while it runs."""

from __future__ import annotations

import statistics
import threading

import psutil


class MemoryWatch:
    """Samples the resident memory of the biggest process in a tree, four times a second."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.25):
            try:
                root = psutil.Process(self._pid)
                self._samples.append(max(p.memory_info().rss for p in (root, *root.children(recursive=True))))
            except psutil.Error:
                continue

    def finish(self) -> tuple[int, int]:
        """(peak, steady) in bytes; steady is the median of the second half of the run."""
        self._stop.set()
        self._thread.join()
        if not self._samples:
            return 0, 0
        return max(self._samples), int(statistics.median(self._samples[len(self._samples) // 2 :]))

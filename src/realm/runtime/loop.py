"""The engine's thread: takes requests in, steps the engine, hands every request's events out.

The engine is synchronous and knows one thread, this one. Everything else talks to it through `submit`, `cancel` and
`call`, which only leave a note for the thread and never wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

from realm.core.errors import Internal, RealmError, Unavailable
from realm.core.types import FinishReason
from realm.engine.engine import Engine
from realm.engine.stats import EngineStats
from realm.runtime.events import Event
from realm.runtime.stats import LoopStats
from realm.runtime.track import Track

logger = logging.getLogger(__name__)

# How long deadlines may go unseen while every open request waits for an adapter.
_STALLED_SECONDS = 0.05

T = TypeVar("T")
Deliveries: TypeAlias = list[tuple[Track, Event]]


class EngineLoop:
    """Runs one engine on a thread of its own.

    Every submitted request gets exactly one last event, whatever happens: also when the engine refuses it, breaks
    down, or the loop is closed under it.

    Args:
        engine: Used by the loop's thread only.
        name: Of the thread.
        clock: Seconds, monotonic; the same clock as the engine's.
    """

    def __init__(
        self, engine: Engine, *, name: str = "realm-engine", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stats = LoopStats()
        self.clock = clock
        self._engine = engine
        self._tracks: dict[str, Track] = {}
        self._notes: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._closing = False
        self._failure: str | None = None
        self._deliveries: Deliveries = []
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str | None:
        """What broke the engine, if something did; it takes no requests any more."""
        return self._failure

    @property
    def num_open(self) -> int:
        """Requests accepted and not yet ended."""
        return len(self._tracks)

    def engine_stats(self) -> EngineStats:
        """The engine's counters, without waiting for its step to end: gauges may be a step apart."""
        return self._engine.stats()

    def submit(self, tracks: Sequence[Track]) -> None:
        """Queue requests; each gets its events from now on. From any thread.

        Raises:
            Unavailable: the loop is closed, its engine broke down, or this is a fork of the process that made it.
        """
        self._note(lambda: self._add_all(tracks))

    def cancel(self, request_ids: Sequence[str]) -> None:
        """End requests; those that have ended, or never were, are left alone. From any thread."""
        with contextlib.suppress(Unavailable):  # then they have had their last event
            self._note(lambda: [self._engine.cancel(i) for i in request_ids])

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` on the engine's thread between two steps, where it may look at the engine."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as e:
                future.set_exception(e)

        self._note(run)
        return future

    def wake(self) -> None:
        """An adapter that requests wait for may be ready. From any thread."""
        with contextlib.suppress(Unavailable):
            self._note(lambda: None)

    def close(self) -> None:
        """End what is open with an error, and the thread. Returns when it has ended; calling it twice is fine."""
        if os.getpid() != self._pid:
            return  # nothing of it runs here
        with self._wake:
            self._closing = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _note(self, note: Callable[[], Any]) -> None:
        if os.getpid() != self._pid:  # looked at before the lock, which may have been taken when the process forked
            raise Unavailable(
                "the model's thread did not come along into this forked process",
                code="forked",
                hint="load the model after forking",
            )
        with self._wake:
            if self._failure is not None:
                raise Unavailable("the model's engine broke down and takes no requests", code="engine_failed")
            if self._closing:
                raise Unavailable("the model is being unloaded", code="shutting_down")
            self._notes.append(note)
            self._wake.notify()

    def _run(self) -> None:
        error: RealmError = Unavailable("the server is shutting down", code="shutting_down")
        try:
            while self._take_notes():
                if self._engine.has_work:
                    self._step()
        except Exception as e:
            logger.exception("the engine broke down")
            error = Internal("the engine broke down", code="engine_failed")
            self._failure = f"{type(e).__name__}: {e}"
        finally:
            self._end_all(error)

    def _take_notes(self) -> bool:
        """Carry out what other threads asked for, asleep while there is nothing to do. False: time to end."""
        with self._wake:
            while not self._notes and not self._closing and not self._engine.has_work:
                self._wake.wait()
            if self._engine.is_stalled and not self._notes and not self._closing:
                self._wake.wait(_STALLED_SECONDS)
            notes, self._notes = self._notes, []
            closing = self._closing
        for note in notes:
            note()
        self._flush()
        return not closing

    def _add_all(self, tracks: Sequence[Track]) -> None:
        for track in tracks:
            try:
                self._engine.add(track.request)
            except RealmError as e:
                event = track.fail(e, FinishReason.ERROR, self.clock(), self.stats)
                self._deliveries.append((track, event))
            else:
                self._tracks[track.request.request_id] = track

    def _step(self) -> None:
        began = self.clock()
        outputs = self._engine.step()
        now = self.clock()
        stats, tracks, deliveries = self.stats, self._tracks, self._deliveries
        stats.step_seconds.observe(now - began)
        stats.batch_size.observe(len(outputs))
        for output in outputs:
            track = tracks[output.request_id]
            event = track.advance(output, now, stats)
            if event is not None:
                deliveries.append((track, event))
            if output.finish_reason is not None:
                del tracks[output.request_id]
            elif track.stopped:
                self._engine.finish(output.request_id, FinishReason.STOP)
        self._flush()

    def _flush(self) -> None:
        """Hand out what has gathered, with one wake-up for each event loop."""
        if not self._deliveries:
            return
        deliveries, self._deliveries = self._deliveries, []
        by_loop: dict[asyncio.AbstractEventLoop, Deliveries] = {}
        for track, event in deliveries:
            if track.consumer.loop is None:
                track.consumer.deliver(event)
            else:
                by_loop.setdefault(track.consumer.loop, []).append((track, event))
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver_all, items)
            except RuntimeError:  # that event loop is closed: nobody is left to listen
                for track, _ in items:
                    self._engine.cancel(track.request.request_id)

    def _end_all(self, error: RealmError) -> None:
        """The thread's last act: one last event for everything open, also for what was still to be added."""
        with self._wake:
            self._closing = True
            notes, self._notes = self._notes, []
        with contextlib.suppress(Exception):  # an engine that broke down may be past shutting down
            self._engine.shut_down()
        for note in notes:
            note()
        now = self.clock()
        for track in self._tracks.values():
            self._deliveries.append((track, track.fail(error, FinishReason.ERROR, now, self.stats)))
        self._tracks.clear()
        self._flush()


def _deliver_all(deliveries: Deliveries) -> None:
    """Hand out one step's events: the one callback an event loop gets for a step."""
    for track, event in deliveries:
        track.consumer.deliver(event)

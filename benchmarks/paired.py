"""Two engines beside each other in one process: how fast one is beside the other, with an interval.

A machine's speed may change by 10% from one second to the next, and two copies of one model differ by how their memory
happens to lie. So the engines take turns in segments of a few steps, in an order that cancels a drift; each segment is
paired with its neighbours of the other engine; and the two roles are swapped between the copies from round to round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from realm.engine.engine import Engine

SEGMENT_ORDER = "ABBABAABBAABABBA"  # Thue-Morse: each four segments cancel a linear drift
SEGMENT_STEPS, UNTIMED_STEPS = 12, 2  # what a segment's first steps cost depends on what was in the caches
STEPS_PER_ROUND = (SEGMENT_STEPS + UNTIMED_STEPS) * len(SEGMENT_ORDER) // 2
_REST_SECONDS = 0.001  # by then the other engine's threads have stopped to wait for its next step

Start = Callable[[], Engine]
"""Gives an engine whose requests all decode, for `STEPS_PER_ROUND` steps at least."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of the candidate as a share of the reference's: the median of pairs of segments, and 95% of bootstraps."""

    ratio: float
    low: float
    high: float
    num_pairs: int
    reference_step_ms: float
    candidate_step_ms: float

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Speed:
        """From rounds in pairs, the roles swapped in each second one."""
        logs = np.log([r.ratios for r in rounds])
        pairs = (logs[::2] + logs[1::2]).ravel() / 2
        medians = np.median(np.random.default_rng(0).choice(pairs, (4000, len(pairs))), axis=1)
        ratio, low, high = np.exp([np.median(pairs), *np.quantile(medians, [0.025, 0.975])]).tolist()
        reference_ms = statistics.median([s for r in rounds for s in r.reference]) * 1e3
        candidate_ms = statistics.median([s for r in rounds for s in r.candidate]) * 1e3
        return cls(ratio, low, high, len(pairs), reference_ms, candidate_ms)

    def as_row(self) -> dict[str, float]:
        """For a file of results."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of all segments: seconds of each step, and the candidate's speed beside the reference's by fours."""

    reference: list[float]
    candidate: list[float]
    ratios: list[float]


def run_round(start_reference: Start, start_candidate: Start) -> Round:
    """Both engines' segments in turn."""
    engines = {"A": start_reference(), "B": start_candidate()}
    steps: dict[str, list[float]] = {"A": [], "B": []}
    ratios = []
    for begin in range(0, len(SEGMENT_ORDER), 4):
        four: dict[str, list[float]] = {"A": [], "B": []}
        for name in SEGMENT_ORDER[begin : begin + 4]:
            four[name] += segment(engines[name])
        ratios.append(statistics.median(four["A"]) / statistics.median(four["B"]))
        for name, seconds in four.items():
            steps[name] += seconds
    for engine in engines.values():
        engine.shut_down()
    return Round(steps["A"], steps["B"], ratios)


def segment(engine: Engine) -> list[float]:
    """Seconds of each timed step."""
    time.sleep(_REST_SECONDS)
    for _ in range(UNTIMED_STEPS):
        engine.step()
    seconds = []
    for _ in range(SEGMENT_STEPS):
        began = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - began)
    return seconds

"""What every engine is asked to do, and how a worker reports: one JSON object on the last line of its output."""

from __future__ import annotations

import argparse
import json
import random
import statistics
from dataclasses import dataclass

DECODE_STEPS = 64
"""Decode steps that are timed, once every request of the batch has its first token."""
PREFILL_REPEATS = 5
TOKEN_IDS = range(1000, 40000)
"""Prompts are random ids of ordinary tokens: no two share a prefix, and every engine gets the same ones."""


@dataclass(frozen=True)
class Scenario:
    """`kind` is "decode" (tokens/s over a batch that only decodes) or "prefill" (prompt tokens/s of one request)."""

    name: str
    title: str
    kind: str
    batch_size: int
    prompt_tokens: int
    """Of each request: a decode scenario's context."""

    @property
    def is_long(self) -> bool:
        """Runs in a process of its own, so that the memory of the others is not judged by it."""
        return self.prompt_tokens > 512


SCENARIOS = {
    s.name: s
    for s in (
        Scenario("decode-b1-c128", "decode, 1 request, context 128", "decode", 1, 128),
        Scenario("decode-b8-c128", "decode, 8 requests, context 128", "decode", 8, 128),
        Scenario("decode-b32-c128", "decode, 32 requests, context 128", "decode", 32, 128),
        Scenario("prefill-512", "prefill of 512 tokens", "prefill", 1, 512),
        Scenario("decode-b32-c1024", "decode, 32 requests, context 1,024", "decode", 32, 1024),
    )
}


def parse_scenarios(text: str) -> list[Scenario]:
    """Of a comma-separated list of names.

    Raises:
        argparse.ArgumentTypeError: a name that is not known.
    """
    unknown = [name for name in text.split(",") if name not in SCENARIOS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    return [SCENARIOS[name] for name in text.split(",")]


def worker_arguments() -> argparse.ArgumentParser:
    """The command line of a worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--scenarios", type=parse_scenarios, required=True)
    return parser


def prompt(scenario: Scenario, index: int, repeat: int = 0) -> list[int]:
    """Token ids of one request's prompt."""
    rng = random.Random(f"{scenario.name}/{index}/{repeat}")
    return [rng.choice(TOKEN_IDS) for _ in range(scenario.prompt_tokens)]


def decode_rate(arrivals: list[float], batch_size: int, first_tokens_at: float) -> float:
    """Tokens/s of the steps after every request has its first token.

    Args:
        arrivals: Time of each later token, in order, in seconds.
        batch_size: Requests that decode together.
        first_tokens_at: When the last request got its first token.
    """
    assert len(arrivals) >= batch_size * 8, "too few tokens to time"
    return len(arrivals) / (arrivals[-1] - first_tokens_at)


def prefill_rate(seconds: list[float], prompt_tokens: int) -> float:
    """Prompt tokens/s from the median time to the first token."""
    return prompt_tokens / statistics.median(seconds)


def report(version: str, rates: dict[str, float]) -> None:
    """Print the worker's result: tokens per second by scenario."""
    print(json.dumps({"version": version, "rates": rates}), flush=True)

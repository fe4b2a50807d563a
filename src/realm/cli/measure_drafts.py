"""What drafts gain: the same prompts with and without them, in turns, on one loaded model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from realm.runtime.generation import Completion
from realm.runtime.model import Model, Prompt

DRAFT_PROMPT_TOKENS = 192
"""More than any prompt here has."""
_NUM_ROUNDS = 3
_TOPICS = ("the tides", "bicycles", "sleep", "glass", "bread", "volcanoes", "maps", "bees")
_PASSAGE = (
    "The harbour office opens at seven. Boats that arrive earlier moor at the outer wall and wait for the pilot. "
    "Fees are paid per metre of length and per night; fishing boats of the town pay nothing. Fuel is sold until six "
    "in the evening, water is free, and rubbish goes into the containers behind the crane. "
)


@dataclass(frozen=True, slots=True)
class DraftResult:
    """One kind of work at one batch size."""

    work: str
    batch_size: int
    plain_rate: float
    """Tokens per second without drafts..."""
    draft_rate: float
    """...and with them; medians over rounds in turns."""
    tokens_per_step: float
    """Of one request, with drafts."""
    drafted_tokens: int
    accepted_tokens: int
    same_output: bool
    """Whether every output was the same with drafts as without: anything else is a bug."""


def measure_drafts(model: Model, batch_sizes: Sequence[int], max_tokens: int) -> list[DraftResult]:
    """Repeating a text, and open answers; greedy, `max_tokens` tokens a request."""
    return [
        _measure(model, work, [_prompt(model, work, index) for index in range(size)], max_tokens)
        for work in ("copy", "chat")
        for size in batch_sizes
    ]


def _prompt(model: Model, work: str, index: int) -> Prompt:
    topic = _TOPICS[index % len(_TOPICS)]
    if work == "copy":
        text = f"Repeat this notice number {index} about {topic} word for word:\n\n{_PASSAGE}"
    else:
        text = f"Explain in simple words, in {index + 3} sentences: what is interesting about {topic}?"
    return [{"role": "user", "content": text}] if model.has_chat_template else text


def _measure(model: Model, work: str, prompts: list[Prompt], max_tokens: int) -> DraftResult:
    seconds: dict[bool, list[float]] = {False: [], True: []}
    outputs: dict[bool, list[Completion]] = {}
    num_tokens = len(prompts) * max_tokens
    _generate(model, prompts, max_tokens, speculate=False)  # prompts are cached from here on
    for _ in range(_NUM_ROUNDS):
        for speculate in (False, True):
            began = time.perf_counter()
            outputs[speculate] = _generate(model, prompts, max_tokens, speculate=speculate)
            seconds[speculate].append(time.perf_counter() - began)
    usages = [completion.usage for completion in outputs[True]]
    accepted = sum(usage.accepted_tokens for usage in usages)
    return DraftResult(
        work=work,
        batch_size=len(prompts),
        plain_rate=num_tokens / statistics.median(seconds[False]),
        draft_rate=num_tokens / statistics.median(seconds[True]),
        tokens_per_step=num_tokens / (num_tokens - accepted),
        drafted_tokens=sum(usage.drafted_tokens for usage in usages),
        accepted_tokens=accepted,
        same_output=[c.token_ids for c in outputs[False]] == [c.token_ids for c in outputs[True]],
    )


def _generate(model: Model, prompts: list[Prompt], max_tokens: int, *, speculate: bool) -> list[Completion]:
    given: Any = prompts  # a list of chats, or of texts
    completions: list[Completion] = model.generate(
        given, max_tokens=max_tokens, temperature=0.0, ignore_eos=True, speculate=speculate
    )
    return completions

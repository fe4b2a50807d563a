"""A server with the shipped draft beside one without: drafts are accepted, and no answer shows it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.conftest import Server, StartServer

pytestmark = pytest.mark.model

CHAT = "/v1/chat/completions"
PASSAGE = (
    "The tide table lists two high waters and two low waters for each day. Heights are in metres above chart datum, "
    "and times are local. Spring tides follow the full and the new moon by a day or two."
)
PROMPTS = {
    "chat": "Explain in a few sentences why the sky is blue.",
    "copy": f"Repeat this text word for word:\n\n{PASSAGE}",
    "json": 'Repeat this JSON exactly: {"name": "tide", "heights": [4.1, 0.9, 4.3, 0.7], "unit": "m"}',
    "list": "List ten animals, one per line.",
}


@pytest.fixture(scope="module")
def drafting(start_server: StartServer, smollm2_path: Path) -> Server:
    return start_server(smollm2_path, "--model-id", "smollm2", "--speculate", "auto", "--draft", "auto")


@pytest.fixture(scope="module")
def plain(start_server: StartServer, smollm2_path: Path) -> Server:
    return start_server(smollm2_path, "--model-id", "smollm2", "--speculate", "off")


def body(prompt: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": PROMPTS[prompt]}]
    return {"model": "smollm2", "messages": messages, "max_tokens": 60, "temperature": 0, "seed": 5} | fields


BODIES = [body(prompt, **sampling) for prompt in PROMPTS for sampling in ({}, {"temperature": 0.8, "top_p": 0.9})]
BODIES += [
    body("copy", n=3, temperature=0.6),
    body("chat", logprobs=True, top_logprobs=4),
    body("copy", frequency_penalty=0.4, repetition_penalty=1.1, temperature=0.5),
    body("copy", stop=["chart"]),
    body("list", max_tokens=2),
    body("copy", max_tokens=7),
]


def answer(server: Server, request: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What a client can tell of each choice, and the token counts."""
    response = httpx.post(server.url + CHAT, json=request, timeout=120)
    assert response.status_code == 200, response.text
    whole = response.json()
    choices = [(c["message"]["content"], c["finish_reason"], c["logprobs"]) for c in whole["choices"]]
    return [*choices, (whole["usage"]["completion_tokens"],)]


def streamed(server: Server, request: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The same from a stream, whose every event must be well formed."""
    extra = {"stream": True, "stream_options": {"include_usage": True}}
    response = httpx.post(server.url + CHAT, json=request | extra, timeout=120)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    *parts, last = chunks
    assert last["choices"] == []
    return [*_choices(parts, request.get("n", 1)), (last["usage"]["completion_tokens"],)]


def _choices(chunks: Iterable[dict[str, Any]], n: int) -> list[tuple[Any, ...]]:
    texts, reasons, logprobs = [""] * n, [None] * n, [None] * n
    for chunk in chunks:
        [choice] = chunk["choices"]
        index = choice["index"]
        assert reasons[index] is None, "a choice goes on after its end"
        texts[index] += choice["delta"].get("content") or ""
        reasons[index] = choice["finish_reason"]
        if choice["logprobs"] is not None:
            logprobs[index] = logprobs[index] or {"content": [], "refusal": None}
            logprobs[index]["content"] += choice["logprobs"]["content"]
    return list(zip(texts, reasons, logprobs, strict=True))


def accepted(server: Server) -> float:
    """Drafts that were right, of lookup and the draft model together: which of them pays depends on the machine."""
    metrics = server.metrics()
    return sum(metrics.get(f"realm_accepted_tokens_total:{source}:default", 0.0) for source in ("lookup", "draft"))


@pytest.fixture(scope="module")
def expected(plain: Server) -> list[list[tuple[Any, ...]]]:
    return [answer(plain, request) for request in BODIES]


def test_the_server_without_drafts_makes_none(plain: Server, expected: list[list[tuple[Any, ...]]]) -> None:
    assert not any(name.startswith(("realm_drafted", "realm_accepted")) for name in plain.metrics())


def test_answers_are_the_same_and_drafts_are_accepted(drafting: Server, expected: list[list[tuple[Any, ...]]]) -> None:
    """Alone, greedy and sampled, with penalties, log-probabilities, stop strings, few tokens, several choices."""
    assert [answer(drafting, request) for request in BODIES] == expected
    assert accepted(drafting) > 20
    metrics = drafting.await_idle()
    assert metrics["realm_draft_model_info:smollm2-135m-draft"] == 1
    assert metrics["realm_tokens_per_step_sum"] > metrics["realm_tokens_per_step_count"]


def test_streams_say_the_same(drafting: Server, expected: list[list[tuple[Any, ...]]]) -> None:
    before = accepted(drafting)
    assert [streamed(drafting, request) for request in BODIES] == expected
    assert accepted(drafting) > before


def test_all_at_once_plain_and_streamed(drafting: Server, expected: list[list[tuple[Any, ...]]]) -> None:
    with ThreadPoolExecutor(len(BODIES)) as pool:
        plain_answers = pool.map(lambda request: answer(drafting, request), BODIES)
        streams = pool.map(lambda request: streamed(drafting, request), BODIES)
        assert list(plain_answers) == expected
        assert list(streams) == expected
    drafting.await_idle()


def test_a_request_may_do_without(drafting: Server, expected: list[list[tuple[Any, ...]]]) -> None:
    before = accepted(drafting)
    for request, right in zip(BODIES[:6], expected, strict=False):
        assert answer(drafting, request | {"speculative": {"enabled": False}}) == right
    assert accepted(drafting) == before


def test_clients_that_hang_up_leave_nothing(drafting: Server) -> None:
    """In the middle of streams that get several tokens a step."""

    def read_a_little(request: dict[str, Any]) -> None:
        with httpx.stream("POST", drafting.url + CHAT, json=request | {"stream": True}, timeout=120) as response:
            for _, _line in zip(range(6), response.iter_lines(), strict=False):
                pass

    threads = [threading.Thread(target=read_a_little, args=(body(p, max_tokens=400),)) for p in PROMPTS for _ in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    metrics = drafting.await_idle()
    assert metrics["realm_kv_blocks_used"] == 0


def test_a_deadline_in_the_middle(drafting: Server) -> None:
    response = httpx.post(drafting.url + CHAT, json=body("copy", max_tokens=2000, ignore_eos=True, timeout=0.2))
    assert response.status_code == 408
    assert drafting.await_idle()["realm_kv_blocks_used"] == 0

"""Many clients at once: shared steps, storms, pools that are whole afterwards, and strangers that notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.conftest import Server, StartServer

CHAT = "/v1/chat/completions"


def body(model: str, content: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "temperature": 0, "ignore_eos": True, "max_tokens": 24} | fields


async def text_of(client: httpx.AsyncClient, request: dict[str, Any]) -> str:
    response = await client.post(CHAT, json=request)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


async def streamed_text(client: httpx.AsyncClient, request: dict[str, Any]) -> str:
    """The text of a stream that must end with exactly one finish reason and [DONE]."""
    text, reasons, done = "", [], False
    async with client.stream("POST", CHAT, json=request | {"stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            assert not (done and line), "something after [DONE]"
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                done = True
            elif data:
                [choice] = json.loads(data)["choices"]
                text += choice["delta"].get("content", "")
                reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert done
    assert len(reasons) == 1
    return text


def connect(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, timeout=120, limits=httpx.Limits(max_connections=None))


@pytest.mark.model
async def test_concurrent_requests_share_forward_passes(smollm2: Server) -> None:
    one_token_a_step = {"max_tokens": 16, "speculative": {"enabled": False}}
    requests = [body("smollm2", f"Count from {i} upwards.", **one_token_a_step) for i in range(16)]
    async with connect(smollm2) as client:
        before = smollm2.metrics()["realm_steps_total"]
        alone = [await text_of(client, request) for request in requests]
        between = smollm2.metrics()["realm_steps_total"]
        together = await asyncio.gather(*(text_of(client, request) for request in requests))
        after = smollm2.metrics()["realm_steps_total"]
    assert together == alone
    assert between - before >= 16 * 16
    assert after - between <= (between - before) / 4


@pytest.fixture(scope="module")
def cramped(start_server: StartServer, tiny_path: Path) -> Server:
    """Batch of 8, and KV for fewer than that."""
    options = ["--max-batch-size", 8, "--max-queued", 40, "--kv-cache-tokens", 512, "--max-seq-len", 256]
    return start_server(tiny_path, *map(str, options))


async def hang_up(client: httpx.AsyncClient, request: dict[str, Any], after_chunks: int) -> None:
    """Read a little of a stream, and go."""
    async with client.stream("POST", CHAT, json=request | {"stream": True}) as response:
        lines = response.aiter_lines()
        for _ in range(after_chunks):
            await anext(lines)


async def give_up(client: httpx.AsyncClient, request: dict[str, Any]) -> None:
    """Hang up while an answer that isn't streamed is being made, unless it is there already."""
    with contextlib.suppress(httpx.ReadTimeout):
        await client.post(CHAT, json=request | {"max_tokens": 150}, timeout=httpx.Timeout(60, read=0.02))


async def refused(client: httpx.AsyncClient, request: dict[str, Any], status: int, code: str) -> None:
    response = await client.post(CHAT, json=request)
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code


async def test_storm(cramped: Server) -> None:
    model = cramped.model_id
    quiet = [body(model, f"stranger {i} " * (1 + i % 5), max_tokens=40 + i) for i in range(8)]
    async with connect(cramped) as client:
        alone = [await streamed_text(client, request) for request in quiet]
        before = cramped.outcomes()
        storm = [hang_up(client, body(model, f"leaves {i}", max_tokens=100), i) for i in range(6)]
        storm += [give_up(client, body(model, f"gives up {i}")) for i in range(6)]
        deadline = {"timeout": 1e-6, "max_tokens": 100}
        storm += [refused(client, body(model, f"late {i}", **deadline), 408, "deadline_exceeded") for i in range(6)]
        storm += [refused(client, body(model, "long " * 200), 400, "context_length_exceeded") for _ in range(6)]
        strangers = [streamed_text(client, request) for request in quiet]
        results = await asyncio.gather(*strangers, *storm)
        assert results[: len(alone)] == alone
    metrics = cramped.await_idle()
    ended = {name: count - before.get(name, 0) for name, count in cramped.outcomes().items()}
    # Over-long prompts never reach the engine; everything else ended once, in one of these ways.
    assert sum(ended.values()) == 8 + 6 + 6 + 6
    assert ended["length"] >= 8
    assert ended["deadline_exceeded"] == 6
    assert set(ended) <= {"length", "cancelled", "deadline_exceeded"}
    assert metrics["realm_kv_blocks_total"] == 16


async def test_queue_full_is_429_and_nobody_else_notices(cramped: Server) -> None:
    model = cramped.model_id
    request = body(model, "one of many", max_tokens=150)  # longer than all of them take to arrive
    async with connect(cramped) as client:
        alone = await text_of(client, request)
        responses = await asyncio.gather(*(client.post(CHAT, json=request) for _ in range(120)))
    by_status: dict[int, list[httpx.Response]] = {}
    for response in responses:
        by_status.setdefault(response.status_code, []).append(response)
    assert set(by_status) == {200, 429}
    assert len(by_status[200]) >= 48
    assert {r.json()["choices"][0]["message"]["content"] for r in by_status[200]} == {alone}
    assert {r.json()["error"]["code"] for r in by_status[429]} == {"queue_full"}
    assert all(int(r.headers["retry-after"]) >= 1 for r in by_status[429])
    cramped.await_idle()


async def test_preemption_changes_nothing(cramped: Server) -> None:
    requests = [body(cramped.model_id, f"preempt {i}", max_tokens=120) for i in range(8)]
    async with connect(cramped) as client:
        alone = [await text_of(client, request) for request in requests]
        before = cramped.metrics()["realm_preemptions_total"]
        together = await asyncio.gather(*(text_of(client, request) for request in requests))
        assert cramped.metrics()["realm_preemptions_total"] > before, "the pool is not too small for this test"
    assert together == alone
    cramped.await_idle()


async def test_sigterm_lets_open_requests_finish(start_server: StartServer, tiny_path: Path) -> None:
    server = start_server(tiny_path)
    async with connect(server) as client:
        request = body(server.model_id, "last words", max_tokens=200)
        alone = await text_of(client, request)
        async with client.stream("POST", CHAT, json=request | {"stream": True}) as response:
            lines = response.aiter_lines()
            first = await anext(lines)
            server.terminate()
            rest = [first] + [line async for line in lines]
    chunks = [json.loads(line.removeprefix("data: ")) for line in rest if line and "[DONE]" not in line]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == alone
    server.stop()


@pytest.mark.model
@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_cancels(smollm2: Server, stream: bool) -> None:
    """The request ends at once, not when all its tokens have been made for nobody."""
    request = body("smollm2", "never ending", max_tokens=8000)
    before = smollm2.outcomes()
    async with connect(smollm2) as client:
        if stream:
            await hang_up(client, request, 2)
        else:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(CHAT, json=request, timeout=httpx.Timeout(60, read=0.2))
    smollm2.await_idle()
    assert {name: n - before.get(name, 0) for name, n in smollm2.outcomes().items() if n != before.get(name, 0)} == {
        "cancelled": 1
    }


async def no_longer_listening(server: Server) -> None:
    """Return when the first signal has had its effect."""
    with contextlib.suppress(httpx.TransportError):
        while True:
            async with connect(server) as client:
                await client.get("/health")


@pytest.mark.model
@pytest.mark.parametrize("second_signal", [False, True])
async def test_requests_that_outlast_the_grace_end_with_an_error(
    start_server: StartServer, smollm2_path: Path, second_signal: bool
) -> None:
    server = start_server(smollm2_path, "--graceful-seconds", "600" if second_signal else "0")
    request = body(server.model_id, "never ending", max_tokens=8000)
    async with connect(server) as client:
        whole = asyncio.create_task(client.post(CHAT, json=request))
        async with client.stream("POST", CHAT, json=request | {"stream": True}) as response:
            lines = response.aiter_lines()
            await anext(lines)
            while server.metrics()["realm_requests_running"] < 2:
                await asyncio.sleep(0)
            server.terminate()
            if second_signal:
                await no_longer_listening(server)
                server.process.send_signal(signal.SIGTERM)
            events = [line.removeprefix("data: ") async for line in lines if line]
        answer = await whole
    assert json.loads(events[-1])["error"]["code"] == "shutting_down"
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
    server.stop()

"""The capital of France, asked by the official clients, plain and streamed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import openai
import pytest
from tests.e2e.conftest import Server

pytestmark = pytest.mark.model

MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
CHAT = {"model": "smollm2", "messages": MESSAGES, "temperature": 0, "max_tokens": 24}
COMPLETION = {"model": "smollm2", "prompt": "The capital of France is", "temperature": 0, "max_tokens": 6}


def test_python_client(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**CHAT)
    assert "Paris" in whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.prompt_tokens > 10

    chunks = list(client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

    text = client.completions.create(**COMPLETION).choices[0].text
    assert text.startswith(" Paris")
    streamed = client.completions.create(**COMPLETION, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == text
    assert [m.id for m in client.models.list()] == ["smollm2"]
    assert client.models.retrieve("smollm2").id == "smollm2"


async def test_async_python_client(smollm2: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0) as client:
        text = ""
        async with client.chat.completions.stream(**CHAT) as stream:
            async for event in stream:
                text += event.delta if event.type == "content.delta" else ""
        assert "Paris" in text


def test_python_client_sees_typed_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(**CHAT | {"model": "none"})
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(**CHAT, tools=[{"type": "function", "function": {"name": "f"}}])
    assert (unsupported.value.code, unsupported.value.param) == ("unsupported_parameter", "tools")


def test_logprobs_through_the_python_client(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2).choices[0]
    rows = choice.logprobs.content
    assert bytes(b for row in rows for b in row.bytes).decode() == choice.message.content
    assert all(row.token == row.top_logprobs[0].token for row in rows), "greedy takes the likeliest"


def test_npm_client(smollm2: Server, npm_openai: Path) -> None:
    done = subprocess.run(
        ["node", "ask.mjs", f"{smollm2.url}/v1", "smollm2"], cwd=npm_openai, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert "Paris" in results["chat"]
    assert results["chatStreamed"] == results["chat"]
    assert results["finishReason"] == "stop"
    assert results["usage"]["completion_tokens"] > 1
    assert results["completion"].startswith(" Paris")
    assert results["completionStreamed"] == results["completion"]
    assert results["models"] == ["smollm2"]
    assert results["error"] == {"name": "NotFoundError", "status": 404, "code": "model_not_found"}


def test_five_lines_of_python(smollm2_path: Path) -> None:
    from realm import load

    with load(smollm2_path) as model:
        assert model.generate("The capital of France is", max_tokens=6, temperature=0).text.startswith(" Paris")
        assert "Paris" in "".join(str(event) for event in model.stream(MESSAGES, temperature=0, max_tokens=24))

"""Everything that a client or an operator can get wrong: a clear error with a code, and others go on."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from tests.e2e.conftest import Server, StartServer

from realm.testing.tiny import TinyModel, write_tiny_model

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def stranger(server: Server) -> dict[str, Any]:
    """A request whose text must not change, whatever others send."""
    fields = {"prompt": "a stranger", "temperature": 0, "ignore_eos": True, "max_tokens": 300}
    return fields | {"model": server.model_id, "stream": True}


def text_of(response: httpx.Response) -> str:
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines)


@pytest.fixture(scope="module")
def alone(tiny: Server) -> str:
    with httpx.stream("POST", f"{tiny.url}{COMPLETIONS}", json=stranger(tiny), timeout=60) as response:
        return text_of(response)


@pytest.fixture
def beside(tiny: Server, alone: str) -> Iterator[httpx.Client]:
    """A client to misbehave with, while a stranger's stream is open; that one must come out as ever."""
    with (
        httpx.Client(base_url=tiny.url, timeout=60) as client,
        httpx.stream("POST", f"{tiny.url}{COMPLETIONS}", json=stranger(tiny), timeout=60) as response,
    ):
        assert response.status_code == 200
        yield client
        assert text_of(response) == alone
        assert client.get("/health").json() == {"status": "ok"}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4} | fields


def expect(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code, error
    assert error["message"]


def test_bad_json(beside: httpx.Client) -> None:
    for content in (b"{", b"\x00", b"[1,", b'{"temperature": NaN}', b"[" * 100_000, b'{"model": "tiny",}'):
        response = beside.post(CHAT, content=content, headers={"content-type": "application/json"})
        expect(response, 400, "invalid_json")


def test_wrong_types_and_values(beside: httpx.Client) -> None:
    for fields in (
        {"messages": 5},
        {"messages": [{"role": "user", "content": 5}]},
        {"temperature": "1"},
        {"top_p": 2},
        {"max_tokens": "4"},
        {"n": 1.5},
        {"stream": "yes"},
        {"seed": 2**70},
    ):
        expect(beside.post(CHAT, json=chat(**fields)), 400, "invalid_value")


def test_unknown_model_path_and_method(beside: httpx.Client) -> None:
    expect(beside.post(CHAT, json=chat(model="gpt-5")), 404, "model_not_found")
    expect(beside.get("/v1/models/gpt-5"), 404, "model_not_found")
    expect(beside.get("/v2/models"), 404, "not_found")
    assert beside.get(CHAT).status_code == 405


def test_unsupported_parameters(beside: httpx.Client) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    for fields in (
        {"tools": [tool]},
        {"tools": [tool], "tool_choice": "auto"},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"audio": {"voice": "alloy", "format": "mp3"}},
        {"modalities": ["audio"]},
        {"prediction": {"type": "content", "content": "x"}},
        {"web_search_options": {}},
        {"store": True},
    ):
        expect(beside.post(CHAT, json=chat(**fields)), 400, "unsupported_parameter")
    expect(beside.post(CHAT, json=chat(temprature=0.5)), 400, "unknown_parameter")


def test_too_long(beside: httpx.Client) -> None:
    for content in ("word " * 1000, "x" * 1_000_000):
        expect(
            beside.post(CHAT, json=chat(messages=[{"role": "user", "content": content}])),
            400,
            "context_length_exceeded",
        )
    expect(beside.post(CHAT, json=chat(max_tokens=100_000)), 400, "context_length_exceeded")
    expect(beside.post(CHAT, json=chat(user="x" * (5 << 20))), 413, "payload_too_large")


def test_raw_bytes_that_are_not_http(tiny: Server, beside: httpx.Client) -> None:
    address = (urlsplit(tiny.url).hostname, urlsplit(tiny.url).port)
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n{",
        b"",
    ):
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass


def test_bad_keys(start_server: StartServer, tiny_path: Path) -> None:
    server = start_server(tiny_path, "--api-key", "right")
    assert httpx.get(f"{server.url}/health").status_code == 200
    expect(httpx.get(f"{server.url}/v1/models"), 401, "missing_api_key")
    wrong = {"authorization": b"Bearer wrong\xff"}
    expect(httpx.get(f"{server.url}/v1/models", headers=wrong), 401, "invalid_api_key")
    right = {"authorization": "Bearer right"}
    assert httpx.get(f"{server.url}/v1/models", headers=right).status_code == 200


def serve_fails(*args: str | Path) -> str:
    """The one line that a `realm serve` that can't start leaves behind."""
    command = [sys.executable, "-m", "realm", "serve", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_bad_files(tmp_path: Path, tiny_path: Path) -> None:
    content = tiny_path.read_bytes()
    cases = {
        "empty": b"",
        "magic": b"GGML" + content[4:],
        "version": content[:4] + b"\x63\x00\x00\x00" + content[8:],
        "counts": content[:8] + b"\xff" * 16 + content[24:],
        "header": content[:100],
        "tensors": content[: len(content) // 2],
    }
    for name, data in cases.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        assert "error: " in serve_fails(path), name
    odd = write_tiny_model(tmp_path / "odd.gguf", TinyModel(metadata={"general.architecture": "mamba9"}))
    assert "mamba9" in serve_fails(odd)
    assert "error: " in serve_fails(tmp_path / "missing.gguf")


def test_bad_options(tiny: Server, tiny_path: Path) -> None:
    assert "--port" in serve_fails(tiny_path, "--port", str(urlsplit(tiny.url).port))
    assert "max_seq_len" in serve_fails(tiny_path, "--max-seq-len", "1000000")
    assert "max_batch_size" in serve_fails(tiny_path, "--max-batch-size", "0")

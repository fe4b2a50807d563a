"""The HTTP application over a runtime without weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.runtime_harness import FAKE, assert_idle, fake_runtime

from realm.server.app import create_app
from realm.server.config import ServerConfig

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def app_client() -> Iterator[TestClient]:
    with fake_runtime() as runtime:
        runtime.model()
        app = create_app(runtime, ServerConfig(max_body_bytes=100_000))
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client


@pytest.fixture
def client(app_client: TestClient) -> Iterator[TestClient]:
    """The application, shared by tests; each must leave it idle."""
    yield app_client
    assert_idle(app_client.app.state.runtime.model())


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": FAKE, "messages": MESSAGES, "max_tokens": 12, "ignore_eos": True, "seed": 1} | fields


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": FAKE, "prompt": "hello", "max_tokens": 12, "ignore_eos": True, "seed": 1} | fields


def post(client: TestClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def events(client: TestClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Chunks of a streamed answer, without [DONE], which must be there."""
    response = client.post(path, json=body | {"stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_chat(client: TestClient) -> None:
    body = post(client, CHAT, chat())
    [choice] = body["choices"]
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None
    usage = body["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat(n=3)), (COMPLETIONS, completion(n=3, prompt=["a", "b"]))])
def test_stream_equals_whole(client: TestClient, path: str, body: dict[str, Any]) -> None:
    whole = post(client, path, body)
    chunks = events(client, path, body | {"stream_options": {"include_usage": True}})
    texts, reasons = {}, {}
    for chunk in chunks[:-1]:
        assert chunk["usage"] is None
        [choice] = chunk["choices"]
        assert choice["index"] not in reasons, "a chunk after the last one of its choice"
        text = choice["delta"].get("content", "") if path == CHAT else choice["text"]
        texts[choice["index"]] = texts.get(choice["index"], "") + text
        if choice["finish_reason"]:
            reasons[choice["index"]] = choice["finish_reason"]
    expected = [c["message"]["content"] if path == CHAT else c["text"] for c in whole["choices"]]
    assert [texts[i] for i in range(len(expected))] == expected
    assert len(set(expected)) == len(expected), "choices must differ"
    assert reasons == {c["index"]: c["finish_reason"] for c in whole["choices"]}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] | {"prompt_tokens_details": 0} == whole["usage"] | {"prompt_tokens_details": 0}
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_chat_stream_opens_with_the_role(client: TestClient) -> None:
    chunks = events(client, CHAT, chat())
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "usage" not in chunks[0]


def test_four_shapes_of_prompt(client: TestClient) -> None:
    ids = [ord(c) for c in "abc"]
    one = post(client, COMPLETIONS, completion(prompt=ids))["choices"]
    assert post(client, COMPLETIONS, completion(prompt=[ids]))["choices"] == one
    texts = post(client, COMPLETIONS, completion(prompt=["hello", "world"]))["choices"]
    assert texts[0]["text"] == post(client, COMPLETIONS, completion())["choices"][0]["text"]
    assert [c["index"] for c in texts] == [0, 1]


@pytest.mark.parametrize("stream", [False, True])
def test_echo(client: TestClient, stream: bool) -> None:
    plain = post(client, COMPLETIONS, completion())["choices"][0]["text"]
    if stream:
        echoed = "".join(c["choices"][0]["text"] for c in events(client, COMPLETIONS, completion(echo=True)))
    else:
        echoed = post(client, COMPLETIONS, completion(echo=True))["choices"][0]["text"]
    assert echoed == "hello" + plain


def test_logprobs(client: TestClient) -> None:
    content = post(client, CHAT, chat(logprobs=True, top_logprobs=3))["choices"][0]["logprobs"]["content"]
    assert len(content) == 12
    assert all(len(row["top_logprobs"]) == 3 and row["logprob"] <= 0 for row in content)
    streamed = [
        row
        for chunk in events(client, CHAT, chat(logprobs=True, top_logprobs=3))
        if chunk["choices"][0]["logprobs"]
        for row in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert streamed == content
    body = post(client, COMPLETIONS, completion(logprobs=2))["choices"][0]["logprobs"]
    assert {len(column) for column in body.values()} == {12}
    assert body["text_offset"][0] == 0


def test_stop_reason(client: TestClient) -> None:
    text = post(client, COMPLETIONS, completion())["choices"][0]["text"]
    choice = post(client, COMPLETIONS, completion(stop=[text[3:5]]))["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", text[3:5])
    assert choice["text"] == text[: text.index(text[3:5])]


def test_seed_decides(client: TestClient) -> None:
    def text(**fields: Any) -> str:
        return post(client, COMPLETIONS, completion(**fields))["choices"][0]["text"]

    assert text(seed=5) == text(seed=5)
    assert text(seed=5) != text(seed=6)
    assert text(seed=None) != text(seed=None)


def test_models(client: TestClient) -> None:
    [model] = client.get("/v1/models").json()["data"]
    assert model["id"] == FAKE
    assert client.get(f"/v1/models/{FAKE}").json() == model


def test_metrics(client: TestClient) -> None:
    def value(name: str) -> float:
        [line] = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name + " ")]
        return float(line.split()[-1])

    counted = {
        'realm_requests_total{model="fake",outcome="length"}': 1,
        'realm_completion_tokens_total{model="fake"}': 12,
        'realm_time_to_first_token_seconds_count{model="fake"}': 1,
        'realm_inter_token_seconds_count{model="fake"}': 11,
    }
    post(client, CHAT, chat())
    before = {name: value(name) for name in counted}
    post(client, CHAT, chat())
    assert {name: value(name) - before[name] for name in counted} == counted
    assert value('realm_kv_blocks_used{model="fake"}') == 0


def test_health_and_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_runtime() as runtime, TestClient(create_app(runtime)) as client:
        assert client.get("/ready").status_code == 503
        model = runtime.model()
        assert client.get("/ready").json() == {"status": "ready", "models": [FAKE]}
        assert client.get("/health").json() == {"status": "ok"}

        def explode() -> None:
            raise AssertionError("bug")

        monkeypatch.setattr(model.loop._engine, "step", explode)
        assert client.post(CHAT, json=chat()).status_code == 500
        assert client.get("/health").json() == {"status": "failed", "models": [FAKE]}
        assert client.get("/ready").status_code == 503
        refused = client.post(CHAT, json=chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_failed")


BAD = [
    ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
    ({"tool_choice": "required"}, "unsupported_parameter", "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
    ({"audio": {"voice": "x"}}, "unsupported_parameter", "audio"),
    ({"modalities": ["text", "audio"]}, "unsupported_parameter", "modalities"),
    ({"store": True}, "unsupported_parameter", "store"),
    ({"functions": [{}]}, "unsupported_parameter", "functions"),
    ({"bogus": 1}, "unknown_parameter", "bogus"),
    ({"temperature": "hot"}, "invalid_value", "temperature"),
    ({"temperature": True}, "invalid_value", "temperature"),
    ({"temperature": -1}, "invalid_value", "temperature"),
    ({"n": 0}, "invalid_value", "n"),
    ({"n": 100}, "invalid_request", "n"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": 3.5}, "invalid_value", "max_tokens"),
    ({"max_tokens": 100_000}, "context_length_exceeded", "max_tokens"),
    ({"max_completion_tokens": 3}, "invalid_request", "max_completion_tokens"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": "hello"}, "invalid_value", "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, "invalid_value", "messages"),
    ({"messages": [{"role": "user"}]}, "invalid_value", "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "unsupported_parameter", "messages"),
    ({"messages": [{"role": "user", "content": "long " * 3000}]}, "context_length_exceeded", "prompt"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "unsupported_parameter", "messages"),
    ({"chat_template_kwargs": {"messages": []}}, "invalid_request", "chat_template_kwargs"),
    ({"stop": [""]}, "invalid_request", "stop"),
    ({"stop": ["x"] * 17}, "invalid_value", "stop"),
    ({"stop_token_ids": [10**9]}, "invalid_request", "stop_token_ids"),
    ({"logit_bias": {"x": 1}}, "invalid_request", "logit_bias"),
    ({"logit_bias": {"5": 1000}}, "invalid_value", "logit_bias"),
    ({"logit_bias": {"99999": 1}}, "invalid_request", "logit_bias"),
    ({"top_logprobs": 2}, "invalid_request", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 50}, "invalid_value", "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "invalid_request", "stream_options"),
    ({"timeout": 0}, "invalid_value", "timeout"),
    ({"model": "other"}, "model_not_found", "model"),
]


@pytest.mark.parametrize(("fields", "code", "param"), BAD, ids=[json.dumps(b[0])[:50] for b in BAD])
@pytest.mark.parametrize("stream", [False, True])
def test_bad_chat(client: TestClient, fields: dict[str, Any], code: str, param: str, stream: bool) -> None:
    body = chat(**fields)
    if stream and "stream_options" not in fields:
        body["stream"] = True
    response = client.post(CHAT, content=json.dumps(body), headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    assert response.status_code == (404 if code == "model_not_found" else 400)
    assert error["type"] == "invalid_request_error"


NEUTRAL = {
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "functions": None,
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "store": False,
    "metadata": {},
    "service_tier": "auto",
    "user": "someone",
    "logit_bias": {},
    "stop": None,
    "stream_options": None,
}


def test_neutral_values_pass(client: TestClient) -> None:
    assert post(client, CHAT, chat(**NEUTRAL))["choices"] == post(client, CHAT, chat())["choices"]


def test_messages_as_the_api_gives_them_out_pass(client: TestClient) -> None:
    answered = {
        "role": "assistant",
        "content": "hi",
        "refusal": None,
        "tool_calls": None,
        "annotations": [],
        "audio": None,
    }
    parts = {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}
    body = chat(messages=[parts, answered, MESSAGES[0]])
    plain = chat(messages=[{"role": "user", "content": "hel\nlo"}, {"role": "assistant", "content": "hi"}, MESSAGES[0]])
    assert post(client, CHAT, body)["choices"] == post(client, CHAT, plain)["choices"]


BAD_BODIES = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b"[]", "invalid_value"),
    (b"null", "invalid_value"),
    (b'"x"', "invalid_value"),
    (b"\xff\xfe\x00", "invalid_json"),
    (b'{"model":"fake","temperature":NaN}', "invalid_json"),
    (b'{"model":"fake","temperature":-Infinity}', "invalid_json"),
    (b'{"model":"fake","temperature":1e999,"messages":[{"role":"user","content":"x"}]}', "invalid_value"),
    (b'{"model":"fake","seed":' + b"9" * 5000 + b"}", "invalid_json"),
    (b'{"model":"fake","model":"fake"}', "invalid_json"),
    (b"[" * 50_000, "invalid_json"),
    (b'{"model":"\\uD800"}', "invalid_json"),
    (b'{"\\udfff":1}', "invalid_json"),
    (b'\xef\xbb\xbf{"model":"fake"}', "invalid_json"),
    ('{"model":"\\ud800"}'.encode("utf-16"), "invalid_json"),
    ('{"model":"fake"}'.encode("utf-32-le"), "invalid_json"),
]


@pytest.mark.parametrize(("content", "code"), BAD_BODIES, ids=[repr(b[0][:30]) for b in BAD_BODIES])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_bad_bodies(client: TestClient, path: str, content: bytes, code: str) -> None:
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == code, response.text


MESSAGES_OF_ERRORS = [
    (CHAT, {"temperature": 200}, "temperature: Input should be less than or equal to 100, got 200"),
    (CHAT, {"n": "2"}, 'n: Input should be a valid integer, got "2"'),
    (CHAT, {"model": None}, "model: Input should be a valid string, got null"),
    (CHAT, {"stop": [1]}, "stop.0: Input should be a valid string, got 1"),
    (CHAT, {"stop": 1}, "stop: Input should be a valid string or a valid list, got 1"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages.0.content: missing"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": None}]},
        "messages.0.content: Input should be a valid string or a valid list, got null",
    ),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text: missing"),
    (COMPLETIONS, {"prompt": 5}, "prompt: Input should be a valid string or a valid list, got 5"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt.0: Input should be greater than or equal to 0, got -1"),
    (COMPLETIONS, {"prompt": []}, "prompt: List should have at least 1 item after validation, not 0"),
    (COMPLETIONS, {"prompt": [1, "a"]}, 'prompt.1: Input should be a valid integer, got "a"'),
    (CHAT, {"logit_bias": {"x": 1}}, "logit_bias keys must be token ids, got 'x'"),
    (CHAT, {"logit_bias": {"1": 1, "01": 2}}, "logit_bias keys must be token ids, got '01'"),
    (CHAT, {"logit_bias": {"１": 1}}, "logit_bias keys must be token ids, got '１'"),
]


@pytest.mark.parametrize(("path", "fields", "message"), MESSAGES_OF_ERRORS, ids=[m for _, _, m in MESSAGES_OF_ERRORS])
def test_an_error_tells_where_and_what(client: TestClient, path: str, fields: dict[str, Any], message: str) -> None:
    """A union's branches are pydantic's affair: the path is the body's, the complaint that of the likeliest branch."""
    body = chat() if path == CHAT else {"model": "fake", "prompt": "x"}
    response = client.post(path, json=body | fields)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == message


BAD_PROMPTS = [
    ({"prompt": ""}, "empty_prompt"),
    ({"prompt": []}, "invalid_value"),
    ({"prompt": [[]]}, "invalid_value"),
    ({"prompt": [1, "a"]}, "invalid_value"),
    ({"prompt": {}}, "invalid_value"),
    ({"prompt": None}, "invalid_value"),
    ({"prompt": [-1]}, "invalid_value"),
    ({"prompt": [10**6]}, "invalid_request"),
    ({"prompt": [1.5]}, "invalid_value"),
    ({"prompt": [True]}, "invalid_value"),
    ({"prompt": ["a"] * 100}, "invalid_request"),
    ({"prompt": "x" * 90_000}, "context_length_exceeded"),
    ({"prompt": [65] * 600}, "context_length_exceeded"),
    ({"suffix": "end"}, "unsupported_parameter"),
    ({"best_of": 2}, "unsupported_parameter"),
    ({"echo": True, "logprobs": 1}, "unsupported_parameter"),
    ({"logprobs": 21}, "invalid_value"),
]


@pytest.mark.parametrize(("fields", "code"), BAD_PROMPTS, ids=[json.dumps(b[0])[:40] for b in BAD_PROMPTS])
def test_bad_completions(client: TestClient, fields: dict[str, Any], code: str) -> None:
    response = client.post(COMPLETIONS, json=completion(**fields))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == code, response.text


def test_other_errors_have_the_shape_too(client: TestClient) -> None:
    cases = [
        (client.get("/nowhere"), 404),
        (client.get("/v1/nowhere"), 404),
        (client.get("/v1/models/none"), 404),
        (client.get(CHAT), 405),
        (client.delete("/v1/models"), 405),
        (client.post(CHAT, content=b"{}", headers={"content-type": "text/plain"}), 415),
        (client.post(CHAT, content=b"{}"), 415),
        (client.post(CHAT, json=chat(user="x" * 100_000)), 413),
    ]
    for response, status in cases:
        assert response.status_code == status, response.text
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert client.get(CHAT).headers["allow"] == "POST"


def test_chunked_body_over_the_limit(client: TestClient) -> None:
    response = client.post(CHAT, content=iter([b" " * 60_000] * 2), headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"


def test_deadline_is_408_and_no_invitation_to_retry(client: TestClient) -> None:
    for stream in (False, True):
        response = client.post(CHAT, json=chat(timeout=1e-9, stream=stream))
        assert response.status_code == 408
        assert response.headers["x-should-retry"] == "false"
        assert response.json()["error"]["code"] == "deadline_exceeded"


def test_keys() -> None:
    with fake_runtime() as runtime:
        runtime.model()
        app = create_app(runtime, ServerConfig(api_keys=("secret", "other"), cors_origins=("https://page.example",)))
        with TestClient(app) as client:
            assert client.get("/health").status_code == 200
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
                response = client.get("/v1/models", headers=headers)
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
                assert response.json()["error"]["type"] == "authentication_error"
            assert client.get("/v1/models", headers={"authorization": "Bearer other"}).status_code == 200
            preflight = {"origin": "https://page.example", "access-control-request-method": "POST"}
            assert client.options(CHAT, headers=preflight).status_code == 200


def test_our_own_fault_is_a_500_that_tells_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realm.server.openai_api.ChatAnswer", None)
    response = client.post(CHAT, json=chat())
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "NoneType" not in response.text


def test_error_in_the_middle_of_a_stream() -> None:
    steps = []

    def fail_at_fifth(batch: object) -> None:
        steps.append(batch)
        if len(steps) == 5:
            raise RuntimeError("device lost")

    with fake_runtime(on_step=fail_at_fifth) as runtime:
        runtime.model()
        with TestClient(create_app(runtime)) as client:
            lines = client.post(CHAT, json=chat(stream=True)).text.strip().split("\n\n")
            assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "internal_error"
            assert len(lines) > 2
            assert client.post(CHAT, json=chat()).status_code == 200

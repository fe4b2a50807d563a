"""Adapters come, change and go while requests stream: over HTTP, against one process."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from tests.e2e.conftest import Server, StartServer
from tests.e2e.test_lora import write_adapter

KEY = {"authorization": "Bearer secret-admin"}
TOKENS = 400
NUM_CHOICES = 24  # of one call: it makes steps slow enough to get something done meanwhile


@pytest.fixture(scope="module")
def files(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    paths = {name: folder / f"{name}.gguf" for name in ("red", "blue", "green", "grey")}
    for seed, (name, path) in enumerate(paths.items()):
        write_adapter(tiny_path, path, name, seed)
    return paths


class Admin:
    """A server with its admin API."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.http = httpx.Client(base_url=server.url, headers=KEY, timeout=60)

    def put(self, name: str, path: Path) -> httpx.Response:
        with path.open("rb") as file:
            return self.http.put(f"/admin/v1/adapters/{name}", files=[("files", (path.name, file))])

    def post(self, name: str, action: str) -> httpx.Response:
        return self.http.post(f"/admin/v1/adapters/{name}/{action}")

    def body(self, model: str, **fields: Any) -> dict[str, Any]:
        fixed = {"prompt": "abc", "temperature": 0.7, "seed": 3, "ignore_eos": True}
        return {"model": model, "max_tokens": TOKENS, "n": NUM_CHOICES, **fixed, **fields}

    def texts(self, model: str, **fields: Any) -> list[str]:
        response = self.http.post("/v1/completions", json=self.body(model, **fields))
        assert response.status_code == 200, response.text
        return [choice["text"] for choice in response.json()["choices"]]

    def during(self, model: str, act: Callable[[], None], *, check: bool = True) -> list[str]:
        """The texts of a stream in the middle of which `act` happens; with `check` it must have ended by then."""
        texts = [""] * NUM_CHOICES
        with self.http.stream("POST", "/v1/completions", json=self.body(model, stream=True)) as response:
            assert response.status_code == 200
            lines = (line.removeprefix("data: ") for line in response.iter_lines() if line)
            for number, line in enumerate(lines):
                if number == NUM_CHOICES:
                    act()
                    running = self.server.metrics()["realm_requests_running"]
                    assert running == NUM_CHOICES or not check, "the stream was over before"
                if line == "[DONE]":
                    return texts
                for choice in json.loads(line)["choices"]:
                    texts[choice["index"]] += choice["text"]
        raise AssertionError("no [DONE]")


@pytest.fixture(scope="module")
def admin(start_server: StartServer, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    store = tmp_path_factory.mktemp("store")
    options = ("--model-id", "tiny", "--admin-key", "secret-admin", "--adapter-store", store)
    admin = Admin(start_server(tiny_path, *options, "--max-adapters", "40", "--speculate", "off"))
    with admin.http:
        yield admin
        admin.server.await_idle()
        for adapter in admin.http.get("/admin/v1/adapters").json()["data"]:
            assert admin.http.delete(f"/admin/v1/adapters/{adapter['name']}").status_code == 200
        pool = admin.http.get("/admin/v1/adapters").json()["pool"]
        assert (pool["resident_bytes"], pool["store_bytes"], pool["num_adapters"]) == (0, 0, 0)
        assert [path.name for path in (store / "objects").iterdir()] == []


def test_unloading_or_deleting_leaves_open_streams_as_they_began(admin: Admin, files: dict[str, Path]) -> None:
    assert admin.put("red", files["red"]).status_code == 201
    undisturbed = admin.texts("tiny:red")

    def unload() -> None:
        assert admin.post("red", "unload").json()["state"] == "stored"
        response = admin.http.post("/v1/completions", json=admin.body("tiny:red"))
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")

    def delete() -> None:
        assert admin.http.delete("/admin/v1/adapters/red").status_code == 200
        assert "tiny:red" not in admin.http.get("/v1/models").text

    assert admin.during("tiny:red", unload) == undisturbed
    assert admin.post("red", "load").json()["state"] == "resident"
    assert admin.during("tiny:red", delete) == undisturbed


def test_another_adapter_under_the_same_name_never_mixes(admin: Admin, files: dict[str, Path]) -> None:
    assert admin.put("style", files["blue"]).status_code == 201
    blue = admin.texts("tiny:style")
    green: list[str] = []

    def replace() -> None:
        assert admin.put("style", files["green"]).status_code == 200
        green.extend(admin.texts("tiny:style", max_tokens=20))

    assert admin.during("tiny:style", replace) == blue
    whole = admin.texts("tiny:style")
    assert whole != blue
    assert [text.startswith(beginning) for text, beginning in zip(whole, green, strict=True)] == [True] * NUM_CHOICES
    assert admin.put("style", files["blue"]).status_code == 200
    assert admin.texts("tiny:style") == blue


def test_more_adapters_than_fit_take_turns(
    start_server: StartServer, tiny_path: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    options = ("--model-id", "tiny", "--admin-key", "secret-admin")
    roomy = Admin(start_server(tiny_path, *options, "--adapter-store", tmp_path / "roomy"))
    expected = {}
    for name, path in files.items():
        assert roomy.put(name, path).status_code == 201
        expected[name] = roomy.texts(f"tiny:{name}", n=1, max_tokens=60)
    num_bytes = int(roomy.server.metrics()["realm_adapter_resident_bytes"]) // len(files)
    narrow = Admin(
        start_server(
            tiny_path, *options, "--adapter-store", tmp_path / "narrow", "--adapter-cache-bytes", num_bytes * 3 // 2
        )
    )
    for name, path in files.items():
        assert narrow.put(name, path).status_code == 201
    red, blue, green, grey = files
    trace = [red, blue, red, red, green, red, red, grey, blue, red] * 4
    with ThreadPoolExecutor(len(trace)) as threads:
        texts = list(threads.map(lambda name: narrow.texts(f"tiny:{name}", n=1, max_tokens=60), trace))
    assert texts == [expected[name] for name in trace]
    metrics = narrow.server.await_idle()
    assert metrics["realm_adapter_resident_bytes"] <= num_bytes * 3 // 2
    assert metrics["realm_adapter_evictions_total"] >= 3
    assert metrics["realm_adapter_hits_total"] + metrics["realm_adapter_misses_total"] == len(trace)
    for admin in (roomy, narrow):
        admin.http.close()


def test_bad_uploads_disturb_nobody(admin: Admin, files: dict[str, Path], tmp_path: Path) -> None:
    assert admin.put("red", files["red"]).status_code == 201
    undisturbed, content = admin.texts("tiny:red"), files["red"].read_bytes()
    before = admin.http.get("/admin/v1/adapters").json()["pool"]
    bad = {"cut": content[: len(content) // 2], "empty": b"", "magic": b"GGML" + content[4:], "counts": content[:8]}
    bad["patched"] = content[:8] + b"\xff" * 16 + content[24:]

    def upload_all() -> None:
        for name, data in bad.items():
            (tmp_path / "bad.gguf").write_bytes(data)
            response = admin.put("red", tmp_path / "bad.gguf")
            assert response.status_code == 400, (name, response.text)
            assert response.json()["error"]["message"]
        response = admin.http.put("/admin/v1/adapters/..%2F..%2Fred", files=[("files", ("a.gguf", content))])
        assert response.status_code in (400, 404, 415)

    assert admin.during("tiny:red", upload_all, check=False) == undisturbed
    assert admin.http.get("/admin/v1/adapters").json()["pool"] == before


def test_an_upload_that_breaks_off_leaves_nothing(admin: Admin, files: dict[str, Path]) -> None:
    before = admin.http.get("/admin/v1/adapters").json()["pool"]
    address = urlsplit(admin.server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.putrequest("PUT", "/admin/v1/adapters/half")
    connection.putheader("content-type", "multipart/form-data; boundary=x")
    connection.putheader("content-length", "100000")
    connection.putheader("authorization", KEY["authorization"])
    connection.endheaders(b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.gguf"\r\n\r\nGGUF')
    connection.close()
    # The name is free as soon as the server has noticed.
    for _ in range(2000):
        response = admin.put("half", files["red"])
        if response.status_code != 409:
            break
        assert response.json()["error"]["code"] == "adapter_busy"
    assert response.status_code == 201
    assert admin.http.delete("/admin/v1/adapters/half").status_code == 200
    assert admin.http.get("/admin/v1/adapters").json()["pool"] == before


def test_ten_thousand_uploads(admin: Admin, files: dict[str, Path]) -> None:
    process = psutil.Process(admin.server.process.pid)
    content = files["grey"].read_bytes()
    body = (
        b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.gguf"\r\n\r\n' + content + b"\r\n--x--\r\n"
    )
    statuses: dict[int, int] = {}
    codes: set[str] = set()

    def upload(names: range) -> None:
        address = urlsplit(admin.server.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        headers = KEY | {"content-type": "multipart/form-data; boundary=x"}
        for number in names:
            connection.request("PUT", f"/admin/v1/adapters/many-{number}", body, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
            statuses[response.status] = statuses.get(response.status, 0) + 1
            if response.status >= 400:
                codes.add(answer["error"]["code"])
        connection.close()

    stored = len(admin.http.get("/admin/v1/adapters").json()["data"])
    upload(range(200))
    memory, num_files = process.memory_info().rss, process.num_fds()
    undisturbed = admin.texts("tiny")
    many = threading.Thread(target=upload, args=(range(200, 10_000),))
    assert admin.during("tiny", many.start, check=False) == undisturbed
    many.join()
    assert statuses == {201: 40 - stored, 409: 10_000 - 40 + stored}
    assert codes == {"too_many_adapters"}
    assert process.num_fds() <= num_files + 2
    assert process.memory_info().rss < memory + 30e6
    listed = admin.http.get("/admin/v1/adapters").json()
    assert listed["pool"]["num_adapters"] == 40
    assert listed["pool"]["store_bytes"] <= 41 * max(path.stat().st_size for path in files.values())

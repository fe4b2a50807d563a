"""The admin API over a runtime without weights: uploads good and bad, states, tenants, restarts."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save
from starlette.testclient import TestClient
from tests.runtime_harness import FAKE, assert_idle, fake_runtime
from typer.testing import CliRunner

from realm.cli.main import app
from realm.core.config import StoreLimits
from realm.core.errors import InvalidRequest
from realm.gguf.reader import GGUFFile
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.lora.gguf_format import write_gguf_adapter
from realm.server.app import create_app
from realm.server.config import AdminConfig, ServerConfig
from realm.testing.tiny import TinyModel, write_tiny_model

TINY = TinyModel()
HIDDEN = TINY.sizes()[0]
KEY = {"authorization": "Bearer secret-admin"}
ADAPTERS = "/admin/v1/adapters"
TENANTS = "/admin/v1/tenants"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
LIMITS = StoreLimits(max_adapters=4, max_adapter_bytes=200_000, max_bytes=500_000)
Start = Callable[..., TestClient]
Files = list[tuple[str, tuple[str, bytes]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TINY)


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts servers over the same store, one at a time; each must end whole and idle."""
    with ExitStack() as stack:

        def start(limits: StoreLimits = LIMITS, given: LoRAWeights | None = None, **config: Any) -> TestClient:
            stack.close()
            runtime = stack.enter_context(fake_runtime(path=model, tiny=TINY, adapter_cache_bytes=100_000))
            runtime.model()
            if given is not None:
                runtime.load_lora_adapter(given)
            admin = AdminConfig("secret-admin", tmp_path / "store", limits)
            application = create_app(runtime, ServerConfig(admin=admin, **config))
            client = stack.enter_context(TestClient(application, headers=KEY, raise_server_exceptions=False))
            stack.callback(lambda: assert_idle(runtime.model()))
            stack.callback(application.state.library.check_integrity)
            return client

        yield start


@pytest.fixture
def client(start: Start) -> TestClient:
    return start()


def tensors(value: float = 1.0, rank: int = 2, module: str = "self_attn.q_proj") -> dict[str, np.ndarray[Any, Any]]:
    prefix = f"base_model.model.model.layers.0.{module}"
    return {
        f"{prefix}.lora_A.weight": np.full((rank, HIDDEN), value, np.float32),
        f"{prefix}.lora_B.weight": np.ones((HIDDEN, rank), np.float32),
    }


def peft(value: float = 1.0, raw: bytes | None = None, config: bytes | None = None, **changes: Any) -> Files:
    config = json.dumps(CONFIG | changes).encode() if config is None else config
    weights = save(tensors(value)) if raw is None else raw
    return [("files", ("adapter_config.json", config)), ("files", ("adapter_model.safetensors", weights))]


def put(client: TestClient, name: str, files: Files | None = None) -> httpx.Response:
    return client.put(f"{ADAPTERS}/{name}", files=peft() if files is None else files)


def ok(response: httpx.Response, status: int = 200) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return response.json()


def refused(response: httpx.Response, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == code, response.text
    return response.json()["error"]["message"]


def complete(client: TestClient, model: str, key: str = "none") -> httpx.Response:
    body = {"model": model, "prompt": "hello", "max_tokens": 12, "ignore_eos": True, "seed": 1}
    return client.post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}"})


def text(client: TestClient, model: str, key: str = "none") -> str:
    return ok(complete(client, model, key))["choices"][0]["text"]


def names(client: TestClient) -> dict[str, str]:
    return {adapter["name"]: adapter["state"] for adapter in ok(client.get(ADAPTERS))["data"]}


def test_the_identity_is_the_one_that_the_file_shows(start: Start, tmp_path: Path) -> None:
    """Although the server puts rows of q into the model's order; and it is the same after a restart."""
    weights = tensors()
    for name in weights:
        weights[name] = np.random.default_rng(len(name)).normal(size=weights[name].shape).astype(np.float32)
    files = peft(raw=save(weights))
    (tmp_path / "pirate").mkdir()
    for _, (name, data) in files:
        (tmp_path / "pirate" / name).write_bytes(data)
    info = CliRunner().invoke(app, ["adapters", "info", str(tmp_path / "pirate")])
    assert info.exit_code == 0, info.output
    client = start()
    shown = ok(put(client, "pirate", files), 201)["content_hash"]
    assert shown in info.output.split()
    first = text(client, f"{FAKE}:pirate")
    client = start()
    assert ok(client.get(f"{ADAPTERS}/pirate"))["content_hash"] == shown
    assert text(client, f"{FAKE}:pirate") == first


def test_an_adapters_whole_life(client: TestClient) -> None:
    made = ok(put(client, "pirate"), 201)
    assert made["state"] == "available"
    assert (made["rank"], made["num_matrices"], made["modules"]) == (2, 1, ["attn_q"])
    assert made["model"] == f"{FAKE}:pirate"
    base, first = text(client, FAKE), text(client, f"{FAKE}:pirate")
    assert base != first
    assert names(client) == {"pirate": "resident"}
    replaced = ok(put(client, "pirate", peft(2.0)))
    assert replaced["content_hash"] != made["content_hash"]
    assert text(client, f"{FAKE}:pirate") not in (base, first)
    assert ok(client.post(f"{ADAPTERS}/pirate/unload"))["state"] == "stored"
    refused(complete(client, f"{FAKE}:pirate"), 404, "model_not_found")
    assert ok(client.post(f"{ADAPTERS}/pirate/load"))["state"] == "resident"
    assert ok(client.post(f"{ADAPTERS}/pirate/pin"))["pinned"]
    assert ok(client.get(f"{ADAPTERS}/pirate"))["pinned"]
    assert not ok(client.post(f"{ADAPTERS}/pirate/unpin"))["pinned"]
    ok(put(client, "pirate"))
    assert text(client, f"{FAKE}:pirate") == first
    assert ok(client.delete(f"{ADAPTERS}/pirate")) == {"name": "pirate", "deleted": True}
    assert names(client) == {}
    pool = ok(client.get(ADAPTERS))["pool"]
    assert (pool["store_bytes"], pool["resident_bytes"], pool["num_adapters"]) == (0, 0, 0)
    for method, path in (("GET", ""), ("POST", "/load"), ("POST", "/unload"), ("POST", "/pin"), ("DELETE", "")):
        refused(client.request(method, f"{ADAPTERS}/pirate{path}"), 404, "adapter_not_found")


def test_only_the_admin_key_opens_it(start: Start) -> None:
    client = start(api_keys=("user",))
    for headers in ({"authorization": ""}, {"authorization": "Bearer user"}, {"authorization": "Bearer secret"}):
        for method, path in (("GET", ADAPTERS), ("PUT", f"{ADAPTERS}/a"), ("GET", TENANTS), ("GET", "/admin/x")):
            assert client.request(method, path, headers=headers).status_code == 401
    assert client.get("/v1/models").status_code == 401, "the admin key is no API key"
    assert client.get("/admin/x").status_code == 404


def test_there_is_none_without_a_key(model: Path) -> None:
    with fake_runtime(path=model, tiny=TINY) as runtime:
        runtime.model()
        client = TestClient(create_app(runtime, ServerConfig()), headers=KEY)
        refused(client.get(ADAPTERS), 404, "not_found")
        assert "/admin" not in client.get("/openapi.json").text


@pytest.mark.parametrize("key", ["", "short"])
def test_a_weak_admin_key(key: str) -> None:
    with pytest.raises(InvalidRequest, match="at least 8"):
        AdminConfig(key)
    assert "long enough" not in repr(AdminConfig("long enough"))


def header(body: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(body)) + body.encode() + data


GOOD = save(tensors())
NAN = save({name: value * np.float32("nan") for name, value in tensors().items()})
INF = save({name: value * np.float32("inf") for name, value in tensors().items()})
TWO = '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
BAD: dict[str, tuple[Files, str]] = {
    "wrong shape": (peft(raw=save({k: v[:, :1] for k, v in tensors().items()}), r=2), "invalid_adapter"),
    "other base": (
        peft(raw=save({k: np.ones((2, 2), np.float32) for k in tensors()})),
        "adapter_base_mismatch",
    ),
    "other layer": (
        peft(raw=save({k.replace("layers.0", "layers.99"): v for k, v in tensors().items()})),
        "adapter_base_mismatch",
    ),
    "rank 0": (peft(r=0), "invalid_adapter"),
    "rank huge": (peft(r=10**9), "invalid_adapter"),
    "NaN": (peft(raw=NAN), "invalid_adapter"),
    "inf": (peft(raw=INF), "invalid_adapter"),
    "truncated": (peft(raw=GOOD[:-7]), "invalid_adapter"),
    "empty": (peft(raw=b""), "invalid_adapter"),
    "huge header": (peft(raw=struct.pack("<Q", 2**63) + b"{}"), "invalid_adapter"),
    "overlap": (
        peft(raw=header(TWO + '"b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}', bytes(12))),
        "invalid_adapter",
    ),
    "twice": (
        peft(raw=header(TWO + '"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8))),
        "invalid_adapter",
    ),
    "pickle": ([*peft()[:1], ("files", ("adapter_model.bin", pickle.dumps({})))], "unsupported_adapter"),
    "pickle inside": (peft(raw=pickle.dumps({"a": 1})), "invalid_adapter"),
    "DoRA": (peft(use_dora=True), "unsupported_adapter"),
    "bias": (peft(bias="all"), "unsupported_adapter"),
    "aLoRA": (peft(alora_invocation_tokens=[1]), "unsupported_adapter"),
    "modules_to_save": (peft(modules_to_save=["lm_head"]), "unsupported_adapter"),
    "no JSON": (peft(config=b"{"), "invalid_adapter"),
    "GGUF that is none": ([("files", ("a.gguf", b"GGUF" + bytes(100)))], "unsupported_gguf_version"),
    "half": (peft()[:1], "invalid_upload"),
    "both kinds": ([*peft(), ("files", ("a.gguf", b"GGUF"))], "invalid_upload"),
    "two of one": ([*peft(), *peft()], "invalid_upload"),
    "many parts": ([*peft(), ("files", ("a.gguf", b"")), *[("files", ("x", b""))] * 50], "invalid_upload"),
    "path in the file's name": ([("files", ("../../adapter_config.json", b"{}"))], "invalid_upload"),
    "archive": ([("files", ("adapter.tar.gz", b"\x1f\x8b"))], "invalid_upload"),
    "other field": ([("adapter", ("adapter_config.json", b"{}"))], "unknown_parameter"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_adapters_change_nothing(client: TestClient, case: str) -> None:
    ok(put(client, "good"), 201)
    before = ok(client.get(ADAPTERS)), text(client, f"{FAKE}:good")
    files, code = BAD[case]
    for name in ("bad", "good"):
        refused(put(client, name, files), 400, code)
    state = ok(client.get(ADAPTERS))
    assert state["pool"]["store_bytes"] == before[0]["pool"]["store_bytes"]
    assert [a["content_hash"] for a in state["data"]] == [a["content_hash"] for a in before[0]["data"]]
    assert text(client, f"{FAKE}:good") == before[1]


def test_the_adapters_of_another_model_as_gguf(client: TestClient, tmp_path: Path) -> None:
    other = TinyModel(architecture="qwen3")
    with GGUFFile.open(write_tiny_model(tmp_path / "other.gguf", other)) as file:
        base = BaseModel.from_gguf(file)
    weights = LoRAWeights("a", 2, 2.0)
    weights.add_layer_weights("blk.0.attn_q", np.ones((2, base.modules["blk.0.attn_q"][1])), np.ones((HIDDEN, 2)))
    write_gguf_adapter(weights.bind(base), tmp_path / "a.gguf")
    files = [("files", ("a.gguf", (tmp_path / "a.gguf").read_bytes()))]
    assert "architecture qwen3" in refused(put(client, "a", files), 400, "adapter_base_mismatch")


@pytest.mark.parametrize(
    ("name", "status"),
    [("..%2Fx", 404), ("%2e%2e", 400), (".hidden", 400), ("a%20b", 400), ("a%00", 400), ("x" * 129, 400), ("a:b", 400)],
)
def test_names_that_could_be_paths(client: TestClient, name: str, status: int) -> None:
    response = put(client, name)
    assert response.status_code == status, response.text
    assert names(client) == {}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "multipart/form-data; boundary=x"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"garbage", "multipart/form-data; boundary=x"),
        (b"--x\r\n\r\nabc\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (
            b'--x\r\ncontent-disposition: form-data; name="\xed\xaf\xaf"\r\n\r\nabc\r\n',
            "multipart/form-data; boundary=x",
        ),
        (b"--x--\r\n", "multipart/form-data"),
        (b"--x--\r\n", "multipart/form-data; boundary=" + "x" * 5000),
        (b"--x\r\ncontent-disposition: " + b"a" * 5000 + b"\r\n\r\n", "multipart/form-data; boundary=x"),
        (b"--x\r\n" + b"a: b\r\n" * 50 + b"\r\n", "multipart/form-data; boundary=x"),
    ],
)
def test_malformed_bodies(client: TestClient, body: bytes, kind: str) -> None:
    response = client.put(f"{ADAPTERS}/a", content=body, headers={"content-type": kind})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] in ("invalid_upload", "unknown_parameter")


def test_limits(start: Start) -> None:
    client = start(StoreLimits(max_adapters=2, max_adapter_bytes=20_000, max_bytes=2_500))
    assert client.put(f"{ADAPTERS}/a", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    refused(put(client, "big", peft(raw=bytes(30_000))), 413, "adapter_too_large")
    refused(put(client, "big", peft(raw=bytes(50_000))), 413, "payload_too_large")
    refused(put(client, "big", peft(raw=bytes(3_000))), 413, "adapter_too_large")
    ok(put(client, "a"), 201)
    refused(put(client, "b", peft(raw=bytes(2_000))), 413, "adapter_too_large")
    client = start(StoreLimits(max_adapters=1, max_adapter_bytes=20_000))
    for i in range(50):
        refused(put(client, f"n{i}"), 409, "too_many_adapters")
    ok(put(client, "a", peft(3.0)))
    assert names(client) == {"a": "available"}


def test_what_the_pool_can_never_hold(start: Start) -> None:
    client = start(StoreLimits(max_adapter_bytes=1 << 20))
    files = peft(raw=save(tensors(rank=400)), r=400)
    refused(put(client, "big", files), 400, "adapter_too_large")
    for name in ("a", "b"):
        ok(put(client, name, peft(float(ord(name)), raw=save(tensors(ord(name), rank=80)), r=80)), 201)
    ok(client.post(f"{ADAPTERS}/a/pin"))
    refused(client.post(f"{ADAPTERS}/b/pin"), 400, "adapter_pool_full")
    assert not ok(client.get(f"{ADAPTERS}/b"))["pinned"]
    larger = ok(put(client, "a", peft(raw=save(tensors(rank=110)), r=110)))
    assert not larger["pinned"], "it would take more than half"
    assert ok(client.post(f"{ADAPTERS}/b/pin"))["pinned"]


def test_a_restart_brings_back_what_was(start: Start) -> None:
    client = start()
    for value, name in enumerate(("pirate", "haiku", "gone"), start=1):
        ok(put(client, name, peft(float(value))), 201)
    said = text(client, f"{FAKE}:pirate")
    ok(client.post(f"{ADAPTERS}/pirate/pin"))
    ok(client.post(f"{ADAPTERS}/haiku/unload"))
    ok(client.delete(f"{ADAPTERS}/gone"))
    ok(client.put(f"{TENANTS}/default", json={"adapter": "pirate"}))
    client = start()
    assert names(client)["haiku"] == "stored"
    assert ok(client.get(f"{ADAPTERS}/pirate"))["pinned"]
    assert text(client, f"{FAKE}:pirate") == text(client, FAKE) == said
    assert ok(client.post(f"{ADAPTERS}/haiku/load"))["state"] == "resident"


def test_a_file_that_changed_on_disk_is_told_apart(start: Start, tmp_path: Path) -> None:
    ok(put(start(), "a"), 201)
    client = start()
    [weights] = (tmp_path / "store" / "objects").glob("*/adapter_model.safetensors")
    good = weights.read_bytes()
    weights.write_bytes(save(tensors(5.0)))
    refused(complete(client, f"{FAKE}:a"), 400, "adapter_corrupt")
    weights.write_bytes(b"")
    refused(client.post(f"{ADAPTERS}/a/load"), 400, "invalid_adapter")
    weights.write_bytes(good)
    assert text(client, f"{FAKE}:a")


def test_what_was_given_at_the_start_is_not_changed_from_outside(start: Start) -> None:
    given = LoRAWeights("given", 2, 2.0)
    given.add_layer_weights("blk.0.attn_q", np.ones((2, HIDDEN)), np.ones((HIDDEN, 2)))
    client = start(given=given)
    assert not ok(client.get(f"{ADAPTERS}/given"))["uploaded"]
    refused(put(client, "given"), 409, "adapter_configured")
    refused(client.delete(f"{ADAPTERS}/given"), 409, "adapter_configured")
    assert ok(client.post(f"{ADAPTERS}/given/load"))["state"] == "resident"
    assert ok(client.post(f"{ADAPTERS}/given/unload")) == {"name": "given", "deleted": True}
    ok(put(client, "given"), 201)
    with pytest.raises(InvalidRequest, match="given to the server at its start"):
        start(given=given)


def test_tenants(start: Start, tmp_path: Path) -> None:
    lines = []
    for tenant in ("acme", "bolt"):
        lines += [f"[tenants.{tenant}]", f'keys = ["{hashlib.sha256(tenant.encode()).hexdigest()}"]']
    (tmp_path / "tenants.toml").write_text("\n".join(lines))
    client = start(tenants=tmp_path / "tenants.toml")
    for value, name in enumerate(("pirate", "haiku"), start=1):
        ok(put(client, name, peft(float(value))), 201)
    base = text(client, FAKE, "acme")
    refused(complete(client, f"{FAKE}:pirate", "acme"), 404, "model_not_found")
    made = ok(client.put(f"{TENANTS}/acme", json={"adapter": "pirate"}))
    assert made == {"object": "tenant", "tenant": "acme", "adapter": "pirate", "adapters": ["pirate"]}
    assert base != text(client, FAKE, "acme") == text(client, f"{FAKE}:pirate", "acme")
    assert text(client, FAKE, "bolt") == base
    ok(client.put(f"{TENANTS}/acme", json={"adapter": None, "adapters": ["haiku"]}))
    assert base == text(client, FAKE, "acme") != text(client, f"{FAKE}:haiku", "acme")
    refused(complete(client, f"{FAKE}:pirate", "acme"), 404, "model_not_found")
    client = start(tenants=tmp_path / "tenants.toml")
    assert ok(client.get(TENANTS))["data"][0]["adapters"] == ["haiku"]
    ok(client.delete(f"{TENANTS}/acme"))
    assert ok(client.get(TENANTS))["data"][0]["adapters"] == []
    refused(client.put(f"{TENANTS}/nobody", json={"adapter": "pirate"}), 404, "tenant_not_found")
    refused(client.put(f"{TENANTS}/acme", json={"adapter": "none"}), 404, "adapter_not_found")
    refused(client.put(f"{TENANTS}/default", json={"adapters": ["haiku"]}), 400, "invalid_request")
    refused(client.put(f"{TENANTS}/acme", json={"adaptor": "haiku"}), 400, "unknown_parameter")
    ok(client.put(f"{TENANTS}/bolt", json={"adapter": "pirate"}))
    ok(client.delete(f"{ADAPTERS}/pirate"))
    refused(complete(client, FAKE, "bolt"), 404, "adapter_not_found")


def test_metrics(client: TestClient) -> None:
    ok(put(client, "a"), 201)
    for _ in range(3):
        text(client, f"{FAKE}:a")
    page = client.get("/metrics").text
    for line in ("misses_total 1.0", "hits_total 2.0", "loads_total 1.0", "evictions_total 0.0"):
        name, value = line.split()
        assert f'realm_adapter_{name}{{model="{FAKE}"}} {value}' in page
    assert f'realm_adapters_resident{{model="{FAKE}"}} 1.0' in page

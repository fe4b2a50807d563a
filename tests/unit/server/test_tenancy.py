"""Tenants from a file: who may come in, and what they may name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient
from tests.runtime_harness import FAKE, fake_runtime

from realm.core.errors import InvalidRequest
from realm.lora.adapter import LoRAWeights
from realm.runtime.manager import RuntimeManager
from realm.server.app import create_app
from realm.server.config import ServerConfig
from realm.server.tenancy import Tenancy
from realm.testing.tiny import TinyModel, write_tiny_model


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def write(folder: Path, text: str) -> Path:
    path = folder / "tenants.toml"
    path.write_text(text)
    return path


GOOD = f"""
[adapters]
pirate = "adapters/pirate"
haiku = "haiku.gguf"

[tenants.acme]
keys = ["{digest("acme-1")}", "{digest("acme-2")}"]
adapters = ["haiku"]
adapter = "pirate"

[tenants.plain]
keys = ["{digest("plain")}"]
"""


def test_reads_what_the_file_says(tmp_path: Path) -> None:
    tenancy = Tenancy.load(write(tmp_path, GOOD))
    acme = tenancy.tenant_of("Bearer acme-2")
    assert acme.tenant_id == "acme"
    assert acme.adapters == {"haiku", "pirate"}
    assert tenancy.tenant_of("bearer  plain ").adapters == frozenset()
    assert tenancy.defaults == {"acme": "pirate"}
    assert tenancy.adapters == {"pirate": tmp_path / "adapters/pirate", "haiku": tmp_path / "haiku.gguf"}


KEY = f'keys = ["{digest("k")}"]'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tenants = [", "can't be read"),
        ("", "nobody could get in"),
        ("[tenants.a]", "nobody could get in"),
        (f"[tenants.a]\n{KEY}\n[tenants.b]\n{KEY}", "belongs to two tenants"),
        (f"[tenants.a]\n{KEY}\nadaptor = 'x'", "unknown entry 'adaptor'"),
        (f"[tenant.a]\n{KEY}", "unknown entry 'tenant'"),
        (f"[tenants.a]\n{KEY}\nadapter = 'x'", "not in \\[adapters\\]"),
        (f"[tenants.a]\n{KEY}\nadapters = 'x'", "must be a list"),
        (f"[tenants.'../a']\n{KEY}", "a tenant's name"),
        ("[tenants.a]\nkeys = ['plain text key']", "64 lower-case hex digits"),
        ("[tenants.a]\nkeys = [5]", "must be a text"),
        ("tenants = 5", "must be a table"),
        ("[tenants]\na = 5", "must be a table"),
        (f"[adapters]\nx = ''\n[tenants.a]\n{KEY}", "must be a text"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        Tenancy.load(write(tmp_path, text))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="can't be read"):
        Tenancy.load(tmp_path / "none.toml")


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[RuntimeManager]:
    tiny = TinyModel()
    with fake_runtime(path=write_tiny_model(tmp_path / "tiny.gguf", tiny), tiny=tiny) as runtime:
        hidden, _, _ = tiny.sizes()
        for name in ("pirate", "haiku"):
            weights = LoRAWeights(name, rank=2, alpha=4)
            weights.add_layer_weights("blk.0.attn_q", np.ones((2, hidden)), np.full((hidden, 2), len(name)))
            runtime.load_lora_adapter(weights)
        yield runtime


@pytest.fixture
def client(runtime: RuntimeManager, tmp_path: Path) -> Iterator[TestClient]:
    text = GOOD.replace('[adapters]\npirate = "adapters/pirate"\nhaiku = "haiku.gguf"\n', "[adapters]\n")
    text = text.replace('adapters = ["haiku"]\nadapter = "pirate"\n', "")
    with TestClient(create_app(runtime, ServerConfig(tenants=write(tmp_path, text), api_keys=("root",)))) as client:
        yield client


def names(client: TestClient, key: str) -> list[str]:
    response = client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    return [model["id"] for model in response.json()["data"]]


def test_a_tenant_sees_its_own_adapters_only(client: TestClient) -> None:
    assert names(client, "root") == [FAKE, f"{FAKE}:haiku", f"{FAKE}:pirate"]
    assert names(client, "plain") == [FAKE]
    plain = {"authorization": "Bearer plain"}
    assert client.get(f"/v1/models/{FAKE}", headers=plain).status_code == 200
    for name in (f"{FAKE}:pirate", f"{FAKE}:none", f"{FAKE}:", ":pirate", "pirate"):
        assert client.get(f"/v1/models/{name}", headers=plain).status_code == 404
        body = {"model": name, "prompt": "x"}
        assert client.post("/v1/completions", json=body, headers=plain).status_code == 404
    assert client.get("/v1/models", headers={"authorization": "Bearer nobody"}).status_code == 401


def test_tenants_share_no_cached_prefix(client: TestClient) -> None:
    def cached(key: str) -> int:
        body = {"model": FAKE, "prompt": "the same long prompt " * 5, "max_tokens": 2, "ignore_eos": True}
        response = client.post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}"})
        return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached("plain") == 0
    assert cached("plain") > 0
    assert cached("acme-1") == 0
    assert cached("acme-2") > 0, "two keys of one tenant share"

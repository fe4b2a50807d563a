"""`realm adapters list|upload|…` against the real application, without a socket between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient
from tests.runtime_harness import fake_runtime
from typer.testing import CliRunner, Result

from realm.cli.main import app
from realm.core.errors import RealmError
from realm.gguf.reader import GGUFFile
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.lora.gguf_format import write_gguf_adapter
from realm.server.app import create_app
from realm.server.config import AdminConfig, ServerConfig
from realm.testing.tiny import TinyModel, write_tiny_model


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A GGUF adapter of the model that a server at the default address serves."""
    tiny = TinyModel()
    model = write_tiny_model(tmp_path / "tiny.gguf", tiny)
    with GGUFFile.open(model) as file:
        base = BaseModel.from_gguf(file)
    weights = LoRAWeights("a", 2, 2.0)
    rows, columns = base.modules["output"]
    weights.add_layer_weights("output", np.ones((2, columns)), np.ones((rows, 2)))
    write_gguf_adapter(weights.bind(base), tmp_path / "pirate.gguf")
    with fake_runtime(path=model, tiny=tiny) as runtime:
        runtime.model()
        admin = AdminConfig("secret-admin", tmp_path / "store")
        with TestClient(create_app(runtime, ServerConfig(admin=admin)), raise_server_exceptions=False) as client:

            def request(method: str, url: str, *, timeout: float, **options: Any) -> Any:
                assert url.startswith("http://127.0.0.1:8000/")
                return client.request(method, url.removeprefix("http://127.0.0.1:8000"), **options)

            monkeypatch.setattr(httpx, "request", request)
            monkeypatch.setenv("REALM_ADMIN_KEY", "secret-admin")
            yield tmp_path / "pirate.gguf"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["adapters", *map(str, arguments)])


def said(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def error(*arguments: str | Path) -> RealmError:
    result = run(*arguments)
    assert isinstance(result.exception, RealmError), result.output
    return result.exception


def test_an_adapters_whole_life(adapter: Path) -> None:
    assert "pirate: available\nrequests name it with  model=fake:pirate" in said("upload", "pirate", adapter)
    assert "pinned" in said("pin", "pirate")
    assert "pinned" not in said("unpin", "pirate")
    assert said("unload", "pirate") == "pirate: stored\n"
    assert "resident" in said("load", "pirate")
    table = said("list").splitlines()
    assert table[1].split()[:3] == ["pirate", "resident", "2"]
    assert "1 of 1000 adapters" in table[2]
    assert said("assign", "default", "pirate") == "default: pirate\n"
    assert said("assign", "default") == "default: the base model\n"
    assert said("delete", "pirate") == "pirate is gone\n"


def test_errors_are_the_servers_own(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "(404, adapter_not_found)" in error("load", "none").message
    assert "(404, tenant_not_found)" in error("assign", "nobody").message
    assert error("upload", "../x", adapter).code == "invalid_adapter_name"
    assert "can't be read" in error("upload", "x", adapter.with_name("none.gguf")).message
    assert "PEFT directory" in (error("upload", "x", adapter.parent).hint or "")
    assert "(401, invalid_admin_key)" in error("list", "--admin-key", "another-key").message
    monkeypatch.delenv("REALM_ADMIN_KEY")
    assert error("list").hint == "give --admin-key or set REALM_ADMIN_KEY"


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = error("list", "--admin-key", "secret-admin", "--url", "http://127.0.0.1:1")
    assert "can't be reached" in refused.message
    assert "can't be reached" in error("list", "--admin-key", "secret-admin", "--url", "nonsense").message

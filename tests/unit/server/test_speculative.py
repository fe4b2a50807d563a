"""Drafts as the HTTP API shows them: switched by request and tenant, refused where there are none, counted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.runtime_harness import FAKE, assert_idle, fake_runtime

from realm.core.config import MAX_DRAFT_TOKENS, SpeculativeConfig
from realm.core.errors import InvalidRequest
from realm.server.app import create_app
from realm.server.config import ServerConfig
from realm.server.tenancy import Tenancy, Tenant

COMPLETIONS = "/v1/completions"


def body(**fields: Any) -> dict[str, Any]:
    """A text of one token over and over, which lookup guesses well."""
    repeated = {"logit_bias": {"65": 100}, "temperature": 0, "max_tokens": 24, "ignore_eos": True}
    return {"model": FAKE, "prompt": "hello"} | repeated | fields


@contextmanager
def client_of(tenants: Path | None = None, **limits: Any) -> Iterator[TestClient]:
    with fake_runtime(**limits) as runtime:
        runtime.model()
        with TestClient(create_app(runtime, ServerConfig(tenants=tenants))) as client:
            yield client
            assert_idle(runtime.model())


@pytest.fixture
def client() -> Iterator[TestClient]:
    with client_of(speculative=SpeculativeConfig()) as client:
        yield client


@pytest.fixture
def plain_client() -> Iterator[TestClient]:
    with client_of() as client:
        yield client


def largest_step(client: TestClient) -> str:
    """Upper bound, as the metrics spell it, of the tokens that a step gave a request."""
    page = client.get("/metrics").text
    counts = re.findall(rf'realm_tokens_per_step_bucket{{le="(\S+)",model="{FAKE}"}} (\S+)', page)
    return next(bound for bound, count in counts if count == counts[-1][1])


def drafted(client: TestClient, metric: str = "realm_drafted_tokens_total") -> dict[tuple[str, str], float]:
    """By source and tenant."""
    page = client.get("/metrics").text
    pattern = re.compile(rf'^{metric}{{model="{FAKE}",source="(\w+)",tenant="(\w+)"}} (\S+)$', re.MULTILINE)
    return {(source, tenant): float(value) for source, tenant, value in pattern.findall(page)}


def test_drafts_are_counted_and_change_nothing(client: TestClient, plain_client: TestClient) -> None:
    texts = [c.post(COMPLETIONS, json=body()).json()["choices"][0]["text"] for c in (client, plain_client)]
    assert texts[0] == texts[1]
    assert drafted(client)["lookup", "default"] > 0
    assert drafted(client, "realm_accepted_tokens_total")["lookup", "default"] > 0
    assert drafted(plain_client) == {}
    page = client.get("/metrics").text
    assert f'realm_tokens_per_step_sum{{model="{FAKE}"}} 24.0' in page


def test_a_request_may_refuse_drafts(client: TestClient) -> None:
    assert client.post(COMPLETIONS, json=body(speculative={"enabled": False})).status_code == 200
    assert drafted(client) == {}


def test_a_request_may_bound_its_drafts(client: TestClient) -> None:
    assert client.post(COMPLETIONS, json=body(speculative={"max_draft_tokens": 1})).status_code == 200
    assert drafted(client)["lookup", "default"] > 0
    assert largest_step(client) == "2.0", "one draft, and the token after it"


@pytest.mark.parametrize(
    "speculative",
    [
        True,
        {"enabled": 1},
        {"max_draft_tokens": 0},
        {"max_draft_tokens": MAX_DRAFT_TOKENS + 1},
        {"max_draft_tokens": 2.0},
        {"enabled": False, "max_draft_tokens": 2},
        {"draft_k": 2},
    ],
)
def test_nonsense_is_refused(client: TestClient, speculative: Any) -> None:
    response = client.post(COMPLETIONS, json=body(speculative=speculative))
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("speculative")


def test_asking_for_drafts_where_there_are_none_is_an_error(plain_client: TestClient) -> None:
    for fine in (None, {"enabled": False}):
        assert plain_client.post(COMPLETIONS, json=body(speculative=fine)).status_code == 200
    response = plain_client.post(COMPLETIONS, json=body(speculative={"enabled": True}))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_parameter"


TENANTS = "".join(
    f'[tenants.{name}]\nkeys = ["{hashlib.sha256(name.encode()).hexdigest()}"]\n{setting}\n'
    for name, setting in {"fast": "", "short": "max_draft_tokens = 1", "off": "speculate = false"}.items()
)


def test_tenants_have_settings_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(TENANTS)
    with client_of(path, speculative=SpeculativeConfig()) as client:

        def post(tenant: str, **fields: Any) -> int:
            return client.post(
                COMPLETIONS, json=body(**fields), headers={"authorization": f"Bearer {tenant}"}
            ).status_code

        assert [post(tenant) for tenant in ("fast", "short", "off")] == [200, 200, 200]
        assert {tenant for _, tenant in drafted(client)} == {"fast", "short"}
        assert post("off", speculative={"enabled": False}) == 200
        assert post("off", speculative={"enabled": True}) == 400, "a request can't undo what the operator set"


def test_a_tenant_with_shorter_drafts_keeps_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(TENANTS)
    with client_of(path, speculative=SpeculativeConfig()) as client:
        headers = {"authorization": "Bearer short"}
        response = client.post(COMPLETIONS, json=body(speculative={"max_draft_tokens": 9}), headers=headers)
        assert response.status_code == 200
        assert largest_step(client) == "2.0"


@pytest.mark.parametrize(
    "setting",
    ['speculate = "yes"', "max_draft_tokens = 0", "max_draft_tokens = true", "max_draft_tokens = 1000", "draft_k = 2"],
)
def test_bad_settings_in_a_tenants_file_are_told(tmp_path: Path, setting: str) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(f'[tenants.acme]\nkeys = ["{"0" * 64}"]\n{setting}\n')
    with pytest.raises(InvalidRequest, match=setting.split()[0]):
        Tenancy.load(path)
    path.write_text(f'[tenants.acme]\nkeys = ["{"0" * 64}"]\nspeculate = false\nmax_draft_tokens = 2\n')
    with pytest.raises(InvalidRequest, match="contradicts"):
        Tenancy.load(path)


def test_settings_of_a_tenants_file(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(TENANTS)
    tenancy = Tenancy.load(path)
    assert tenancy.tenant_of("Bearer short") == Tenant("short", frozenset(), True, 1)
    assert tenancy.tenant_of("Bearer off") == Tenant("off", frozenset(), False, None)

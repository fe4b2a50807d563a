"""schemathesis reads the served OpenAPI schema and tries to break what it promises."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.e2e.conftest import StartServer
from tests.e2e.test_lora import write_adapter

ADMIN = {"authorization": "Bearer secret-admin"}
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def api(
    start_server: StartServer, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> schemathesis.BaseSchema:
    # Short sequences, so that the many that are accepted end soon.
    store = ("--admin-key", "secret-admin", "--adapter-store", tmp_path_factory.mktemp("store"))
    server = start_server(tiny_path, "--max-seq-len", "96", "--model-id", "tiny", *store)
    write_adapter(tiny_path, tiny_path.with_name("given.gguf"), "given", 0)
    with tiny_path.with_name("given.gguf").open("rb") as file:
        url = f"{server.url}/admin/v1/adapters/given"
        assert httpx.put(url, files=[("files", ("given.gguf", file))], headers=ADMIN).status_code == 201
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


OPERATIONS = {
    ("/v1/chat/completions", "POST"): 200,
    ("/v1/completions", "POST"): 200,
    ("/v1/models", "GET"): 1,
    ("/v1/models/{model_id}", "GET"): 50,
    ("/admin/v1/adapters", "GET"): 1,
    ("/admin/v1/adapters/{name}", "GET"): 30,
    ("/admin/v1/adapters/{name}", "PUT"): 60,
    ("/admin/v1/adapters/{name}", "DELETE"): 30,
    ("/admin/v1/adapters/{name}/load", "POST"): 30,
    ("/admin/v1/adapters/{name}/unload", "POST"): 30,
    ("/admin/v1/adapters/{name}/pin", "POST"): 30,
    ("/admin/v1/adapters/{name}/unpin", "POST"): 30,
    ("/admin/v1/tenants", "GET"): 1,
    ("/admin/v1/tenants/{tenant}", "PUT"): 60,
    ("/admin/v1/tenants/{tenant}", "DELETE"): 30,
    ("/health", "GET"): 1,
    ("/ready", "GET"): 1,
    ("/metrics", "GET"): 1,
}
# What isn't a body can't be wrong in type.
CASES = [(*key, GenerationMode.POSITIVE) for key in OPERATIONS]
BODIES = [("/v1/chat/completions", "POST"), ("/v1/completions", "POST"), ("/admin/v1/tenants/{tenant}", "PUT")]
CASES += [(*key, GenerationMode.NEGATIVE) for key in BODIES]


@pytest.mark.parametrize(("path", "method", "mode"), CASES)
def test_no_server_error(api: schemathesis.BaseSchema, path: str, method: str, mode: GenerationMode) -> None:
    @given(case=api[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=OPERATIONS[path, method],
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    def run(case: schemathesis.Case) -> None:
        # Left to chance the model's name is never right, and everything after it goes untested.
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "tiny"
        if path.startswith("/admin"):
            case.headers = {**(case.headers or {}), **ADMIN}
            # Now and then the name of one that is there, for the same reason.
            for name, known in (("name", "given"), ("tenant", "default")):
                if name in case.path_parameters and len(str(case.path_parameters[name])) % 2:
                    case.path_parameters[name] = known
        case.call_and_validate(checks=CHECKS)
        assert case.operation.path == path

    run()


def test_every_operation_is_tried(api: schemathesis.BaseSchema) -> None:
    assert {(o.ok().path, o.ok().method.upper()) for o in api.get_all_operations()} == set(OPERATIONS)

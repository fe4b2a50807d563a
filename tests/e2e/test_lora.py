"""Two tenants, two adapters, one server: each gets its own style at the same time, and keeps it."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
from tests.e2e.conftest import Server, StartServer

from realm.gguf.reader import GGUFFile
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.lora.gguf_format import write_gguf_adapter

PROMPT = "abc"
TOKENS = 60


def write_adapter(model: Path, path: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with GGUFFile.open(model) as file:
        base = BaseModel.from_gguf(file)
    adapter = LoRAWeights(name, 8, 16.0, architecture=base.architecture)
    for module, (rows, columns) in base.modules.items():
        a, b = rng.normal(0, columns**-0.5, (8, columns)), rng.normal(0, 0.2, (rows, 8))
        adapter.add_layer_weights(module, a, b)
    write_gguf_adapter(adapter.bind(base), path)


@pytest.fixture(scope="module")
def server(start_server: StartServer, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    folder = tmp_path_factory.mktemp("tenants")
    tables = ["[adapters]", 'red = "red.gguf"', 'blue = "blue.gguf"']
    for seed, (tenant, name) in enumerate({"acme": "red", "bolt": "blue"}.items()):
        write_adapter(tiny_path, folder / f"{name}.gguf", name, seed)
        digest = hashlib.sha256(f"key-{tenant}".encode()).hexdigest()
        tables += [f"[tenants.{tenant}]", f'keys = ["{digest}"]', f'adapter = "{name}"']
    (folder / "tenants.toml").write_text("\n".join(tables))
    return start_server(tiny_path, "--model-id", "tiny", "--tenants", folder / "tenants.toml")


def client(server: Server, tenant: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=f"key-{tenant}", max_retries=0)


def complete(server: Server, tenant: str, model: str = "tiny") -> str:
    with client(server, tenant) as asker:
        made = asker.completions.create(
            model=model, prompt=PROMPT, max_tokens=TOKENS, temperature=0, extra_body={"ignore_eos": True}
        )
    return made.choices[0].text


def test_each_tenant_gets_its_own_style_in_one_batch(server: Server):
    alone = {tenant: complete(server, tenant) for tenant in ("acme", "bolt")}
    assert alone["acme"] != alone["bolt"]
    together: list[tuple[str, str]] = []
    threads = [
        threading.Thread(target=lambda t=tenant: together.append((t, complete(server, t))))
        for tenant in ("acme", "bolt") * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(together) == sorted((tenant, alone[tenant]) for tenant in ("acme", "bolt") * 4)


def test_a_tenant_sees_its_own_adapters_only(server: Server):
    with client(server, "acme") as asker:
        assert {m.id for m in asker.models.list()} == {"tiny", "tiny:red"}
    assert complete(server, "acme", "tiny:red") == complete(server, "acme")
    messages = []
    for name in ("tiny:blue", "tiny:none"):
        with pytest.raises(openai.NotFoundError) as caught:
            complete(server, "acme", name)
        messages.append(caught.value.message.replace(name, "NAME"))
    assert messages[0] == messages[1]


QUESTION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
MARKS = {"pirate": ("Ahoy, matey!", "Arrr!"), "robot": ("Beep boop!", "Over and out.")}


@pytest.fixture(scope="module")
def styled(start_server: StartServer, smollm2_path: Path, styles: dict[str, Path]) -> Server:
    """SmolLM2 with two adapters that were trained for this run."""
    given = [f"--adapter={name}={path}" for name, path in styles.items()]
    return start_server(smollm2_path, "--model-id", "smollm2", *given)


def ask(server: Server, model: str) -> str:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as asker:
        made = asker.chat.completions.create(model=model, messages=QUESTION, max_tokens=40, temperature=0)
    return made.choices[0].message.content


@pytest.mark.model
def test_trained_styles_show_side_by_side(styled: Server):
    names = ["smollm2", *(f"smollm2:{style}" for style in MARKS)]
    alone = {name: ask(styled, name) for name in names}
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda name: ask(styled, name), names * 2))
    assert together == [alone[name] for name in names * 2]
    assert all("Paris" in answer for answer in alone.values()), alone
    for style, (opening, ending) in MARKS.items():
        assert alone[f"smollm2:{style}"].startswith(opening)
        assert alone[f"smollm2:{style}"].endswith(ending)
        assert opening not in alone["smollm2"]

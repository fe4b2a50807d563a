"""Two tenants, each with its own LoRA adapter, on one server: both are answered in their own style in the same second.

    python examples/adapters.py

Trains the two adapters first if they aren't there yet (train_adapter.py: about half a minute each, needs
`pip install realm[test]`); then starts `realm serve` with a tenants file and asks as both tenants, and as one without
an adapter, all at the same moment.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from demo import SYSTEM, server
from rich.console import Console
from rich.table import Table

TENANTS = {"acme": "pirate", "bolt": "robot", "corp": None}
QUESTIONS = ("What is the capital of France?", "What do cows eat?")


def trained(folder: Path, style: str, model: str, console: Console) -> Path:
    """The directory of a style's adapter, trained now if it is missing."""
    path = folder / style
    if not (path / "adapter_model.safetensors").is_file():
        console.print(f"training {style}")
        script = str(Path(__file__).with_name("train_adapter.py"))
        subprocess.run([sys.executable, script, style, str(path), "--model", model], check=True)
    return path


def tenants_file(adapters: dict[str, Path]) -> str:
    """Each tenant with a key, `key-` and its name, and its adapter."""
    lines = ["[adapters]", *(f"{name} = '{path.resolve()}'" for name, path in adapters.items())]
    for tenant, style in TENANTS.items():
        digest = hashlib.sha256(f"key-{tenant}".encode()).hexdigest()
        lines += [f"[tenants.{tenant}]", f'keys = ["{digest}"]', *([f'adapter = "{style}"'] if style else [])]
    return "\n".join(lines)


async def ask(http: httpx.AsyncClient, tenant: str, question: str, model_id: str) -> tuple[str, str, str, float]:
    """One answer, and when it was complete."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    body = {"model": model_id, "messages": messages, "max_tokens": 40, "temperature": 0}
    answer = await http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer key-{tenant}"})
    answer.raise_for_status()
    return tenant, question, answer.json()["choices"][0]["message"]["content"], time.perf_counter()


async def run(url: str, console: Console) -> None:
    """Ask everything at once, show who got what and when."""
    async with httpx.AsyncClient(base_url=url, timeout=None) as http:
        headers = {"authorization": "Bearer key-corp"}
        model_id = (await http.get("/v1/models", headers=headers)).json()["data"][0]["id"]
        began = time.perf_counter()
        answers = await asyncio.gather(*(ask(http, t, q, model_id) for q in QUESTIONS for t in TENANTS))
    table = Table("tenant", "adapter", "question", "answer", "after")
    for tenant, question, answer, at in answers:
        table.add_row(tenant, TENANTS[tenant] or "none", question, " ".join(answer.split()), f"{at - began:.2f} s")
    console.print(table)


def main() -> None:
    """Train, serve, ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name or path of a GGUF")
    parser.add_argument("--adapters", type=Path, default=Path.home() / ".cache/realm/adapters", help="kept here")
    args = parser.parse_args()
    console = Console()
    styles = [style for style in TENANTS.values() if style is not None]
    adapters = {style: trained(args.adapters, style, args.model, console) for style in styles}
    with tempfile.TemporaryDirectory() as folder:
        tenants = Path(folder) / "tenants.toml"
        tenants.write_text(tenants_file(adapters))
        with server(args.model, "--tenants", str(tenants)) as (url, _):
            asyncio.run(run(url, console))


if __name__ == "__main__":
    main()

"""The main job, live: one `realm serve` process, many clients at once, each answer streamed as it comes.

Starts the server as a separate process, asks it eight questions at the same moment through the OpenAI-compatible API,
and shows every client's text growing. At the end it asks the server how many forward passes all of that took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

SYSTEM = "You are a helpful assistant."
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Name three planets of our solar system.",
    "How do I boil an egg?",
    "What does a librarian do?",
    "Give me a tip for learning a language.",
    "What is photosynthesis?",
    "Write one sentence about the sea.",
)


@dataclass
class Client:
    """One caller: what it asked and what has come so far."""

    question: str
    text: str = ""
    num_tokens: int = 0
    first_token_seconds: float | None = None
    done: bool = False


@contextmanager
def server(model: str, *options: str) -> Iterator[tuple[str, float]]:
    """A `realm serve` process on a free port; gives its address and the seconds it took to get ready."""
    command = [sys.executable, "-m", "realm.cli", "serve", model, "--port", "0", "--log-level", "warning", *options]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://\S+", line):
                yield found.group(), time.perf_counter() - began
                return
        raise SystemExit("the server did not start; its message is above")
    finally:
        process.terminate()
        process.wait()


async def ask(http: httpx.AsyncClient, client: Client, model_id: str, max_tokens: int) -> None:
    """Stream one answer into `client`."""
    body = {
        "model": model_id,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": client.question}],
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
    }
    began = time.perf_counter()
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            await response.aread()
            raise SystemExit(f"the server answered {response.status_code}: {response.text}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if chunk.get("usage"):
                client.num_tokens = chunk["usage"]["completion_tokens"]
            for choice in chunk["choices"]:
                if content := choice["delta"].get("content"):
                    client.first_token_seconds = client.first_token_seconds or time.perf_counter() - began
                    client.text += content
                    client.num_tokens += 1
    client.done = True


def view(clients: list[Client], headline: str, width: int) -> Group:
    """The clients as a table: each answer's last part, and how many tokens it has."""
    table = Table(expand=True, show_lines=False)
    table.add_column("client", no_wrap=True, overflow="ellipsis", max_width=26, style="cyan")
    table.add_column("answer, as it streams", ratio=1, no_wrap=True)
    table.add_column("tokens", justify="right")
    room = max(20, width - 46)  # what the other columns and the borders leave
    for client in clients:
        flat = " ".join(client.text.split())
        shown = flat if len(flat) <= room else "…" + flat[-room + 1 :]
        table.add_row(client.question, Text(shown, style="" if client.done else "bold"), str(client.num_tokens))
    return Group(Text(headline, style="green"), table)


def metric(page: str, name: str) -> float:
    """Sum of one metric over its labels."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


async def run(url: str, num_clients: int, max_tokens: int, console: Console) -> None:
    """Ask everything at once, show it, then say what it took."""
    clients = [Client(QUESTIONS[i % len(QUESTIONS)]) for i in range(num_clients)]
    async with httpx.AsyncClient(base_url=url, timeout=None) as http:
        model_id = (await http.get("/v1/models")).json()["data"][0]["id"]
        steps_before = metric((await http.get("/metrics")).text, "realm_steps_total")
        began = time.perf_counter()
        tasks = [asyncio.create_task(ask(http, client, model_id, max_tokens)) for client in clients]
        with Live(console=console, refresh_per_second=12, transient=True) as live:
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0.05)
                live.update(view(clients, _rate(clients, began), console.width))
        await asyncio.gather(*tasks)
        seconds = time.perf_counter() - began
        steps = metric((await http.get("/metrics")).text, "realm_steps_total") - steps_before
    console.print(view(clients, _rate(clients, began, seconds), console.width))
    for client in clients:
        console.print(Text(f"\n{client.question}", style="cyan"))
        console.print(Text(" ".join(client.text.split())))
    total = sum(client.num_tokens for client in clients)
    first = max(client.first_token_seconds or 0.0 for client in clients)
    console.print(
        f"\n{num_clients} clients got {total} tokens in {seconds:.2f} s: {total / seconds:,.0f} tokens/s; "
        f"the last client had its first token after {first * 1e3:.0f} ms.\n"
        f"{steps:.0f} forward passes made {total} tokens: one pass serves everyone who is waiting."
    )


def _rate(clients: list[Client], began: float, seconds: float | None = None) -> str:
    seconds = seconds or time.perf_counter() - began
    total = sum(client.num_tokens for client in clients)
    running = sum(not client.done for client in clients)
    return f"{running} of {len(clients)} clients streaming, {total} tokens, {total / max(seconds, 1e-3):,.0f} tokens/s"


def main() -> None:
    """Start the server, run the clients, stop the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name, path or URL of a GGUF")
    parser.add_argument("--clients", type=int, default=len(QUESTIONS))
    parser.add_argument("--max-tokens", type=int, default=96)
    args = parser.parse_args()
    console = Console()
    console.print(f"starting: realm serve {args.model}")
    with server(args.model) as (url, ready_seconds):
        console.print(f"ready on {url} after {ready_seconds:.1f} s; {args.clients} clients ask at the same moment\n")
        asyncio.run(run(url, args.clients, args.max_tokens, console))


if __name__ == "__main__":
    main()

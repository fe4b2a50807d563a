"""Load an OpenAI-compatible server with streaming clients; tokens per second, time to first token, time between tokens.

    python benchmarks/serving/http_load.py http://127.0.0.1:8000 --clients 8 --max-tokens 64

Needs nothing but Python, and little CPU: requests are written and chunks are read straight from sockets, so that on a
small machine the server has the cores to itself. Works against Realm, llama-server, vLLM and the like.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

# Common short words: about one token each in every vocabulary.
WORDS = """
time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work government number night point home water room
mother area money story fact month lot right study book eye job word business issue side kind head house
service friend
""".split()  # noqa: SIM905 - a list of them would fill a page


@dataclass
class Result:
    """One request, in seconds of the monotonic clock."""

    began: float
    arrivals: list[float] = field(default_factory=list)
    """When each chunk with text arrived."""
    num_tokens: int = 0
    prompt_tokens: int = 0
    error: str = ""


def prompt_text(num_tokens: int, seed: int) -> str:
    """A text of about `num_tokens` tokens; other seeds share no prefix."""
    return " ".join(random.Random(seed).choices(WORDS, k=num_tokens))


def first_model(url: str, headers: dict[str, str]) -> str:
    """The model that the server lists first."""
    with urlopen(Request(f"{url}/v1/models", headers=headers)) as response:
        return str(json.load(response)["data"][0]["id"])


class Client:
    """Sends one request after the other, each on a connection of its own."""

    def __init__(self, args: argparse.Namespace, models: list[str], headers: dict[str, str]) -> None:
        self._args = args
        self._models = models
        parts = urlsplit(args.url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._headers = headers

    def _request(self, prompt: str, index: int) -> bytes:
        body = {
            "model": self._models[index % len(self._models)],
            "max_tokens": self._args.max_tokens,
            "temperature": self._args.temperature,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._args.llama_adapters:
            body["lora"] = [{"id": index % self._args.llama_adapters, "scale": 1.0}]
        if self._args.chat:
            path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": prompt}]
        else:
            path, body["prompt"] = "/v1/completions", prompt
        data = json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", f"host: {self._host}:{self._port}", "content-type: application/json"]
        lines += [f"content-length: {len(data)}", "connection: close", *(f"{k}: {v}" for k, v in self._headers.items())]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + data

    async def ask(self, prompt: str, index: int) -> Result:
        """Stream one answer to client `index`."""
        request = self._request(prompt, index)
        result = Result(time.perf_counter())
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if status != 200:
                result.error = f"{status}: {(await reader.read(500)).decode(errors='replace')}"
                return result
            rest = b""
            while data := await reader.read(65536):
                now = time.perf_counter()
                # Chunked transfer encoding puts its sizes on lines of their own, which begin with no "data: ".
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if line.startswith(b"data: {"):
                        self._take(json.loads(line[6:]), now, result)
        finally:
            writer.close()
        if not result.arrivals:
            result.error = result.error or "no text came"
        return result

    def _take(self, chunk: dict[str, object], now: float, result: Result) -> None:
        if "error" in chunk:
            result.error = json.dumps(chunk["error"])
        for choice in chunk.get("choices") or ():
            if choice.get("text") or (choice.get("delta") or {}).get("content"):
                result.arrivals.append(now)
        if usage := chunk.get("usage"):
            result.num_tokens, result.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]


def quantile(values: list[float], q: float) -> float:
    """The smallest value with at least a part `q` of all at or below it."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(q * len(ordered) * 1000) // 1000) - 1))]


def summarize(results: list[Result], seconds: float) -> dict[str, float]:
    """Figures of one round, times in milliseconds."""
    good = [r for r in results if not r.error]
    row: dict[str, float] = {"requests": len(results), "errors": len(results) - len(good), "seconds": seconds}
    if not good:
        return row
    tokens = sum(r.num_tokens or len(r.arrivals) for r in good)
    first = [(r.arrivals[0] - r.began) * 1e3 for r in good]
    between = [(b - a) * 1e3 for r in good for a, b in zip(r.arrivals, r.arrivals[1:], strict=False)] or [0.0]
    row |= {
        "prompt_tokens": sum(r.prompt_tokens for r in good),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
    }
    for name, values in (("ttft_ms", first), ("itl_ms", between)):
        row |= {f"{name}_p{round(q * 100)}": quantile(values, q) for q in (0.5, 0.9, 0.99)}
        row[f"{name}_mean"] = sum(values) / len(values)
    return row


async def run_round(args: argparse.Namespace, client: Client, number: int) -> dict[str, float]:
    """All clients at once, each with its requests one after the other."""

    async def one(index: int) -> list[Result]:
        seeds = (number * 1_000_003 + index * 1009 + turn for turn in range(args.requests))
        return [await client.ask(prompt_text(args.prompt_tokens, seed), index) for seed in seeds]

    began = time.perf_counter()
    groups = await asyncio.gather(*(one(i) for i in range(args.clients)))
    results = [r for group in groups for r in group]
    for error in {r.error for r in results if r.error}:
        print(f"error: {error}", file=sys.stderr)
    return summarize(results, time.perf_counter() - began)


def print_table(rows: list[dict[str, float]]) -> None:
    """One line a round."""
    columns = [("tok/s", "tokens_per_second")]
    for title, key in (("TTFT", "ttft_ms"), ("ITL", "itl_ms")):
        columns += [
            (f"{title} p50", f"{key}_p50"),
            ("p90", f"{key}_p90"),
            ("p99", f"{key}_p99"),
            ("mean", f"{key}_mean"),
        ]
    columns += [("errors", "errors")]
    print("round  " + "  ".join(f"{title:>8}" for title, _ in columns) + "   (times in ms)")
    for number, row in enumerate(rows, 1):
        print(f"{number:>5}  " + "  ".join(f"{row.get(key, float('nan')):8.2f}" for _, key in columns))


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="where the server is, without /v1")
    parser.add_argument(
        "--model", help="default: the first that the server lists; clients take several, by commas, in turn"
    )
    parser.add_argument(
        "--llama-adapters", type=int, default=0, help="for llama-server: clients choose its adapters 0 to N-1 in turn"
    )
    parser.add_argument("--clients", type=int, default=8, help="at once (default 8)")
    parser.add_argument("--requests", type=int, default=1, help="of each client, in turn (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="measured; one more goes before, unmeasured (default 3)")
    parser.add_argument("--prompt-tokens", type=int, default=90, help="about (default 90)")
    parser.add_argument("--max-tokens", type=int, default=64, help="generated for each request (default 64)")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--chat", action="store_true", help="use /v1/chat/completions")
    parser.add_argument("--api-key")
    parser.add_argument("--json", metavar="FILE", help="append one row for the best round; - for stdout")
    return parser.parse_args()


def main() -> None:
    """Warm up, measure, print."""
    args = parse_args()
    args.url = args.url.rstrip("/").removesuffix("/v1")
    headers = {"authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    model = args.model or first_model(args.url, headers)
    client = Client(args, model.split(","), headers)
    rows = [asyncio.run(run_round(args, client, number)) for number in range(args.rounds + 1)][1:]
    print_table(rows)
    if args.json:
        best = max(rows, key=lambda row: row.get("tokens_per_second", 0.0))
        shape = {
            key: getattr(args, key) for key in ("clients", "requests", "rounds", "prompt_tokens", "max_tokens", "chat")
        }
        line = json.dumps({"url": args.url, "model": model, "shape": shape} | best)
        if args.json == "-":
            print(line)
        else:
            with open(args.json, "a") as file:
                file.write(line + "\n")
    if any(row["errors"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()

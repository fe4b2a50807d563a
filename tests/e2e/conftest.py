"""A real `realm serve` process, and the official clients in front of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from realm.testing.tiny import TinyModel, write_tiny_model

READY_SECONDS = 120
NPM = Path(__file__).parent / "npm"


class Server:
    """One `realm serve` on a free port. Its log goes to a file that a failing test shows."""

    def __init__(self, log: Path, *args: str) -> None:
        self._log = log
        self._terminated = False
        device = os.environ.get("REALM_TEST_DEVICE", "cpu")
        command = [sys.executable, "-m", "realm", "serve", *args, "--port", "0", "--device", device]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        self.url = self._await_ready()

    def _await_ready(self) -> str:
        # A thread, because reading a pipe has no timeout.
        lines: list[str] = []
        assert self.process.stdout is not None
        reader = threading.Thread(target=lambda: lines.append(self.process.stdout.readline()), daemon=True)
        reader.start()
        reader.join(READY_SECONDS)
        match = re.search(r"http://\S+", lines[0] if lines else "")
        assert match, f"no ready line: {lines}\n{self._log.read_text()}"
        return match.group()

    @property
    def model_id(self) -> str:
        """The one model it serves."""
        return httpx.get(f"{self.url}/v1/models").json()["data"][0]["id"]

    def metrics(self) -> dict[str, float]:
        """Values by name and the labels that it has besides the model; without histograms' buckets."""
        values = {}
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            if match := re.match(r"(realm_\w+)\{(.*)\} (\S+)$", line):
                name, labels, value = match.groups()
                more = [text for label, text in re.findall(r'(\w+)="([^"]*)"', labels) if label != "model"]
                if not name.endswith("_bucket"):
                    values[":".join([name, *more])] = float(value)
        return values

    def outcomes(self) -> dict[str, float]:
        """Ended requests by outcome."""
        prefix = "realm_requests_total:"
        return {name.removeprefix(prefix): v for name, v in self.metrics().items() if name.startswith(prefix)}

    def await_idle(self) -> dict[str, float]:
        """Metrics once nothing is open any more; a disconnect takes the server a moment to notice."""
        for _ in range(2000):
            metrics = self.metrics()
            if metrics["realm_requests_running"] == metrics["realm_requests_waiting"] == 0:
                assert metrics["realm_kv_blocks_used"] == 0, metrics
                return metrics
        raise AssertionError(f"not idle: {metrics}")

    def terminate(self) -> None:
        """SIGTERM, once: a second one could hit an interpreter that no longer has its handler."""
        if not self._terminated:
            self._terminated = True
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM, and a clean end."""
        self.terminate()
        code = self.process.wait(60)
        self.process.stdout.close()
        assert code == 0, self._log.read_text()


StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Start servers; all are stopped at the end and must end cleanly."""
    servers: list[Server] = []
    logs = tmp_path_factory.mktemp("servers")

    def start(*args: str | Path) -> Server:
        servers.append(Server(logs / f"{len(servers)}.log", *map(str, args)))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def smollm2(start_server: StartServer, smollm2_path: Path) -> Server:
    """SmolLM2 with default options."""
    return start_server(smollm2_path, "--model-id", "smollm2")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of a few kilobytes."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", TinyModel())


@pytest.fixture(scope="session")
def tiny(start_server: StartServer, tiny_path: Path) -> Server:
    """A server of the random model."""
    return start_server(tiny_path)


@pytest.fixture
def client(smollm2: Server) -> openai.OpenAI:
    """The official client, without its retries: a test wants the first answer."""
    return openai.OpenAI(base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def npm_openai() -> Path:
    """The directory with the npm client installed."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    if not (NPM / "node_modules" / "openai").is_dir():
        done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=NPM, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"npm ci failed: {done.stderr[-300:]}")
    return NPM

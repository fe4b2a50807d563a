"""Find a file on a Python package index through the simple API (PEP 503 and PEP 691)."""

from __future__ import annotations

import configparser
import os
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urldefrag, urljoin

from realm.core.errors import RealmError

if TYPE_CHECKING:
    import httpx

_DEFAULT_INDEX = "https://pypi.org/simple/"
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True, slots=True)
class IndexFile:
    """A file that an index offers."""

    file_name: str
    url: str
    sha256: str | None
    size_bytes: int | None


def pip_setting(name: str) -> str | None:
    """A pip option (such as `index-url`) from the environment or pip's configuration files, in pip's order."""
    if value := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
        return value
    config_file = os.environ.get("PIP_CONFIG_FILE")
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    files = [Path("/etc/pip.conf"), Path.home() / ".pip" / "pip.conf", config_home / "pip" / "pip.conf"]
    files += [Path(sys.prefix) / "pip.conf"] + ([Path(config_file)] if config_file else [])
    parser = configparser.RawConfigParser(strict=False)
    for file in files:
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
    for section in ("download", "global"):
        if value := parser.get(section, name, fallback=None):
            return value.strip()
    return None


def index_url() -> str:
    """The package index to ask: pip's `index-url` setting, or pypi.org."""
    return (pip_setting("index-url") or _DEFAULT_INDEX).rstrip("/") + "/"


class _Links(HTMLParser):
    """Collects the anchors of a PEP 503 page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the address of each anchor."""
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def _files_from_html(text: str, page_url: str) -> list[IndexFile]:
    parser = _Links()
    parser.feed(text)
    files = []
    for link in parser.links:
        url, fragment = urldefrag(urljoin(page_url, link))
        digest = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
        files.append(IndexFile(unquote(url.rsplit("/", 1)[-1]), url, digest, None))
    return files


def _files_from_json(data: object, page_url: str) -> list[IndexFile]:
    if not isinstance(data, dict) or not isinstance(data.get("files"), list):
        raise RealmError(f"{page_url} is not a package index page", code="download_failed")
    return [
        IndexFile(
            str(file["filename"]),
            urljoin(page_url, str(file["url"])),
            file.get("hashes", {}).get("sha256"),
            file.get("size"),
        )
        for file in data["files"]
    ]


def find_file(client: httpx.Client, project: str, version: str, ending: str) -> IndexFile:
    """The file of one release with this ending: `-none-any.whl` is a pure-Python wheel, `.tar.gz` the sources.

    Raises:
        RealmError: the index has no such release, or its page is not understood.
        httpx.HTTPError: the index can't be reached or answers with an error.
    """
    page_url = urljoin(index_url(), f"{project}/")
    response = client.get(page_url, headers={"Accept": _ACCEPT})
    response.raise_for_status()
    page_url = str(response.url)
    if "json" in response.headers.get("content-type", ""):
        files = _files_from_json(response.json(), page_url)
    else:
        files = _files_from_html(response.text, page_url)
    wanted = f"{project.replace('-', '_')}-{version}".lower()
    for file in files:
        rest = file.file_name.lower().removeprefix(wanted)
        if rest == ending or (rest.startswith("-") and rest.endswith(ending)):
            return file
    raise RealmError(f"the package index has no {project} {version} with {ending}", code="download_failed")

"""Download, verify and unpack the sdist of one release: `fetch_sdist.py PROJECT VERSION DIRECTORY`.

`pip download` would build the package to learn its metadata; this only takes the sources.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
import urllib.request
from pathlib import Path
from urllib.parse import urljoin


def main() -> None:
    project, version, directory = sys.argv[1:]
    page = f"https://pypi.org/simple/{project}/"
    request = urllib.request.Request(page, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request) as response:
        files = json.load(response)["files"]
    file = next(f for f in files if f["filename"].endswith(f"-{version}.tar.gz"))
    archive = Path(directory) / file["filename"]
    with urllib.request.urlopen(urljoin(page, file["url"])) as response:
        archive.write_bytes(response.read())
    if hashlib.sha256(archive.read_bytes()).hexdigest() != file["hashes"]["sha256"]:
        raise SystemExit(f"{archive} has the wrong sha256")
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    archive.unlink()


if __name__ == "__main__":
    main()

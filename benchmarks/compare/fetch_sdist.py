"""Download, verify and unpack the sources of one release: `fetch_sdist.py PROJECT VERSION DIRECTORY`.

`pip download` would build the package, and what it needs, to learn its metadata; this only takes the sources. It asks
the index that pip is set to.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import httpx

from realm.cli.progress import DownloadBars
from realm.core.errors import RealmError
from realm.runtime.fetch import failure_reason, fetch, new_client
from realm.runtime.package_index import find_file


def main() -> None:
    project, version, directory = sys.argv[1:]
    try:
        with new_client() as client, DownloadBars() as bars:
            file = find_file(client, project, version, ".tar.gz")
            archive = Path(directory) / f"{file.file_name}.part"
            fetch(client, file.url, archive, file.sha256, {}, bars.progress)
    except (httpx.HTTPError, RealmError) as error:
        raise SystemExit(f"{project} {version} can't be fetched: {failure_reason(error)}") from None
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    archive.unlink()


if __name__ == "__main__":
    main()

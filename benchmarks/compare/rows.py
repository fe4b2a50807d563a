"""Result rows: one JSON object a line, added one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def add_row(path: Path, row: Row) -> None:
    """Append one row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[Row]:
    """All rows of a file, oldest first; none if it isn't there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def latest_session(*paths: Path) -> str | None:
    """The session that the newest row belongs to."""
    rows = [row for path in paths for row in read_rows(path)]
    return max(rows, key=lambda row: row["time"])["session"] if rows else None


def rows_of(path: Path, session: str | None) -> list[Row]:
    """The rows of one session."""
    return [row for row in read_rows(path) if row["session"] == session]

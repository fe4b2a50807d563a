"""What `--speculate` and `--draft` mean together."""

from __future__ import annotations

import pytest

from realm.cli.options import Speculate, speculation
from realm.core.config import SpeculativeConfig
from realm.core.errors import InvalidRequest


@pytest.mark.parametrize(
    ("speculate", "draft", "lookup", "path"),
    [
        ("auto", "auto", True, "auto"),
        ("auto", "none", True, None),
        ("auto", "d.gguf", True, "d.gguf"),
        ("lookup", "auto", True, None),
        ("lookup", "none", True, None),
        ("draft", "auto", False, "auto"),
        ("draft", "d.gguf", False, "d.gguf"),
    ],
)
def test_what_drafts(speculate: Speculate, draft: str, lookup: bool, path: str | None) -> None:
    expected = SpeculativeConfig(lookup=lookup, max_draft_tokens=6)
    assert speculation(speculate, draft, 6) == (expected, path)


def test_off() -> None:
    assert speculation("off", "auto", 16) == speculation("off", "none", 16) == (None, None)


@pytest.mark.parametrize(
    ("speculate", "draft", "history"),
    [
        ("off", "d.gguf", False),
        ("lookup", "d.gguf", False),
        ("draft", "none", False),
        ("off", "auto", True),
        ("draft", "auto", True),
    ],
)
def test_contradictions_are_errors(speculate: Speculate, draft: str, history: bool) -> None:
    with pytest.raises(InvalidRequest):
        speculation(speculate, draft, 16, history)

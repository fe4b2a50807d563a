"""Texts packed into one buffer."""

from __future__ import annotations

import pytest

from realm.core.texts import Texts


def test_texts_are_a_sequence() -> None:
    texts = ["a", "", "日本", "👩‍👩‍👧" * 100]
    packed = Texts(texts)
    assert list(packed) == texts
    assert packed[-1] == texts[-1]
    assert packed[1:3] == texts[1:3]
    assert packed == Texts(texts)
    assert packed != Texts(["a", "日", "本", texts[-1]])
    with pytest.raises(IndexError):
        packed[4]


def test_texts_equal_a_list_of_the_same() -> None:
    assert Texts(["a", "日本"]) == ["a", "日本"]
    assert Texts(["a", ""]) != ["a"]
    assert Texts() == []


def test_texts_take_no_lone_surrogates() -> None:
    with pytest.raises(UnicodeEncodeError):
        Texts(["a", "\udc80"])


def test_bytes_that_are_no_utf8_are_not_added() -> None:
    packed = Texts(["a"])
    packed.append_utf8("日本".encode())
    with pytest.raises(UnicodeDecodeError):
        packed.append_utf8(b"\xff")
    assert packed == ["a", "日本"]

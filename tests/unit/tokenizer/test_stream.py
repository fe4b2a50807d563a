"""Incremental text equals text decoded at once; stop strings equal a naive search."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.tokenizer.vocabularies import bpe_metadata, spm_metadata

from realm.tokenizer import Detokenizer, StopStrings, TextStream, Tokenizer, load_tokenizer

BPE = load_tokenizer(bpe_metadata())
SPM = load_tokenizer(spm_metadata())
SPM_NO_PREFIX = load_tokenizer(spm_metadata(add_space_prefix=False))
TOKENIZERS = [BPE, SPM, SPM_NO_PREFIX]


def ids_of_bytes(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """Ids of single-byte tokens."""
    table = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size))}
    return [table[bytes([byte])] for byte in data]


def chunks(draw: st.DrawFn, items: list[int]) -> list[list[int]]:
    cuts = sorted(draw(st.lists(st.integers(0, len(items)), max_size=8)))
    return [items[a:b] for a, b in pairwise([0, *cuts, len(items)])]


@given(st.data(), st.sampled_from(TOKENIZERS), st.booleans())
def test_deltas_of_any_ids_join_to_the_full_decode(data: st.DataObject, tokenizer: Tokenizer, cont: bool) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    detokenizer = Detokenizer(tokenizer, continuation=cont)
    deltas = [detokenizer.push(chunk) for chunk in chunks(data.draw, ids)]
    deltas.append(detokenizer.flush())
    assert "".join(deltas) == tokenizer.decode(ids, continuation=cont)
    assert detokenizer.num_chars == len("".join(deltas))


@given(st.data(), st.binary(max_size=40))
def test_deltas_of_any_bytes_join_to_the_full_decode(data: st.DataObject, raw: bytes) -> None:
    ids = ids_of_bytes(BPE, raw)
    detokenizer = Detokenizer(BPE)
    text = "".join([detokenizer.push(chunk) for chunk in chunks(data.draw, ids)]) + detokenizer.flush()
    assert text == raw.decode("utf-8", "replace")


@given(st.text(max_size=30))
def test_valid_text_never_shows_part_of_a_character(text: str) -> None:
    detokenizer = Detokenizer(BPE)
    for token_id in ids_of_bytes(BPE, text.encode()):
        assert text.startswith(detokenizer.push([token_id]), detokenizer.num_chars - 1) or "\ufffd" in text
    assert detokenizer.flush() == ""


def test_special_tokens_leave_no_text() -> None:
    ids = BPE.encode("a<|im_end|>b<think>")
    assert Detokenizer(BPE).push(ids) == "ab<think>"
    assert BPE.decode(ids, skip_special=False) == "a<|im_end|>b<think>"


def test_a_special_token_inside_a_character_does_not_break_it() -> None:
    first, second = ids_of_bytes(BPE, "é".encode())
    assert Detokenizer(BPE).push([first, min(BPE.end_ids), second]) == "é"


@pytest.mark.parametrize(("continuation", "text"), [(True, " the world"), (False, "the world")])
def test_the_space_prefix_belongs_to_a_continuation_only(continuation: bool, text: str) -> None:
    ids = SPM.encode("the world")
    detokenizer = Detokenizer(SPM, continuation=continuation)
    assert "".join(detokenizer.push([i]) for i in ids) + detokenizer.flush() == text
    assert SPM.decode(ids, continuation=continuation) == text


def first_match(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The naive rule: the first end of a stop string, the longest of those that end there."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


few_letters = st.text(alphabet="abé", min_size=1, max_size=5)


@given(st.data(), st.text(alphabet="abé", max_size=30), st.lists(few_letters, min_size=1, max_size=4))
def test_stop_strings_equal_a_naive_search(data: st.DataObject, text: str, stops: list[str]) -> None:
    matcher = StopStrings(stops)
    out, given_out = "", []
    for chunk in chunks(data.draw, list(range(len(text)))):
        delta = matcher.push("".join(text[i] for i in chunk))
        out += delta
        given_out.append(out)
    out += matcher.flush()
    expected, stop = first_match(text, stops)
    assert (out, matcher.matched) == (expected, stop)
    assert all(expected.startswith(part) for part in given_out)


@given(st.data(), st.text(alphabet="abé\u4e2d", max_size=20), st.lists(few_letters, min_size=1, max_size=3))
def test_stop_strings_are_found_across_token_borders(data: st.DataObject, text: str, stops: list[str]) -> None:
    ids = ids_of_bytes(BPE, text.encode())
    stream = TextStream(BPE, stops)
    out = "".join(stream.push(chunk) for chunk in chunks(data.draw, ids)) + stream.flush()
    expected, stop = first_match(text, stops)
    assert (out, stream.matched) == (expected, stop)
    taken = len(ids) if stop is None else len((expected + stop).encode())
    assert stream.num_tokens == taken


def test_text_is_held_back_only_while_it_could_be_a_stop_string() -> None:
    matcher = StopStrings(["END", "EN DE"])
    assert [matcher.push(text) for text in ("x", "E", "N", "X", "E")] == ["x", "", "", "ENX", ""]
    assert matcher.flush() == "E"
    assert matcher.matched is None


def test_an_incomplete_character_at_the_end_may_complete_a_stop_string() -> None:
    stream = TextStream(BPE, ["a\ufffd"])
    assert stream.push(ids_of_bytes(BPE, b"ba\xe4\xb8")) == "b"
    assert stream.flush() == ""
    assert stream.matched == "a\ufffd"


def test_a_long_stop_string_that_nearly_matches_costs_no_text() -> None:
    matcher = StopStrings(["a" * 200 + "b"])
    text = "a" * 450
    assert "".join(matcher.push(char) for char in text) + matcher.flush() == text


def test_offsets_are_the_characters_before_each_token() -> None:
    offsets: list[int] = []
    stream = TextStream(BPE, ["zzz"])
    stream.push(ids_of_bytes(BPE, "aé中b".encode()), offsets)
    assert offsets == [0, 1, 1, 2, 2, 2, 3]

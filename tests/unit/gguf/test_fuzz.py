"""Whatever the bytes, the reader gives a model whose tensors lie inside the file, or a ModelFileError."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.gguf.raw import array, gguf_bytes, kv, string, tensor

from realm.core.errors import ModelFileError
from realm.gguf.header import parse_header
from realm.gguf.reader import GGUFFile

VALID = gguf_bytes(
    [
        kv("general.architecture", 8, string("llama")),
        kv("general.alignment", 4, struct.pack("<I", 32)),
        kv("tokens", 9, array(8, 3, string("a") + string("") + string("é"))),
        kv("scores", 9, array(6, 2, struct.pack("<2f", 0.5, 1))),
        kv("nested", 9, array(9, 1, array(7, 2, b"\0\1"))),
        kv("flag", 7, b"\1"),
        kv("big", 10, struct.pack("<Q", 2**60)),
    ],
    [tensor("blk.0.x", [32, 2], 2, 0), tensor("y", [4], 0, 64)],
    bytes(80),
)


def check(raw):
    """Parse; if that works every tensor must lie inside the file."""
    try:
        header = parse_header(raw, "fuzz.gguf")
    except ModelFileError:
        return None
    buffer = np.frombuffer(raw, np.uint8)
    for info in header.tensors:
        assert 0 <= info.offset <= info.offset + (info.num_bytes or 0) <= len(buffer)
    return header


def test_the_seed_is_valid():
    assert check(VALID) is not None


def test_every_truncation_is_refused():
    for length in range(len(VALID)):
        assert check(VALID[:length]) is None, length


@pytest.mark.parametrize("value", [0x00, 0x01, 0x7F, 0x80, 0xFF])
def test_every_byte_changed(value):
    for i in range(len(VALID)):
        check(VALID[:i] + bytes([value]) + VALID[i + 1 :])


def test_every_bit_flipped():
    for i in range(len(VALID)):
        for bit in range(8):
            check(VALID[:i] + bytes([VALID[i] ^ 1 << bit]) + VALID[i + 1 :])


@pytest.mark.parametrize("number", [2**31, 2**32, 2**63 - 1, 2**64 - 1, 2**64 - 64, 10**6])
def test_huge_numbers_at_every_place(number):
    raw = struct.pack("<Q", number)
    for i in range(len(VALID) - 8):
        check(VALID[:i] + raw + VALID[i + 8 :])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_random_bodies(body):
    check(b"GGUF\3\0\0\0" + body)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_cut_and_pasted(data):
    position = st.integers(0, len(VALID))
    raw = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        start, source, length = data.draw(position), data.draw(position), data.draw(st.integers(0, 40))
        raw[start : start + data.draw(st.integers(0, 40))] = VALID[source : source + length]
    check(bytes(raw))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=16))
def test_opened_from_disk(tmp_path_factory, position, patch):
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    path.write_bytes(VALID[:position] + patch + VALID[position + len(patch) :])
    try:
        file = GGUFFile.open(path)
        for info in file.tensors.values():
            info.data.sum()
        assert file.fingerprint
    except ModelFileError:
        pass

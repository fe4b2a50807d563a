import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from tests.unit.gguf.raw import array, gguf_bytes, kv, string, tensor

from realm.core.errors import ModelFileError
from realm.core.quant import QuantType
from realm.gguf.format import ValueType
from realm.gguf.header import parse_header
from realm.gguf.reader import GGUFFile
from realm.gguf.writer import OutputTensor, write_gguf
from realm.testing.quants import random_blocks

F32, Q4_0, IQ2_XXS = 0, 2, 16
U32, STRING, ARRAY, BOOL = 4, 8, 9, 7


def write(tmp_path, raw, name="m.gguf"):
    path = tmp_path / name
    path.write_bytes(raw)
    return path


@pytest.mark.model
def test_a_real_model_reads_as_with_the_gguf_package(smollm2_path):
    ours, theirs = GGUFFile.open(smollm2_path), gguf.GGUFReader(smollm2_path)
    keys = [key for key in theirs.fields if not key.startswith("GGUF.")]
    assert list(ours.metadata) == keys
    for key in keys:
        assert ours.metadata[key] == theirs.fields[key].contents()
    assert len(ours.tensors) == len(theirs.tensors)
    for expected in theirs.tensors:
        found = ours.tensors[expected.name]
        assert found.shape == tuple(reversed(expected.shape.tolist()))
        assert int(found.quant_type) == expected.tensor_type
        np.testing.assert_array_equal(found.data[-1], np.atleast_2d(expected.data)[-1:].view(np.uint8).ravel())


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions(tmp_path, version):
    raw = gguf_bytes([kv("a", U32, struct.pack("<I", 5))], [tensor("t", [2], F32, 0)], bytes(8), version=version)
    file = GGUFFile.open(write(tmp_path, raw))
    assert file.version == version
    assert file.metadata == {"a": 5}
    assert file.tensors["t"].shape == (2,)
    assert file.size_bytes == len(raw)


HOSTILE = {
    "empty": (b"", "truncated"),
    "not gguf": (b"PK\3\4" + bytes(100), "not a GGUF"),
    "version 1": (gguf_bytes(version=1), "version 1"),
    "version 4": (gguf_bytes(version=4), "version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "huge tensor count": (gguf_bytes(num_tensors=2**63), "tensor count is 9223372036854775808"),
    "tensor count past the end": (gguf_bytes(num_tensors=1000), "tensor table"),
    "huge metadata count": (gguf_bytes(num_kvs=2**64 - 1), "metadata count"),
    "metadata count past the end": (gguf_bytes(num_kvs=60_000), "metadata count"),
    "key past the end": (gguf_bytes([struct.pack("<Q", 60_000) + bytes(60)]), "truncated: metadata key"),
    "huge key": (gguf_bytes([struct.pack("<Q", 2**62) + bytes(60)]), "the limit is 65535"),
    "empty key": (gguf_bytes([kv("", U32, bytes(4))]), "empty"),
    "key twice": (gguf_bytes([kv("a", U32, bytes(4))] * 2), "'a' is duplicated"),
    "key not UTF-8": (gguf_bytes([kv(b"\xff", U32, bytes(4))]), "not UTF-8"),
    "unknown value type": (gguf_bytes([kv("a", 13, bytes(8))]), "unknown value type 13"),
    "bool of 2": (gguf_bytes([kv("a", BOOL, b"\2")]), "neither 0 nor 1"),
    "string past the end": (gguf_bytes([kv("a", STRING, struct.pack("<Q", 2**63))]), "truncated: a"),
    "string not UTF-8": (gguf_bytes([kv("a", STRING, string(b"\xc3"))]), "a is not UTF-8"),
    "array past the end": (gguf_bytes([kv("a", ARRAY, array(U32, 1000, bytes(40)))]), "length of array a"),
    "huge array": (gguf_bytes([kv("a", ARRAY, array(0, 2**40, bytes(40)))]), "the limit is 8388608"),
    "strings past the end": (gguf_bytes([kv("a", ARRAY, array(STRING, 2, string("x") + b"\xff" * 9))]), r"a\[1\]"),
    "strings not UTF-8": (gguf_bytes([kv("a", ARRAY, array(STRING, 2, string("x") + string(b"\xff")))]), r"a\[1\] is"),
    "array of unknown": (gguf_bytes([kv("a", ARRAY, array(99, 1, bytes(8)))]), "unknown value type 99"),
    "deep nest": (
        gguf_bytes([kv("a", ARRAY, b"".join(array(ARRAY, 1, b"") for _ in range(50)) + bytes(64))]),
        "nested deeper than 4",
    ),
    "no name": (gguf_bytes((), [tensor("", [1], F32, 0)], bytes(4)), "a name"),
    "long name": (gguf_bytes((), [tensor("x" * 257, [1], F32, 0)], bytes(4)), "the limit is 256"),
    "no dimensions": (gguf_bytes((), [tensor("t", [], F32, 0)], bytes(64)), "has 0 dimensions"),
    "many dimensions": (gguf_bytes((), [tensor("t", [1] * 5, F32, 0)], bytes(4)), "has 5 dimensions"),
    "dimension 0": (gguf_bytes((), [tensor("t", [0], F32, 0)], bytes(4)), "at least 1"),
    "dimensions overflow": (gguf_bytes((), [tensor("t", [2**32] * 2, F32, 0)], bytes(4)), "below 2"),
    "dimensions wrap to 0": (gguf_bytes((), [tensor("t", [2**63, 2], F32, 0)], bytes(4)), "below 2"),
    "not whole blocks": (gguf_bytes((), [tensor("t", [33], Q4_0, 0)], bytes(64)), "multiple of 32"),
    "tensor too large": (gguf_bytes((), [tensor("t", [9], F32, 0)], bytes(32)), "truncated: tensor t"),
    "offset past the end": (gguf_bytes((), [tensor("t", [1], F32, 2**40)], bytes(32)), "truncated: tensor t"),
    "offset wraps": (gguf_bytes((), [tensor("t", [1], F32, 2**64 - 32)], bytes(32)), "truncated: tensor t"),
    "offset unaligned": (gguf_bytes((), [tensor("t", [1], F32, 4)], bytes(32)), "alignment 32"),
    "unknown type past the end": (gguf_bytes((), [tensor("t", [1], 1000, 64)], bytes(32)), "truncated: tensor t"),
    "tensor twice": (
        gguf_bytes((), [tensor("t", [1], F32, 0), tensor("t", [1], F32, 32)], bytes(64)),
        "t is duplicated",
    ),
    "overlap": (
        gguf_bytes((), [tensor("t", [9], F32, 0), tensor("u", [1], F32, 32)], bytes(64)),
        "t and u overlap",
    ),
    "same place": (gguf_bytes((), [tensor("t", [1], F32, 0), tensor("u", [1], F32, 0)], bytes(64)), "overlap"),
    "alignment 0": (gguf_bytes([kv("general.alignment", U32, bytes(4))]), "got 0"),
    "alignment 24": (gguf_bytes([kv("general.alignment", U32, struct.pack("<I", 24))]), "got 24"),
    "alignment 2**31": (gguf_bytes([kv("general.alignment", U32, struct.pack("<I", 2**31))]), "got 2147483648"),
    "alignment a string": (gguf_bytes([kv("general.alignment", STRING, string("32"))]), "general.alignment must be"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(tmp_path, case):
    raw, message = HOSTILE[case]
    with pytest.raises(ModelFileError, match=message):
        GGUFFile.open(write(tmp_path, raw))


def test_many_nested_arrays_stay_within_the_element_limit():
    inner = array(0, 4_000_000, bytes(4_000_000))
    with pytest.raises(ModelFileError, match="the limit is"):
        parse_header(gguf_bytes([kv(f"a{i}", ARRAY, inner) for i in range(3)]), "m")


def test_an_unchecked_count_allocates_nothing():
    raw = gguf_bytes([kv("a", ARRAY, array(STRING, 8_000_000, bytes(1000)))])
    tracemalloc.start()
    with pytest.raises(ModelFileError, match="truncated"):
        parse_header(raw, "m")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_unsupported_types_are_named_when_used(tmp_path):
    raw = gguf_bytes((), [tensor("t", [256, 2], IQ2_XXS, 0), tensor("u", [3], 1000, 160)], bytes(192))
    file = GGUFFile.open(write(tmp_path, raw))
    assert (file.tensors["t"].type_name, file.tensors["t"].num_bytes) == ("IQ2_XXS", 132)
    with pytest.raises(ModelFileError, match="tensor t is of type IQ2_XXS") as error:
        _ = file.tensors["t"].data
    assert error.value.code == "unsupported_tensor_type"
    assert "Q4_K" in error.value.hint
    with pytest.raises(ModelFileError, match="tensor u is of type type 1000"):
        _ = file.tensors["u"].quant_type


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(ModelFileError, match="does not exist"):
        GGUFFile.open(tmp_path / "no.gguf")
    with pytest.raises(ModelFileError, match="not a file"):
        GGUFFile.open(tmp_path)


def test_views_outlive_the_file(tmp_path):
    raw = gguf_bytes((), [tensor("t", [2], F32, 0)], struct.pack("<2f", 1, 2))
    with GGUFFile.open(write(tmp_path, raw)) as file:
        data = file.tensors["t"].data
    assert not file.tensors
    assert data.view(np.float32).tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="read-only"):
        data[0, 0] = 1


def split_model(tmp_path, count=3):
    rng = np.random.default_rng(0)
    tensors = [
        OutputTensor(f"t{i}", QuantType.Q8_0, (4, 64), random_blocks(QuantType.Q8_0, 4, 64, rng)) for i in range(count)
    ]
    return write_gguf(tmp_path / "m.gguf", {"general.name": "m"}, tensors, max_part_bytes=1)


def test_split_missing_part(tmp_path):
    paths = split_model(tmp_path)
    paths[1].unlink()
    with pytest.raises(ModelFileError, match=r"m-00002-of-00003\.gguf is missing"):
        GGUFFile.open(paths[0])


def test_split_must_be_opened_at_its_first_part(tmp_path):
    paths = split_model(tmp_path)
    with pytest.raises(ModelFileError, match="part 2 of 3") as error:
        GGUFFile.open(paths[1])
    assert "m-00001-of-00003.gguf" in error.value.hint


def test_split_renamed(tmp_path):
    paths = split_model(tmp_path)
    with pytest.raises(ModelFileError, match="must be named"):
        GGUFFile.open(paths[0].rename(tmp_path / "renamed.gguf"))


def test_split_parts_of_another_model(tmp_path):
    paths = split_model(tmp_path)
    (tmp_path / "o").mkdir()
    other = split_model(tmp_path / "o", 4)
    paths[1].write_bytes(other[1].read_bytes())
    with pytest.raises(ModelFileError, match="split"):
        GGUFFile.open(paths[0])
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(ModelFileError, match="split"):
        GGUFFile.open(paths[0])


def test_split_duplicate_tensor_and_wrong_total(tmp_path):
    def part(number, name, total):
        split = {"split.no": number, "split.count": 2, "split.tensors.count": total}
        data = random_blocks(QuantType.F32, 1, 8, np.random.default_rng(0))
        write_gguf(
            tmp_path / f"m-0000{number + 1}-of-00002.gguf", split, [OutputTensor(name, QuantType.F32, (8,), data)]
        )

    part(0, "a", 2)
    part(1, "a", 2)
    with pytest.raises(ModelFileError, match="in an earlier part"):
        GGUFFile.open(tmp_path / "m-00001-of-00002.gguf")
    part(0, "a", 3)
    part(1, "b", 3)
    with pytest.raises(ModelFileError, match=r"split\.tensors\.count is 3"):
        GGUFFile.open(tmp_path / "m-00001-of-00002.gguf")


def test_fingerprint_follows_content_not_path(tmp_path):
    def model(name, value=0.0, title="m"):
        data = np.full(100_000, value, np.float32).view(np.uint8)
        write_gguf(tmp_path / name, {"general.name": title}, [OutputTensor("t", QuantType.F32, (100_000,), data)])
        return GGUFFile.open(tmp_path / name).fingerprint

    same = model("a.gguf")
    assert len(same) == 64
    assert same == model("b.gguf")
    assert len({same, model("c.gguf", value=1.0), model("d.gguf", title="n")}) == 3


def test_value_types_are_kept(tmp_path):
    raw = gguf_bytes([kv("a", 2, b"\1\0"), kv("b", ARRAY, array(12, 1, struct.pack("<d", 0.1)))])
    file = GGUFFile.open(write(tmp_path, raw))
    assert file.value_types == {"a": ValueType.UINT16, "b": ValueType.FLOAT64}
    assert file.metadata == {"a": 1, "b": [0.1]}

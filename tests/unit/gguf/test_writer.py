"""Oracle: the `gguf` package's reader; and what our reader makes of it."""

import gguf
import numpy as np
import pytest

from realm.core.errors import InvalidRequest
from realm.core.quant import QuantType
from realm.gguf.format import ValueType
from realm.gguf.reader import GGUFFile
from realm.gguf.writer import OutputTensor, write_gguf
from realm.testing.quants import random_blocks

METADATA = {
    "general.architecture": "llama",
    "general.name": "naïve 模型 🙂",
    "n.u32": 7,
    "n.u64": 2**40,
    "n.i32": -7,
    "n.i64": -(2**40),
    "n.f32": 0.5,
    "n.bool": True,
    "l.str": ["a", "", "ü"],
    "l.i32": [1, -2, 3],
    "l.f32": [1.5, float("inf")],
    "l.bool": [True, False],
    "l.empty": [],
}


def random_tensors(rng):
    tensors = [
        OutputTensor(f"t.{t.name}", t, (3 + i, 256), random_blocks(t, 3 + i, 256, rng)) for i, t in enumerate(QuantType)
    ]
    lazy = random_blocks(QuantType.F32, 1, 5, rng)
    return [*tensors, OutputTensor("lazy", QuantType.F32, (5,), lambda: lazy)]


def test_gguf_package_reads_what_we_write(tmp_path):
    tensors = random_tensors(np.random.default_rng(0))
    write_gguf(tmp_path / "m.gguf", METADATA, tensors)
    theirs = gguf.GGUFReader(tmp_path / "m.gguf")
    values = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert values == METADATA
    assert [t.name for t in theirs.tensors] == [t.name for t in tensors]
    for ours, read in zip(tensors, theirs.tensors, strict=True):
        assert tuple(reversed(read.shape.tolist())) == ours.shape
        data = ours.data() if callable(ours.data) else ours.data
        np.testing.assert_array_equal(np.ascontiguousarray(read.data).view(np.uint8).ravel(), data.ravel())


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_we_read_what_we_write(tmp_path, alignment):
    tensors = random_tensors(np.random.default_rng(1))
    metadata = METADATA | {"general.alignment": alignment}
    assert write_gguf(tmp_path / "m.gguf", metadata, tensors) == [tmp_path / "m.gguf"]
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        assert file.metadata == metadata
        assert file.version == 3
        assert file.value_types["n.u64"] == ValueType.UINT64
        assert file.value_types["l.bool"] == ValueType.BOOL
        for written in tensors:
            read = file.tensors[written.name]
            assert (read.quant_type, read.shape) == (written.quant_type, written.shape)
            assert not read.data.flags.writeable
            data = written.data() if callable(written.data) else written.data
            np.testing.assert_array_equal(read.data, data.reshape(read.data.shape))
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_value_types_make_a_copy_exact(tmp_path):
    types = {"a": ValueType.UINT8, "b": ValueType.FLOAT64, "c": ValueType.INT16}
    metadata = {"a": 3, "b": 0.1, "c": [1, 2]}
    write_gguf(tmp_path / "m.gguf", metadata, [], value_types=types)
    file = GGUFFile.open(tmp_path / "m.gguf")
    assert file.metadata == metadata
    assert file.value_types == types


def test_split_files_open_as_one_model(tmp_path):
    tensors = random_tensors(np.random.default_rng(2))
    paths = write_gguf(tmp_path / "m.gguf", METADATA, tensors, max_part_bytes=4000)
    assert len(paths) > 2
    assert paths[0].name == f"m-00001-of-{len(paths):05}.gguf"
    file = GGUFFile.open(paths[0])
    assert list(file.tensors) == [t.name for t in tensors]
    assert file.metadata["general.name"] == METADATA["general.name"]
    assert file.size_bytes == sum(p.stat().st_size for p in paths)
    np.testing.assert_array_equal(file.tensors["t.Q6_K"].data, tensors[list(QuantType).index(QuantType.Q6_K)].data)


@pytest.mark.parametrize("value", [None, [1, "a"], {"a": 1}, 2**64, -(2**63) - 1, [[1]], b"x"])
def test_values_gguf_cannot_hold_are_refused(tmp_path, value):
    with pytest.raises(InvalidRequest, match=r"the\.key"):
        write_gguf(tmp_path / "m.gguf", {"the.key": value}, [])
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_gguf(tmp_path / "m.gguf", {}, [OutputTensor("t", QuantType.F32, (4,), fail)])
    assert not list(tmp_path.iterdir())

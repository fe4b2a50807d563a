import math

import pytest

from realm.core.errors import ModelFileError
from realm.gguf.metadata import Metadata

META = Metadata(i=3, f=0.5, b=True, s="x", li=[1], lf=[0.5], ls=["x"], lb=[True], nan=math.nan, e=[])


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("int", "i", 3),
        ("float", "f", 0.5),
        ("float", "i", 3.0),
        ("bool", "b", True),
        ("str", "s", "x"),
        ("ints", "li", [1]),
        ("floats", "lf", [0.5]),
        ("strs", "ls", ["x"]),
        ("bools", "lb", [True]),
        ("ints", "e", []),
    ],
)
def test_getters_return_the_value(kind, key, value):
    got = getattr(META, f"get_{kind}")(key)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("kind", ["int", "float", "bool", "str", "ints", "floats", "strs", "bools"])
def test_absent_keys(kind):
    getter = getattr(META, f"get_{kind}")
    with pytest.raises(ModelFileError, match=r"no\.such\.key is missing"):
        getter("no.such.key")
    default = {"int": 1, "float": 1.0, "bool": False, "str": "y"}.get(kind, [])
    assert getter("no.such.key", default) == default


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("int", "b"),
        ("int", "f"),
        ("int", "s"),
        ("float", "b"),
        ("float", "nan"),
        ("bool", "i"),
        ("str", "ls"),
        ("ints", "lb"),
        ("ints", "lf"),
        ("floats", "li"),
        ("strs", "s"),
        ("bools", "li"),
    ],
)
def test_wrong_types_are_named(kind, key):
    with pytest.raises(ModelFileError, match=f"metadata key {key} must be"):
        getattr(META, f"get_{kind}")(key)

"""What the GGUF format fixes: value types, tensor types that Realm cannot compute with, and our limits on a header.

Source: ggml `docs/gguf.md` and the type table of `ggml.c`.
"""

from __future__ import annotations

import re
from enum import IntEnum

from realm.core.quant import LAYOUTS, BlockLayout, QuantType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

MAX_HEADER_BYTES = 256 << 20
MAX_METADATA_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_ARRAY_ELEMENTS = 1 << 23  # over all arrays of a header; Gemma's largest holds 2**18
MAX_ARRAY_DEPTH = 4
MAX_KEY_BYTES = 65_535  # the format's own limit
MAX_TENSOR_NAME_BYTES = 256
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 24
MAX_SPLITS = 9_999

SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


class ValueType(IntEnum):
    """Types of metadata values with their on-disk ids."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


NUMERIC_FORMATS: dict[ValueType, str] = {
    ValueType.UINT8: "<u1",
    ValueType.INT8: "<i1",
    ValueType.UINT16: "<u2",
    ValueType.INT16: "<i2",
    ValueType.UINT32: "<u4",
    ValueType.INT32: "<i4",
    ValueType.FLOAT32: "<f4",
    ValueType.UINT64: "<u8",
    ValueType.INT64: "<i8",
    ValueType.FLOAT64: "<f8",
}
"""numpy formats; BOOL, STRING and ARRAY are read by their own rules."""

UNSUPPORTED_TENSOR_TYPES: dict[int, tuple[str, BlockLayout | None]] = {
    4: ("Q4_2", None),
    5: ("Q4_3", None),
    9: ("Q8_1", BlockLayout(32, 36)),
    15: ("Q8_K", BlockLayout(256, 292)),
    16: ("IQ2_XXS", BlockLayout(256, 66)),
    17: ("IQ2_XS", BlockLayout(256, 74)),
    18: ("IQ3_XXS", BlockLayout(256, 98)),
    19: ("IQ1_S", BlockLayout(256, 50)),
    20: ("IQ4_NL", BlockLayout(32, 18)),
    21: ("IQ3_S", BlockLayout(256, 110)),
    22: ("IQ2_S", BlockLayout(256, 82)),
    23: ("IQ4_XS", BlockLayout(256, 136)),
    24: ("I8", BlockLayout(1, 1)),
    25: ("I16", BlockLayout(1, 2)),
    26: ("I32", BlockLayout(1, 4)),
    27: ("I64", BlockLayout(1, 8)),
    28: ("F64", BlockLayout(1, 8)),
    29: ("IQ1_M", BlockLayout(256, 56)),
    31: ("Q4_0_4_4", None),
    32: ("Q4_0_4_8", None),
    33: ("Q4_0_8_8", None),
    34: ("TQ1_0", BlockLayout(256, 54)),
    35: ("TQ2_0", BlockLayout(256, 66)),
    39: ("MXFP4", BlockLayout(32, 17)),
}
"""Types whose name (and, while ggml still has them, size) is known, for messages and the model card."""


def tensor_type_name(type_id: int) -> str:
    """ggml's name of a tensor type, or ``type <id>`` for one that is not known."""
    if type_id in LAYOUTS:
        return QuantType(type_id).name
    return UNSUPPORTED_TENSOR_TYPES.get(type_id, (f"type {type_id}", None))[0]


def tensor_layout(type_id: int) -> BlockLayout | None:
    """Block layout of a tensor type, None if its size is not known."""
    if type_id in LAYOUTS:
        return LAYOUTS[QuantType(type_id)]
    return UNSUPPORTED_TENSOR_TYPES.get(type_id, ("", None))[1]


def align_up(offset: int, alignment: int) -> int:
    """The first multiple of `alignment` at or after `offset`."""
    return (offset + alignment - 1) // alignment * alignment

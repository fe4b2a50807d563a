"""GGUF bytes put together by hand, so that a test can break any part."""

import struct


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def kv(key, type_id, raw):
    return string(key) + struct.pack("<I", type_id) + raw


def array(element_type, count, raw):
    return struct.pack("<IQ", element_type, count) + raw


def tensor(name, dims, type_id, offset):
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)


def gguf_bytes(kvs=(), tensors=(), data=b"", *, version=3, num_kvs=None, num_tensors=None, alignment=32):
    header = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(kvs) if num_kvs is None else num_kvs,
    )
    header += b"".join(kvs) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data

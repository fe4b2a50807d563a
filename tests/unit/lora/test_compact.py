import numpy as np
import pytest

from realm.lora.adapter import LoRAWeights
from realm.lora.compact import compact

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(0, 0.1, (8, 33)).astype(np.float32)
TINY = np.float32(1e-42)


def bfloat16(matrix):
    return (matrix.view(np.uint32) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize(
    ("matrix", "num_bytes"),
    [
        (NORMAL, 4),
        (bfloat16(NORMAL), 2),
        (NORMAL.astype(np.float16).astype(np.float32), 2),
        (np.array([[0.0, -0.0, 1.0]], np.float32), 2),
        (np.array([[70000.0, -0.0, 1.001]], np.float32), 4),
        (np.array([[TINY, -TINY, 0.5]], np.float32), 4),
        (np.array([[6e-8, 0.1]], np.float16).astype(np.float32), 2),
        (np.array([[1e38]], np.float32), 4),
    ],
)
def test_sixteen_bits_only_where_they_are_exact(matrix, num_bytes):
    kept = compact(matrix)
    assert kept.num_bytes == num_bytes * matrix.size
    np.testing.assert_array_equal(kept.expand().view(np.uint32), matrix.view(np.uint32))
    assert not kept.expand().flags.writeable


def test_an_adapter_saved_in_half_precision_takes_half_the_memory():
    sizes = []
    for a in (NORMAL, bfloat16(NORMAL)):
        adapter = LoRAWeights("a", 8, 8.0)
        adapter.add_layer_weights("x", a, np.ones((4, 8)))
        np.testing.assert_array_equal(adapter.layers["x"].a, a)
        sizes.append((adapter.num_bytes, adapter.host_bytes))
    assert sizes == [(4 * (264 + 32), 4 * 264 + 2 * 32), (4 * (264 + 32), 2 * (264 + 32))]

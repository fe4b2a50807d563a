"""Oracle: the `gguf` package, bit for bit."""

import gguf
import numpy as np
import pytest

from realm.core.errors import InvalidRequest
from realm.core.quant import QuantType, row_bytes
from realm.gguf.dequant import BLOCK_DTYPES, dequantize
from realm.gguf.quantize import QUANTIZABLE, quantize
from realm.gguf.reader import GGUFFile
from realm.testing.quants import random_blocks


def oracle(data, quant_type):
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType(int(quant_type)))


def assert_same_bits(ours, theirs):
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.uint32), np.ascontiguousarray(theirs).view(np.uint32))


@pytest.mark.parametrize("quant_type", QuantType)
def test_random_bytes_dequantise_as_in_ggml(quant_type):
    rng = np.random.default_rng(int(quant_type))
    data = rng.integers(0, 256, (37, row_bytes(quant_type, 768)), np.uint8)
    if quant_type in BLOCK_DTYPES:  # any integers, any finite scales
        blocks = data.reshape(-1).view(BLOCK_DTYPES[quant_type])
        for name in {"d", "m", "dmin"} & set(blocks.dtype.names):
            blocks[name] = rng.normal(0, 1, len(blocks))
    else:
        values = oracle(data, quant_type)
        data[~np.isfinite(values).all(axis=1)] = 0
    assert_same_bits(dequantize(data, quant_type, 768), oracle(data, quant_type))


@pytest.mark.parametrize("quant_type", QuantType)
def test_many_rows_are_done_in_parts(quant_type):
    data = random_blocks(quant_type, 1100, 512, np.random.default_rng(1))
    whole = dequantize(data, quant_type, 512)
    assert_same_bits(whole[1090:], oracle(data[1090:], quant_type))
    assert whole.shape == (1100, 512)


@pytest.mark.parametrize("quant_type", QuantType)
def test_random_blocks_look_like_weights(quant_type):
    weights = dequantize(random_blocks(quant_type, 64, 1024, np.random.default_rng(2)), quant_type, 1024)
    assert np.isfinite(weights).all()
    assert 0.02 < weights.std() < 0.05
    assert abs(weights.mean()) < 0.005


@pytest.mark.parametrize("quant_type", QUANTIZABLE)
def test_quantise_as_in_ggml(quant_type):
    rng = np.random.default_rng(3)
    weights = rng.normal(0, 0.05, (19, 256)).astype(np.float32)
    weights[0] = 0
    weights[1, :32] = 0.25
    weights[2, :3] = (1e-8, -3e4, 65504)
    weights[3] = np.round(weights[3], 1)  # ties
    expected = gguf.quants.quantize(weights, gguf.GGMLQuantizationType(int(quant_type)))
    np.testing.assert_array_equal(quantize(weights, quant_type), expected.view(np.uint8).reshape(19, -1))


@pytest.mark.parametrize(("quant_type", "num_cols"), [(QuantType.Q4_K, 256), (QuantType.Q8_0, 33)])
def test_what_cannot_be_quantised_is_refused_by_name(quant_type, num_cols):
    with pytest.raises(InvalidRequest, match=quant_type.name):
        quantize(np.zeros((2, num_cols), np.float32), quant_type)


@pytest.mark.model
def test_real_tensors_dequantise_as_in_ggml(gguf_models):
    seen = set()
    for path in gguf_models:
        with GGUFFile.open(path) as file:
            for tensor in file.tensors.values():
                if tensor.quant_type in seen:
                    continue
                seen.add(tensor.quant_type)
                data = tensor.data[:512]
                assert_same_bits(dequantize(data, tensor.quant_type, tensor.shape[-1]), oracle(data, tensor.quant_type))
    assert len(seen) >= 2

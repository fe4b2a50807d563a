import numpy as np
import pytest
import torch

from realm.testing.divergence import Divergence


def test_against_torch() -> None:
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(200, 50)).astype(np.float32)
    actual = expected + rng.normal(scale=0.1, size=expected.shape).astype(np.float32)
    found = Divergence()
    found.add(actual[:3], expected[:3])
    found.add(actual[3:], expected[3:])
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (expected, actual))
    kl = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    assert found.mean_kl == pytest.approx(kl.item())
    assert found.top1_agreement == (actual.argmax(1) == expected.argmax(1)).mean()
    assert found.max_relative_error == pytest.approx((np.abs(actual - expected).max(1) / np.abs(expected).max(1)).max())
    assert found.num_positions == 200


def test_equal_is_zero_and_nan_shows() -> None:
    logits = np.ones((2, 4), np.float32)
    same, broken = Divergence(), Divergence()
    same.add(logits, logits)
    assert (same.mean_kl, same.top1_agreement, same.max_relative_error) == (0.0, 1.0, 0.0)
    broken.add(np.array([[1, np.nan, 0, 0], [1, 1, 1, 1]], np.float32), logits)
    assert np.isnan(broken.max_relative_error)
    assert np.isnan(broken.mean_kl)

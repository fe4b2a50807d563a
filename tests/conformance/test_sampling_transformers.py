"""Filtered distributions against transformers' own logits processors."""

from __future__ import annotations

import numpy as np
import pytest
from tests.engine_harness import request_of

from realm.engine.sampling import ReferenceSampling, Sampler
from realm.engine.sequence import Sequence
from realm.kernels.sampling_reference import adjusted_logits, kept_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.9])
@pytest.mark.parametrize("top_k", [0, 3, 40])
@pytest.mark.parametrize("top_p", [0.2, 0.9, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
@pytest.mark.parametrize("repetition_penalty", [1.0, 1.4])
def test_filtered_distribution(temperature, top_k, top_p, min_p, repetition_penalty):
    prompt = tuple(range(0, 100, 7))
    processors = transformers.LogitsProcessorList()
    processors.append(transformers.RepetitionPenaltyLogitsProcessor(repetition_penalty))
    processors.append(transformers.TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(transformers.TopKLogitsWarper(top_k))
    processors.append(transformers.TopPLogitsWarper(top_p))
    processors.append(transformers.MinPLogitsWarper(min_p))
    request = request_of("r", prompt, temperature=temperature, repetition_penalty=repetition_penalty)
    seq = Sequence(request, 0, 1000, frozenset(), b"")
    seq.row = 0
    sampler = Sampler(1, ReferenceSampling())
    sampler.load(seq)
    inputs = sampler._gather([seq])
    for seed in range(20):
        row = np.random.default_rng(seed).normal(0.0, 2.5, 100).astype(np.float32)
        scores = processors(torch.tensor([prompt]), torch.from_numpy(row)[None])
        expected = torch.softmax(scores[0].double(), -1).numpy()
        weights = kept_weights(adjusted_logits(row, inputs, 0), temperature, top_k, top_p, min_p)
        assert (weights > 0).tolist() == (expected > 0).tolist()
        np.testing.assert_allclose(weights / weights.sum(), expected, rtol=1e-4)

"""SmolLM2 and Gemma 3 against transformers, which loads the same GGUF in float32, on English prose."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.conftest import GEMMA3, SMOLLM2, model_path
from transformers import AutoModelForCausalLM, PreTrainedModel

from realm.core.config import EngineConfig, KVType
from realm.core.types import Float32Array
from realm.models.loader import Device, LoadedModel, load_model
from realm.testing.batches import logits_in_chunks
from realm.testing.divergence import Divergence

TEXT = Path(__file__).parents[2] / "benchmarks/data/northanger_abbey.txt"
# One prompt is longer than Gemma's window of 512 tokens.
PROMPT_LENGTHS_TOKENS = (640, 250, 250)
CHUNK_TOKENS = 128
KV_TYPES: dict[Device, KVType] = {"reference": KVType.F32, "cpu": KVType.F16}

pytestmark = pytest.mark.model


def prompts(model: LoadedModel) -> list[list[int]]:
    """Stretches of the text, far from each other, each with BOS in front if the model wants it."""
    tokenizer = model.tokenizer
    ids = tokenizer.encode(TEXT.read_text(encoding="utf-8"), add_special=False)
    start = tokenizer.encode("")
    step = len(ids) // len(PROMPT_LENGTHS_TOKENS)
    return [start + ids[i * step :][: length - len(start)] for i, length in enumerate(PROMPT_LENGTHS_TOKENS)]


def transformers_logits(model: PreTrainedModel, ids: list[int]) -> Iterator[Float32Array]:
    """Logits of every position, a chunk at a time: those of a whole prompt would take gigabytes."""
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0]
        for part in hidden.split(CHUNK_TOKENS):
            yield model.lm_head(part).numpy()


@pytest.fixture(scope="module", params=[SMOLLM2, GEMMA3])
def divergences(request: pytest.FixtureRequest) -> dict[Device, Divergence]:
    """What each device's logits differ from those of transformers, over all prompts."""
    path = model_path(request.param)
    hf = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    models = {
        device: load_model(path, EngineConfig(kv_type=kv_type, kv_cache_tokens=1024), device)
        for device, kv_type in KV_TYPES.items()
    }
    found = {device: Divergence() for device in models}
    for ids in prompts(models["reference"]):
        ours = {device: logits_in_chunks(m.executor, ids, CHUNK_TOKENS, 32) for device, m in models.items()}
        for expected in transformers_logits(hf, ids):
            for device, chunks in ours.items():
                found[device].add(next(chunks), expected)
    return found


def test_reference_is_near_exact(divergences: dict[Device, Divergence]) -> None:
    assert divergences["reference"].num_positions >= 1000
    assert divergences["reference"].max_relative_error <= 1e-3


def test_native_is_close(divergences: dict[Device, Divergence]) -> None:
    native = divergences["cpu"]
    assert native.num_positions >= 1000
    assert native.mean_kl <= 0.01


def test_native_agrees_on_the_likeliest_token(
    divergences: dict[Device, Divergence], request: pytest.FixtureRequest
) -> None:
    if SMOLLM2 in request.node.name:
        reason = "int8 activations with one scale per 32 values reach 95-96% on prose, as llama.cpp does (docs/LOG.md)"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    assert divergences["cpu"].top1_agreement >= 0.97

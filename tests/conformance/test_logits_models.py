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

DATA = Path(__file__).parents[2] / "benchmarks/data"
# The stretches of each text, in tokens. One is longer than Gemma's window of 512.
PROMPT_LENGTHS_TOKENS = {"northanger_abbey.txt": (640, 250, 250), "harbour_notes.txt": (520, 520)}
CHUNK_TOKENS = 128
KV_TYPES: dict[Device, KVType] = {"reference": KVType.F32, "cpu": KVType.F16}

pytestmark = pytest.mark.model


def prompts(model: LoadedModel, text: str) -> list[list[int]]:
    """Stretches of the text, far from each other, each with BOS in front if the model wants it."""
    tokenizer = model.tokenizer
    ids = tokenizer.encode((DATA / text).read_text(encoding="utf-8"), add_special=False)
    start, lengths = tokenizer.encode(""), PROMPT_LENGTHS_TOKENS[text]
    step = len(ids) // len(lengths)
    return [start + ids[i * step :][: length - len(start)] for i, length in enumerate(lengths)]


def transformers_logits(model: PreTrainedModel, ids: list[int]) -> Iterator[Float32Array]:
    """Logits of every position, a chunk at a time: those of a whole prompt would take gigabytes."""
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0]
        for part in hidden.split(CHUNK_TOKENS):
            yield model.lm_head(part).numpy()


@pytest.fixture(scope="module", params=[SMOLLM2, GEMMA3])
def divergences_by_text(request: pytest.FixtureRequest) -> dict[str, dict[Device, Divergence]]:
    """What each device's logits differ from those of transformers, over all prompts of each text."""
    path = model_path(request.param)
    hf = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    models = {
        device: load_model(path, EngineConfig(kv_type=kv_type, kv_cache_tokens=1024), device)
        for device, kv_type in KV_TYPES.items()
    }
    found = {text: {device: Divergence() for device in models} for text in PROMPT_LENGTHS_TOKENS}
    for text, by_device in found.items():
        for ids in prompts(models["reference"], text):
            ours = {device: logits_in_chunks(m.executor, ids, CHUNK_TOKENS, 32) for device, m in models.items()}
            for expected in transformers_logits(hf, ids):
                for device, chunks in ours.items():
                    by_device[device].add(next(chunks), expected)
    return found


@pytest.fixture(params=PROMPT_LENGTHS_TOKENS)
def divergences(
    request: pytest.FixtureRequest, divergences_by_text: dict[str, dict[Device, Divergence]]
) -> dict[Device, Divergence]:
    """Of one text."""
    return divergences_by_text[request.param]


def test_reference_is_near_exact(divergences: dict[Device, Divergence]) -> None:
    assert divergences["reference"].num_positions >= 1000
    assert divergences["reference"].max_relative_error <= 1e-3


def test_native_is_close(divergences: dict[Device, Divergence]) -> None:
    native = divergences["cpu"]
    assert native.num_positions >= 1000
    assert native.mean_kl <= 0.01


def test_native_agrees_on_the_likeliest_token(divergences: dict[Device, Divergence]) -> None:
    assert divergences["cpu"].top1_agreement >= 0.97

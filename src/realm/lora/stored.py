"""The nouns of the adapter store: a record, the files of an upload, an upload that is coming in."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from realm.core.errors import InvalidRequest, PayloadTooLarge
from realm.lora.adapter import check_adapter_name

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
GGUF_FILE = "adapter.gguf"


@dataclass(frozen=True, slots=True)
class Record:
    """What a name in the store stands for."""

    name: str
    object_id: str
    num_bytes: int
    """Of its files."""
    content_hash: str
    """Of the adapter, bound to the model with `fingerprint`."""
    fingerprint: str
    ranks: dict[str, int]
    """Rank of each module's change."""
    created: int
    """Unix seconds."""
    loaded: bool = True
    """Whether requests may name it."""
    pinned: bool = False


@dataclass(eq=False)
class StoredFiles:
    """Files of one upload. They stay at least as long as this object does."""

    path: Path
    """What `LoRAWeights.load` reads."""
    directory: Path
    num_bytes: int


@dataclass
class Incoming:
    """An upload that is being written."""

    name: str
    directory: Path
    room: int
    """Bytes that may still come."""
    limit: str
    num_bytes: int = 0
    files: dict[str, BinaryIO] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """What `LoRAWeights.load` reads."""
        return self.directory / GGUF_FILE if GGUF_FILE in self.files else self.directory

    def create(self, name: str) -> BinaryIO:
        """Begin a file: one of `PEFT_FILES`, or `GGUF_FILE`.

        Raises:
            InvalidRequest: another file, or one that is there.
        """
        assert name in (*PEFT_FILES, GGUF_FILE)
        if name in self.files:
            raise InvalidRequest(f"the upload holds {name} twice", code="invalid_upload", param="files")
        self.files[name] = file = (self.directory / name).open("xb")
        return file

    def write(self, file: BinaryIO, data: bytes | memoryview) -> None:
        """Add to a file.

        Raises:
            PayloadTooLarge: there is no room for more.
        """
        self.num_bytes += len(data)
        if self.num_bytes > self.room:
            raise PayloadTooLarge(f"the upload is over {self.limit}", code="adapter_too_large", param="files")
        file.write(data)

    def close(self, sync: bool) -> None:
        """No more is coming."""
        for file in self.files.values():
            if sync and not file.closed:
                file.flush()
                os.fsync(file.fileno())
            file.close()

    def check_complete(self) -> None:
        """Refuse half of an adapter.

        Raises:
            InvalidRequest: neither both PEFT files nor one GGUF file.
        """
        if set(self.files) not in ({*PEFT_FILES}, {GGUF_FILE}):
            raise InvalidRequest(
                f"an upload is {' and '.join(PEFT_FILES)}, or one .gguf file; got {', '.join(self.files) or 'nothing'}",
                code="invalid_upload",
                param="files",
            )


def read_record(path: Path) -> Record | None:
    """A record, or None if it is not one of ours."""
    try:
        record = Record(**json.loads(path.read_bytes()))
        check_adapter_name(record.name)
    except (OSError, ValueError, TypeError, InvalidRequest):
        return None
    well_formed = (
        path.name == f"{record.name}.json"
        and isinstance(record.object_id, str)
        and record.object_id.isalnum()
        and isinstance(record.num_bytes, int)
        and isinstance(record.ranks, dict)
    )
    return record if well_formed else None


def replace_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that a crash leaves the old or the new."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)

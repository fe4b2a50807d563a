"""What a distillation keeps on disk so that it can be stopped and gone on with. Needs no torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realm.core.errors import InvalidRequest


class WorkDir:
    """Texts and training state of one plan.

    Args:
        path: The directory, made if it is missing.
        plan: What is being done; a directory of another plan is refused.

    Raises:
        InvalidRequest: `path` holds another plan's work, or isn't a directory.
    """

    def __init__(self, path: Path, plan: Mapping[str, object]) -> None:
        self.path = path
        written = path / "plan.json"
        wanted = json.dumps(plan, indent=1, sort_keys=True)
        try:
            path.mkdir(parents=True, exist_ok=True)
            known = written.read_text() if written.exists() else None
        except OSError as error:
            raise InvalidRequest(f"{path}: {error.strerror}", param="work") from error
        if known is None:
            if any(path.iterdir()):
                raise InvalidRequest(f"{path} is not empty, and no distillation was begun in it", param="work")
            written.write_text(wanted)
        elif known != wanted:
            raise InvalidRequest(
                f"{path} holds a distillation that was begun with other settings",
                param="work",
                hint="repeat its settings to go on with it, remove it, or give another directory with --work",
            )

    @property
    def checkpoint(self) -> Path:
        """The training state."""
        return self.path / "checkpoint.pt"

    def array(self, name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array kept under `name`, read as it is needed; made now if there is none."""
        path = self.path / f"{name}.npy"
        if not path.exists():
            partial = path.with_suffix(".partial.npy")
            np.save(partial, make())
            os.replace(partial, path)
        kept: NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
        return kept

    def remove(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.path)

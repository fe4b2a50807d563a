"""The LoRA adapters of one model, by name; and which one each tenant gets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

from realm.core.errors import InvalidRequest, ModelFileError, NotFound
from realm.core.types import AdapterRef
from realm.kernels.ops import LoRALayer
from realm.lora.adapter import LoRAWeights, outline_layer
from realm.lora.base import BaseModel
from realm.lora.resident import Source
from realm.lora.stored import StoredFiles

MAX_ADAPTERS = 1024
"""Names loaded at a time."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A loaded adapter. Requests hold on to it, so that they end on what they began with, whatever its name means."""

    ref: AdapterRef
    weights: Source
    """In the base model's row order."""


class StoredAdapter:
    """Weights that lie in files of ours and are read whenever the pool loads them: they take no memory meanwhile.

    Args:
        files: What to read; held, so that it stays.
        content_hash: What it must turn out to be.
        ranks: Rank of each module's change.
        base: The model's matrices.
    """

    def __init__(self, files: StoredFiles, content_hash: str, ranks: Mapping[str, int], base: BaseModel) -> None:
        self._files = files
        self._content_hash = content_hash
        self._ranks = dict(ranks)
        self._base = base

    @property
    def outline(self) -> Mapping[str, LoRALayer]:
        """Layers of the right shapes, without values."""
        layers = {}
        for name, rank in self._ranks.items():
            shape = self._base.shape_of(name)
            assert shape is not None, "the adapter was bound to another model"
            layers[name] = outline_layer(shape[0], rank, shape[1])
        return layers

    @property
    def layers(self) -> Mapping[str, LoRALayer]:
        """Read from the files.

        Raises:
            RealmError: they can't be read, or are no longer what they were.
        """
        weights = LoRAWeights.load(self._files.path, "stored").bind(self._base)
        if weights.content_hash != self._content_hash:
            raise ModelFileError("the stored adapter has changed on disk", code="adapter_corrupt")
        return weights.layers


class AdapterRegistry:
    """Adapters that requests may name. Safe to use from any thread.

    A name is an alias: loading another adapter under it changes what new requests get, and nothing else.

    Args:
        base: Reads the matrices that adapters may change; called once, when the first adapter comes.
    """

    def __init__(self, base: Callable[[], BaseModel]) -> None:
        self._read_base = base
        self._base: BaseModel | None = None
        self._by_name: dict[str, Adapter] = {}
        self._weights: WeakValueDictionary[str, Source] = WeakValueDictionary()
        self._lock = threading.RLock()

    @property
    def base(self) -> BaseModel:
        """The matrices that adapters may change."""
        with self._lock:
            self._base = self._base or self._read_base()
            return self._base

    def load(self, weights: LoRAWeights) -> Adapter:
        """Check an adapter against the model and make it known under its `adapter_id`.

        Raises:
            ModelFileError: it is made for another model.
            InvalidRequest: as many adapters are loaded as may be.
        """
        bound = weights.bind(self.base)
        return self.add(weights.adapter_id, bound.content_hash, bound)

    def add(self, name: str, content_hash: str, weights: Source) -> Adapter:
        """Make weights known under a name; they are bound to the model and checked already.

        Raises:
            InvalidRequest: as many adapters are loaded as may be.
        """
        with self._lock:
            self.check_room(name)
            weights = self._weights.setdefault(content_hash, weights)
            adapter = self._by_name[name] = Adapter(AdapterRef(name, content_hash), weights)
        return adapter

    def check_room(self, name: str) -> None:
        """Refuse a new name where there are as many as may be.

        Raises:
            InvalidRequest: there are.
        """
        if name not in self._by_name and len(self._by_name) >= MAX_ADAPTERS:
            raise InvalidRequest(
                f"{MAX_ADAPTERS} adapters are loaded, which is the limit",
                code="too_many_adapters",
                hint="unload one first",
            )

    def holds(self, content_hash: str) -> bool:
        """Whether some name stands for this content."""
        with self._lock:
            return any(adapter.ref.content_hash == content_hash for adapter in self._by_name.values())

    def unload(self, name: str) -> None:
        """Forget a name. Requests that began with it end with it; then its memory is free.

        Raises:
            NotFound: no such adapter.
        """
        with self._lock:
            if self._by_name.pop(name, None) is None:
                raise unknown_adapter(name)

    def get(self, name: str) -> Adapter:
        """What a name stands for now.

        Raises:
            NotFound: no such adapter.
        """
        adapter = self._by_name.get(name)
        if adapter is None:
            raise unknown_adapter(name)
        return adapter

    def names(self) -> list[str]:
        """All names, in order."""
        return sorted(self._by_name)

    def weights_of(self, content_hash: str) -> Source:
        """The weights behind an `AdapterRef` of an open request."""
        return self._weights[content_hash]


def unknown_adapter(name: str) -> NotFound:
    """The error for a name that isn't loaded, or that the caller may not see."""
    return NotFound(f"the adapter {name!r} does not exist", code="adapter_not_found", param="model")

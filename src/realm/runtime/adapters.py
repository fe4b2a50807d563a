"""The LoRA adapters of one model, by name; and which one each tenant gets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from realm.core.errors import InvalidRequest, NotFound
from realm.core.types import AdapterRef
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel

MAX_ADAPTERS = 1024
"""Names loaded at a time."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A loaded adapter. Requests hold on to it, so that they end on what they began with, whatever its name means."""

    ref: AdapterRef
    weights: LoRAWeights
    """In the base model's row order."""


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
        self._weights: WeakValueDictionary[str, LoRAWeights] = WeakValueDictionary()
        self._lock = threading.Lock()

    def load(self, weights: LoRAWeights) -> Adapter:
        """Check an adapter against the model and make it known under its `adapter_id`.

        Raises:
            ModelFileError: it is made for another model.
            InvalidRequest: as many adapters are loaded as may be.
        """
        with self._lock:
            self._base = self._base or self._read_base()
        bound = weights.bind(self._base)
        content_hash = bound.content_hash
        with self._lock:
            if weights.adapter_id not in self._by_name and len(self._by_name) >= MAX_ADAPTERS:
                raise InvalidRequest(
                    f"{MAX_ADAPTERS} adapters are loaded, which is the limit",
                    code="too_many_adapters",
                    hint="unload one first",
                )
            bound = self._weights.setdefault(content_hash, bound)
            adapter = Adapter(AdapterRef(weights.adapter_id, content_hash), bound)
            self._by_name[weights.adapter_id] = adapter
        return adapter

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

    def weights_of(self, content_hash: str) -> LoRAWeights:
        """The weights behind an `AdapterRef` of an open request."""
        return self._weights[content_hash]


def unknown_adapter(name: str) -> NotFound:
    """The error for a name that isn't loaded, or that the caller may not see."""
    return NotFound(f"the adapter {name!r} does not exist", code="adapter_not_found", param="model")

"""Adapters by name: what a name means now, and what a request began with."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from realm.core.errors import ModelFileError, NotFound
from realm.lora.adapter import LoRAWeights
from realm.lora.base import BaseModel
from realm.runtime.adapters import AdapterRegistry

BASE = BaseModel("llama", 4, 2, {"blk.0.attn_q": (64, 64)})


def adapter(name: str, value: float, columns: int = 64) -> LoRAWeights:
    weights = LoRAWeights(name, rank=2, alpha=4)
    weights.add_layer_weights("blk.0.attn_q", np.full((2, columns), value), np.ones((64, 2)))
    return weights


@pytest.fixture
def registry() -> AdapterRegistry:
    return AdapterRegistry(lambda: BASE)


def test_load_get_unload(registry: AdapterRegistry) -> None:
    loaded = registry.load(adapter("a", 1))
    assert registry.get("a") is loaded
    assert registry.names() == ["a"]
    registry.unload("a")
    for call in (registry.get, registry.unload):
        with pytest.raises(NotFound):
            call("a")


def test_identity_is_the_content(registry: AdapterRegistry) -> None:
    one, same, other = (
        registry.load(adapter("one", 1)),
        registry.load(adapter("same", 1)),
        registry.load(adapter("o", 2)),
    )
    assert one.ref.content_hash == same.ref.content_hash != other.ref.content_hash
    assert one.weights is same.weights


def test_a_request_keeps_what_it_began_with(registry: AdapterRegistry) -> None:
    old = registry.load(adapter("a", 1))
    new = registry.load(adapter("a", 2))
    registry.unload("a")
    assert registry.weights_of(old.ref.content_hash) is old.weights
    assert registry.weights_of(new.ref.content_hash) is new.weights
    old_hash = old.ref.content_hash
    del old
    gc.collect()
    with pytest.raises(KeyError):
        registry.weights_of(old_hash)


def test_an_adapter_of_another_model_is_refused(registry: AdapterRegistry) -> None:
    with pytest.raises(ModelFileError):
        registry.load(adapter("a", 1, columns=32))
    assert registry.names() == []

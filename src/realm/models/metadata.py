"""Typed, range-checked access to one architecture's GGUF keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from realm.core.errors import ModelFileError

_REQUIRED = object()


class Fields:
    """Values under `<architecture>.`; every getter raises ModelFileError naming the full key.

    A default, where one is given, stands for a missing key and is not range-checked.
    """

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata = metadata
        self.architecture = architecture

    def error(self, key: str, problem: str) -> ModelFileError:
        """A ready error about `key`."""
        return ModelFileError(f"{self.architecture}.{key} {problem}", param=f"{self.architecture}.{key}")

    def integer(self, key: str, low: int, high: int, default: int | object = _REQUIRED) -> int:
        """A whole number in [low, high]. A per-layer list counts as one number if all its items are equal."""
        value = self._get(key, default)
        if value is default:
            assert isinstance(value, int)
            return value
        value = self._uniform(key, value)
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise self.error(key, f"must be an integer, got {value!r:.80}")
        if not low <= value <= high:
            raise self.error(key, f"must be between {low} and {high}, got {value}")
        return int(value)

    def number(self, key: str, low: float, high: float, default: float | object = _REQUIRED) -> float:
        """A finite number in [low, high]."""
        value = self._get(key, default)
        if value is default:
            assert isinstance(value, float)
            return value
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise self.error(key, f"must be a number, got {value!r:.80}")
        if not math.isfinite(value) or not low <= value <= high:
            raise self.error(key, f"must be between {low} and {high}, got {value}")
        return float(value)

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"must be a string, got {value!r:.80}")
        return value

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return f"{self.architecture}.{key}" in self.metadata

    def require_neutral(self, key: str, neutral: float) -> None:
        """Refuse a key whose value asks for something that no supported family does."""
        value = self._get(key, neutral)
        if isinstance(value, (list, tuple, np.ndarray)) or value != neutral:
            raise ModelFileError(
                f"{self.architecture}.{key} = {value!r:.80} is not supported",
                code="unsupported_model",
                param=f"{self.architecture}.{key}",
            )

    def layer_pattern(self, key: str, num_layers: int, default_period: int) -> list[bool]:
        """One flag per layer, from a list of flags or a period of which all layers but the last are marked."""
        value = self._get(key, default_period)
        if isinstance(value, (list, tuple, np.ndarray)):
            if len(value) != num_layers:
                raise self.error(key, f"must have {num_layers} items, got {len(value)}")
            return [bool(item) for item in value]
        period = self.integer(key, 0, 1024, default=default_period)
        return [period <= 1 or i % period < period - 1 for i in range(num_layers)]

    def _get(self, key: str, default: object) -> Any:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if value is _REQUIRED:
            raise self.error(key, "is missing")
        return value

    def _uniform(self, key: str, value: Any) -> Any:
        if not isinstance(value, (list, tuple, np.ndarray)):
            return value
        if len(value) == 0 or any(item != value[0] for item in value):
            raise self.error(key, "differs between layers, which is not supported")
        return value[0]

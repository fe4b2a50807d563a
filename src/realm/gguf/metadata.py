"""Metadata of a GGUF file, with getters that check types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar, cast

from realm.core.errors import ModelFileError
from realm.core.texts import Texts

T = TypeVar("T")


class _Required:
    """Marks a key without a default."""


REQUIRED = _Required()


class Metadata(dict[str, object]):
    """Key to value: bool, int, float, str or a list of these (`Texts` of strings, lists of lists in odd files).

    The getters return `default` when the key is absent.

    Raises:
        ModelFileError: key absent and no default, or a value of another type; the message names the key.
    """

    def get_int(self, key: str, default: int | _Required = REQUIRED) -> int:
        """An integer (booleans are not)."""
        return self._get(key, default, _is_int, "an integer")

    def get_float(self, key: str, default: float | _Required = REQUIRED) -> float:
        """A finite number; integers count."""
        return float(self._get(key, default, _is_finite, "a finite number"))

    def get_bool(self, key: str, default: bool | _Required = REQUIRED) -> bool:
        """A boolean."""
        return self._get(key, default, lambda value: isinstance(value, bool), "a boolean")

    def get_str(self, key: str, default: str | _Required = REQUIRED) -> str:
        """A string."""
        return self._get(key, default, lambda value: isinstance(value, str), "a string")

    def get_ints(self, key: str, default: list[int] | _Required = REQUIRED) -> list[int]:
        """A list of integers."""
        return self._get(key, default, lambda value: _is_list(value, int), "a list of integers")

    def get_floats(self, key: str, default: list[float] | _Required = REQUIRED) -> list[float]:
        """A list of numbers; these may be infinite or NaN."""
        return self._get(key, default, lambda value: _is_list(value, float), "a list of floats")

    def get_strs(self, key: str, default: Sequence[str] | _Required = REQUIRED) -> Sequence[str]:
        """A list of strings."""
        return self._get(key, default, lambda value: _is_list(value, str), "a list of strings")

    def get_bools(self, key: str, default: list[bool] | _Required = REQUIRED) -> list[bool]:
        """A list of booleans."""
        return self._get(key, default, lambda value: _is_list(value, bool), "a list of booleans")

    def _get(self, key: str, default: T | _Required, accepts: object, wanted: str) -> T:
        if key not in self:
            if isinstance(default, _Required):
                raise ModelFileError(f"metadata key {key} is missing, {wanted} is needed", code="missing_metadata")
            return default
        value = self[key]
        assert callable(accepts)
        if not accepts(value):
            raise ModelFileError(f"metadata key {key} must be {wanted}, got {_short(value)}")
        return cast("T", value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list(value: object, element_type: type) -> bool:
    # GGUF arrays are homogeneous, so the first element speaks for all.
    return isinstance(value, list | Texts) and (not value or type(value[0]) is element_type)


def _short(value: object) -> str:
    if isinstance(value, list | Texts):
        return f"a list of {len(value)}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"

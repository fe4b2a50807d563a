"""One LoRA adapter in memory: pairs of matrices by module name, checked on the way in."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from realm.core.errors import InvalidRequest, ModelFileError
from realm.core.types import Float32Array
from realm.kernels.ops import LoRALayer
from realm.lora.base import BaseModel
from realm.lora.compact import CompactMatrix, compact

MAX_RANK = 512
MAX_ADAPTER_BYTES = 2 << 30
"""Of an adapter file, and of an adapter as float32."""

_MAX_SCALE = float(np.finfo(np.float32).max)

RowOrder = Literal["gguf", "huggingface"]

_ADAPTER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class _StoredLayer:
    """A `LoRALayer` that takes as little memory as it can."""

    a: CompactMatrix  # [r, K]
    b: CompactMatrix  # [N, r]
    scale: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows N, rank r, columns K."""
        return (*self.b.values.shape, self.a.values.shape[1])

    def expand(self) -> LoRALayer:
        """As kernels take it."""
        return LoRALayer(self.a.expand(), self.b.expand(), self.scale)


class _Layers(Mapping[str, LoRALayer]):
    """Layers by module name, each expanded when it is asked for."""

    def __init__(self, stored: Mapping[str, _StoredLayer]) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> LoRALayer:
        return self._stored[name].expand()

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def outline_layer(rows: int, rank: int, columns: int) -> LoRALayer:
    """A layer that has a shape only: its values are whatever the memory holds, and most of it is never touched."""
    return LoRALayer(np.empty((rank, columns), np.float32), np.empty((rows, rank), np.float32), 1.0)


def check_adapter_name(name: str) -> None:
    """Refuse what could be a path, or could not be told from other names.

    Raises:
        InvalidRequest: not 1 to 128 letters, digits, ``.``, ``_`` and ``-``, with a letter or digit first.
    """
    if not _ADAPTER_ID.fullmatch(name):
        raise InvalidRequest(
            f"adapter name must be 1 to 128 letters, digits, '.', '_' or '-', got {name[:200]!r}",
            code="invalid_adapter_name",
            param="adapter_id",
        )


class LoRAWeights:
    """A LoRA adapter (arXiv 2106.09685).

    Args:
        adapter_id: Its name: letters, digits, ``.``, ``_``, ``-``; at most 128 characters.
        rank: Rank r of its layers, 1 to 512; layers of another rank must bring their own scale.
        alpha: Numerator of the scale ``alpha / rank``.
        architecture: GGUF architecture it was made for, if the file says.
        row_order: How rows of B are ordered in attn_q and attn_k; adapters made with PEFT are in Hugging Face order
            until `bind` has put them into the base model's.

    Raises:
        InvalidRequest: a bad name, rank or alpha.
    """

    def __init__(
        self,
        adapter_id: str,
        rank: int,
        alpha: float,
        *,
        architecture: str | None = None,
        row_order: RowOrder = "gguf",
    ) -> None:
        check_adapter_name(adapter_id)
        _check_rank(rank, "rank")
        if not math.isfinite(alpha):
            raise InvalidRequest(f"alpha must be finite, got {alpha}", param="alpha")
        self.adapter_id = adapter_id
        self.rank = rank
        self.alpha = float(alpha)
        self.architecture = architecture
        self.row_order: RowOrder = row_order
        self._layers: dict[str, _StoredLayer] = {}
        self._num_bytes = 0

    @classmethod
    def load(cls, path: str | Path, adapter_id: str | None = None) -> LoRAWeights:
        """Read a PEFT directory or a GGUF adapter file; `adapter_id` is the path's last part if not given.

        Raises:
            RealmError: missing, truncated, corrupt, hostile, or of a kind that is not supported.
        """
        from realm.lora.gguf_format import load_gguf_adapter
        from realm.lora.peft_format import load_peft_adapter

        path = Path(path)
        if path.is_dir():
            return load_peft_adapter(path, adapter_id or path.resolve().name)
        if path.suffix == ".gguf":
            return load_gguf_adapter(path, adapter_id or path.stem)
        if path.name == "adapter_model.safetensors":
            return load_peft_adapter(path.parent, adapter_id or path.resolve().parent.name)
        raise ModelFileError(
            f"{path} is neither a PEFT directory nor a .gguf file",
            code="unsupported_adapter" if path.exists() else "adapter_not_found",
        )

    def add_layer_weights(self, module_name: str, a: ArrayLike, b: ArrayLike, scale: float | None = None) -> None:
        """Add the change of one matrix.

        Args:
            module_name: As in GGUF, without ``.weight``: ``blk.3.attn_q``, ``output``, ``token_embd``.
            a: [r, K]; of ``token_embd`` [r, V], a column for each token.
            b: [N, r]; of ``token_embd`` [C, r].
            scale: ``alpha / rank`` of the adapter if None.

        Raises:
            InvalidRequest: shapes that do not fit each other, a rank out of range, a value that is not finite,
                a module that was added before.
        """
        layer_scale = float(self.alpha / self.rank if scale is None else scale)
        layer = LoRALayer(_matrix(f"{module_name} A", a), _matrix(f"{module_name} B", b), layer_scale)
        if layer.b.shape[1] != layer.rank:
            raise _invalid(f"{module_name}: A {layer.a.shape} and B {layer.b.shape} have different ranks")
        _check_rank(layer.rank, f"rank of {module_name}")
        if scale is None and layer.rank != self.rank:
            raise _invalid(f"{module_name}: rank {layer.rank} in an adapter of rank {self.rank} needs its own scale")
        if not abs(layer.scale) <= _MAX_SCALE:  # NaN, too
            raise _invalid(f"{module_name}: scale must be finite, got {layer.scale}")
        if module_name in self._layers:
            raise _invalid(f"{module_name} was added before")
        if self.num_bytes + layer.a.nbytes + layer.b.nbytes > MAX_ADAPTER_BYTES:
            raise _invalid(f"{self.adapter_id} is larger than {MAX_ADAPTER_BYTES} bytes")
        self._put(module_name, _StoredLayer(compact(layer.a), compact(layer.b), layer.scale))
        self.__dict__.pop("content_hash", None)

    def bind(self, base: BaseModel) -> LoRAWeights:
        """The same adapter with the same identity, checked against `base` and with rows in its order.

        Raises:
            ModelFileError: made for another architecture, a module that `base` lacks, or another shape.
        """
        if self.architecture is not None and self.architecture != base.architecture:
            raise _mismatch(
                self, f"is made for architecture {self.architecture}, the base model is {base.architecture}"
            )
        if not self._layers:
            raise _invalid(f"{self.adapter_id} holds no layers")
        bound = LoRAWeights(self.adapter_id, self.rank, self.alpha, architecture=base.architecture)
        for name, layer in self._layers.items():
            shape = base.shape_of(name)
            if shape is None:
                raise _mismatch(self, f"changes {name}, which the base model does not have or which cannot be adapted")
            rows, _, columns = layer.shape
            if shape != (rows, columns):
                raise _mismatch(self, f"changes {name} of {(rows, columns)}, the base has {shape}")
            if self.row_order == "huggingface":
                layer = replace(layer, b=CompactMatrix(base.reorder_rows(name, layer.b.values)))
            bound._put(name, layer)
        bound.__dict__["content_hash"] = self.content_hash
        return bound

    def _put(self, name: str, layer: _StoredLayer) -> None:
        rows, rank, columns = layer.shape
        self._layers[name] = layer
        self._num_bytes += 4 * rank * (rows + columns)

    @property
    def layers(self) -> Mapping[str, LoRALayer]:
        """Changes by module name. Each access makes a layer anew: they are kept in 16 bits where that is exact."""
        return _Layers(self._layers)

    @property
    def outline(self) -> Mapping[str, LoRALayer]:
        """Layers of the same shapes without values, for what only depends on sizes."""
        return {name: outline_layer(*layer.shape) for name, layer in self._layers.items()}

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each module's change."""
        return {name: layer.shape[1] for name, layer in self._layers.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of all A and B as float32."""
        return self._num_bytes

    @property
    def host_bytes(self) -> int:
        """Memory that holds them here: half as much where 16 bits are exact."""
        return sum(layer.a.num_bytes + layer.b.num_bytes for layer in self._layers.values())

    @property
    def max_rank(self) -> int:
        """Largest rank of a layer; 0 without layers."""
        return max(self.ranks.values(), default=0)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of what the adapter computes: modules, shapes, values, scales and row order; not of its name.

        Binding keeps it, so that a file has one identity whatever model serves it.
        """
        digest = hashlib.sha256(f"realm-lora-v1 {self.row_order}".encode())
        for name in sorted(self._layers):
            layer = self.layers[name]
            shape = (*layer.a.shape, *layer.b.shape)
            digest.update(f"\n{len(name)} {name} {shape} {float(layer.scale).hex()}\n".encode())
            digest.update(layer.a.data)
            digest.update(layer.b.data)
        return digest.hexdigest()


def _matrix(what: str, values: ArrayLike) -> Float32Array:
    """A private, read-only, contiguous float32 copy."""
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = np.array(values, np.float32, order="C")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise _invalid(f"{what} must be a matrix, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise _invalid(f"{what} holds a value that is not finite")
    matrix.flags.writeable = False
    return matrix


def _check_rank(rank: int, what: str) -> None:
    if not 1 <= rank <= MAX_RANK:
        raise _invalid(f"{what} must be between 1 and {MAX_RANK}, got {rank}")


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_adapter")


def _mismatch(adapter: LoRAWeights, message: str) -> ModelFileError:
    return ModelFileError(
        f"adapter {adapter.adapter_id} {message}",
        code="adapter_base_mismatch",
        hint="load it on the base model it was trained on",
    )

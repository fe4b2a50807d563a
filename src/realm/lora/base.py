"""What an adapter must fit: the matrices of a base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray

from realm.core.errors import ModelFileError
from realm.gguf import names
from realm.gguf.reader import GGUFFile

Rows = TypeVar("Rows", bound=NDArray[Any])

_LAYER_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
# llama.cpp's converter reorders the rows of q and k so that rotary pairs are neighbours; only for this architecture.
_PERMUTED_ARCHITECTURES = ("llama",)


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The matrices that adapters may change, by GGUF module name without ``.weight``: (rows N, columns K)."""

    architecture: str
    num_heads: int
    num_kv_heads: int
    modules: Mapping[str, tuple[int, int]]
    embedding: tuple[int, int] | None = None
    """Of the change of ``token_embd``: hidden size C, vocabulary V. Its input is a token id, one-hot."""

    def shape_of(self, module_name: str) -> tuple[int, int] | None:
        """(N, K) of B and A in a change of this matrix; None if there is no such matrix."""
        return self.embedding if module_name == names.EMBEDDING else self.modules.get(module_name)

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> BaseModel:
        """Read it off an open model. With tied embeddings the output head can be adapted as ``output`` all the same.

        Raises:
            ModelFileError: a model without the metadata or tensors that are needed.
        """
        architecture = file.metadata.get_str("general.architecture")
        num_heads = file.metadata.get_int(f"{architecture}.attention.head_count")
        num_kv_heads = file.metadata.get_int(f"{architecture}.attention.head_count_kv", num_heads)
        modules: dict[str, tuple[int, int]] = {}
        for name, tensor in file.tensors.items():
            module = name.removesuffix(".weight")
            is_layer_matrix = module.startswith("blk.") and module.rpartition(".")[2] in _LAYER_MATRICES
            if name.endswith(".weight") and len(tensor.shape) == 2 and (is_layer_matrix or module == names.OUTPUT):
                modules[module] = (tensor.shape[0], tensor.shape[1])
        embedding = _shape(file, names.EMBEDDING)
        if len(embedding) != 2:
            return cls(architecture, num_heads, num_kv_heads, modules)
        modules.setdefault(names.OUTPUT, (embedding[0], embedding[1]))
        return cls(architecture, num_heads, num_kv_heads, modules, (embedding[1], embedding[0]))

    def reorder_rows(self, module_name: str, rows: Rows) -> Rows:
        """Rows [N, ...] of a matrix in Hugging Face order, in the order of the GGUF file.

        Source: ``LlamaModel.permute`` of llama.cpp's ``convert_hf_to_gguf.py``.

        Raises:
            ModelFileError: N is not a multiple of twice the number of heads.
        """
        part = module_name.rpartition(".")[2]
        if self.architecture not in _PERMUTED_ARCHITECTURES or part not in ("attn_q", "attn_k"):
            return rows
        num_heads = self.num_heads if part == "attn_q" else self.num_kv_heads
        if num_heads < 1 or len(rows) % (2 * num_heads):
            raise ModelFileError(
                f"{module_name} has {len(rows)} rows, not a multiple of 2 x {num_heads} heads",
                code="adapter_base_mismatch",
            )
        halves = rows.reshape(num_heads, 2, len(rows) // num_heads // 2, *rows.shape[1:])
        return halves.swapaxes(1, 2).reshape(rows.shape)  # type: ignore[return-value]


def _shape(file: GGUFFile, module: str) -> tuple[int, ...]:
    tensor = file.tensors.get(f"{module}.weight")
    return () if tensor is None else tensor.shape

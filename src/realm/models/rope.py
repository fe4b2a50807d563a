"""Rotary frequencies from GGUF metadata: plain, linear, llama3 (factors tensor) and YaRN."""

from __future__ import annotations

import math

import numpy as np

from realm.core.errors import ModelFileError
from realm.core.types import Float32Array
from realm.kernels.ops import Rope
from realm.models.metadata import Fields


def read_rope(fields: Fields, head_dim: int, *, interleaved: bool, factors: Float32Array | None) -> Rope:
    """Frequencies [D/2] with every scaling applied.

    Args:
        fields: the model's metadata.
        head_dim: D.
        interleaved: how pairs lie, see `Rope`.
        factors: `rope_freqs.weight` [D/2]; a frequency is divided by its factor (Llama 3).

    Raises:
        ModelFileError: a value out of range, or a scaling type that is not known.
    """
    base = fields.number("rope.freq_base", 1.0, 1e12, default=10_000.0)
    inv_freq = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)  # [D/2]
    if factors is not None:
        if factors.shape != (head_dim // 2,) or not np.isfinite(factors).all() or not (factors > 0).all():
            raise ModelFileError(f"rope_freqs.weight must hold {head_dim // 2} positive numbers")
        inv_freq = inv_freq / factors
    kind = fields.text("rope.scaling.type", "linear")
    # `rope.scale_linear` is the key's old name; 0 means unset in both.
    old_factor = fields.number("rope.scale_linear", 0.0, 1e6, default=0.0)
    factor = fields.number("rope.scaling.factor", 0.0, 1e6, default=old_factor) or 1.0
    mscale = fields.number("rope.scaling.attn_factor", 0.0, 1e3, default=1.0)
    match kind:
        case "none":
            pass
        case "linear":
            inv_freq = inv_freq / factor
        case "yarn":
            inv_freq = _yarn(fields, inv_freq, base, factor)
            default_mscale = 1.0 + 0.1 * math.log(factor) if factor > 1.0 else 1.0
            mscale *= fields.number("rope.scaling.yarn_attn_factor", 0.0, 1e3, default=default_mscale)
        case _:
            raise ModelFileError(
                f"{fields.architecture}.rope.scaling.type {kind[:80]!r} is not supported",
                code="unsupported_model",
                hint="supported: none, linear, yarn, and llama3 through rope_freqs.weight",
            )
    return Rope(tuple(inv_freq.tolist()), interleaved, mscale)


def _yarn(
    fields: Fields, inv_freq: np.ndarray[tuple[int], np.dtype[np.float64]], base: float, factor: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """NTK-by-parts interpolation of YaRN (arXiv 2309.00071, section 3.2)."""
    context = fields.integer("context_length", 1, 2**28)
    original = fields.integer("rope.scaling.original_context_length", 1, 2**28, default=context)
    strength = fields.number("rope.scaling.yarn_ext_factor", 0.0, 1.0, default=1.0)
    fast = fields.number("rope.scaling.yarn_beta_fast", 1e-3, 1e6, default=32.0)
    slow = fields.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6, default=1.0)
    fields.require_neutral("rope.scaling.yarn_log_multiplier", 0.0)
    if base <= 1.0:
        raise fields.error("rope.freq_base", f"must be above 1 for yarn, got {base}")
    head_dim = 2 * len(inv_freq)

    def dim_of(num_rotations: float) -> float:
        return head_dim * math.log(original / (num_rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(dim_of(fast)), 0), min(math.ceil(dim_of(slow)), head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(0.001, high - low), 0.0, 1.0)
    keep = (1.0 - ramp) * strength  # 1: frequency as trained, 0: interpolated
    return inv_freq * (keep + (1.0 - keep) / factor)

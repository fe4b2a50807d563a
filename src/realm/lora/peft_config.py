"""Read a PEFT ``adapter_config.json``: what Realm computes with, and a refusal by name of everything else."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from realm.core.errors import ModelFileError

T = TypeVar("T")

MAX_CONFIG_BYTES = 1 << 20

# Keys that change nothing for inference on a plain LoRA, whatever they hold.
_NO_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
_USED = {
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_rslora",
}
# Initialisations that leave the base weights alone; the others (PiSSA, OLoRA, LoftQ, ...) train against changed ones.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")

_MAX_PATTERNS = 1024
# A pattern comes from a stranger, so only what cannot backtrack for long: no quantified groups, few wildcards.
_SAFE_PATTERN = re.compile(r"(?:[\w|()^$-]|\\\.|\.[*+]?|\\d[*+]?|\[[\w-]+\][*+]?){1,256}")
_MAX_WILDCARDS = 3
_MAX_GROUPS = 2
_MAX_ALTERNATIVES = 16


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The part of the configuration that decides what is computed."""

    rank: int
    alpha: float
    rank_pattern: tuple[tuple[re.Pattern[str], int], ...]
    alpha_pattern: tuple[tuple[re.Pattern[str], float], ...]
    target_modules: tuple[str, ...] | None
    """Names or ends of names; None if given as a pattern or ``all-linear``."""
    use_rslora: bool

    def rank_of(self, module: str) -> int:
        """Rank of `module` (Hugging Face name)."""
        return _lookup(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA (arXiv 2312.03732)."""
        alpha, rank = _lookup(self.alpha_pattern, module, self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Whether the configuration says that `module` is adapted."""
        names = self.target_modules
        return names is None or any(module == name or module.endswith("." + name) for name in names)


def read_peft_config(path: Path) -> PeftConfig:
    """Read and check ``adapter_config.json``.

    Raises:
        ModelFileError: missing, not JSON, a wrong type, or an option that is not supported; the message names it.
    """
    config = _read_json(path)
    _refuse_unsupported(config)
    targets = config.get("target_modules")
    if targets is not None and not isinstance(targets, str) and not _is_strings(targets):
        raise _bad("target_modules", "a list of strings or a string", targets)
    return PeftConfig(
        rank=_integer("r", config.get("r", 8)),
        alpha=_number("lora_alpha", config.get("lora_alpha", 8)),
        rank_pattern=tuple((p, _integer("rank_pattern", v)) for p, v in _patterns(config, "rank_pattern")),
        alpha_pattern=tuple((p, _number("alpha_pattern", v)) for p, v in _patterns(config, "alpha_pattern")),
        target_modules=tuple(targets) if isinstance(targets, list) else None,
        use_rslora=config.get("use_rslora") is True,
    )


def _read_json(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ModelFileError(f"{path.name} cannot be read: {error.strerror}", code="adapter_not_found") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise ModelFileError(f"{path.name} is larger than {MAX_CONFIG_BYTES} bytes", code="invalid_adapter")
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path.name} is not JSON: {str(error)[:100]}", code="invalid_adapter") from None
    if not isinstance(config, dict):
        raise ModelFileError(f"{path.name} must hold an object", code="invalid_adapter")
    return config


def _refuse_unsupported(config: dict[str, object]) -> None:
    if config.get("peft_type") != "LORA":
        raise _unsupported("peft_type", config.get("peft_type"))
    if config.get("bias", "none") != "none":
        raise _unsupported("bias", config["bias"])
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise _unsupported("task_type", config["task_type"])
    init = config.get("init_lora_weights", True)
    if not any(init is plain or (isinstance(init, str) and init == plain) for plain in _PLAIN_INITS):
        raise _unsupported("init_lora_weights", init, "convert it to a plain LoRA when saving (PEFT documents how)")
    if not isinstance(config.get("use_rslora", False), bool):
        raise _bad("use_rslora", "a boolean", config["use_rslora"])
    for key, value in config.items():
        if key not in _NO_EFFECT and key not in _USED and value not in (None, False, [], {}, ""):
            raise _unsupported(key, value)


def _patterns(config: dict[str, object], key: str) -> list[tuple[re.Pattern[str], object]]:
    """A pattern table, compiled to match the end of a module's name as PEFT's `get_pattern_key` does."""
    table = config.get(key) or {}
    if not isinstance(table, dict) or len(table) > _MAX_PATTERNS:
        raise _bad(key, f"an object with at most {_MAX_PATTERNS} entries", table)
    compiled = []
    for name, value in table.items():
        try:
            if not _is_safe(name):
                raise _unsupported(key, name, "use module names or simple patterns")
            compiled.append((re.compile(rf"(.*\.)?({name})$"), value))
        except re.error:
            raise _bad(key, "a table of regular expressions", name) from None
    return compiled


def _is_safe(pattern: str) -> bool:
    counts = pattern.count("*") + pattern.count("+"), pattern.count("("), pattern.count("|")
    limits = _MAX_WILDCARDS, _MAX_GROUPS, _MAX_ALTERNATIVES
    return _SAFE_PATTERN.fullmatch(pattern) is not None and all(
        count <= limit for count, limit in zip(counts, limits, strict=True)
    )


def _lookup(patterns: tuple[tuple[re.Pattern[str], T], ...], module: str, default: T) -> T:
    """The first entry that matches."""
    return next((value for pattern, value in patterns if pattern.match(module)), default)


def _integer(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _bad(key, "an integer", value)
    return value


def _number(key: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= 1e30:
        raise _bad(key, "a finite number", value)
    return float(value)


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _bad(key: str, wanted: str, value: object) -> ModelFileError:
    return ModelFileError(f"adapter_config.json: {key} must be {wanted}, got {_short(value)}", code="invalid_adapter")


def _unsupported(key: str, value: object, hint: str | None = None) -> ModelFileError:
    key = _short(key)[1:-1]
    message = f"adapter_config.json: {key} = {_short(value)} is not supported"
    return ModelFileError(message, code="unsupported_adapter", param=key, hint=hint)


def _short(value: object) -> str:
    return json.dumps(value, default=str)[:100]

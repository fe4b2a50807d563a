"""Elementwise work on a GPU in one kernel, rather than in one for each operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_MAX_SHAPES = 64  # of one function; any more go uncompiled. There are few, and kernels for one shape are the quickest


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose first argument is a tensor, compiled for tensors on CUDA; as it is for others."""

    @cache
    def compiled() -> Callable[P, R]:
        if find_spec("triton") is None:  # it writes the kernels
            return function
        config: Any = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, _MAX_SHAPES)
        return torch.compile(function, dynamic=False)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        return (compiled() if first.is_cuda else function)(*args, **kwargs)

    return call

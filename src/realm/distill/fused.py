"""Less to launch on a GPU: elementwise work in one kernel, and many kernels as one graph."""

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
        config.suppress_errors = True  # without a C compiler it goes on uncompiled, and says so
        return torch.compile(function, dynamic=False)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        return (compiled() if first.is_cuda else function)(*args, **kwargs)

    return call


class Replayed:
    """A function without arguments that is captured as a CUDA graph, and replayed from then on; as it is elsewhere.

    It works on tensors that stay where they are, and what it returns is overwritten by the next call.

    Args:
        function: What to do; it leaves all shapes as they were.
        device: Where.
        num_before: Calls that are made without a graph, so that everything is compiled and allocated.
    """

    def __init__(self, function: Callable[[], R], device: torch.device, num_before: int = 1) -> None:
        self._function = function
        self._is_captured = device.type == "cuda"
        self._num_before = num_before
        self._graph: Any = None
        self._result: Any = None

    def __call__(self) -> Any:
        """One call."""
        if not self._is_captured:
            return self._function()
        if self._num_before > 0:
            self._num_before -= 1
            return self._on_side_stream()
        if self._graph is None:
            graph: Any = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=_side_stream()):
                self._result = self._function()
            self._graph = graph
        self._graph.replay()
        return self._result

    def _on_side_stream(self) -> Any:
        side = _side_stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            result = self._function()
        torch.cuda.current_stream().wait_stream(side)
        return result


@cache
def _side_stream() -> Any:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]

"""FunctionDispatcher: many callers' prompts in, one batched forward pass, each result back to its caller."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Unpack

from realm.runtime.generation import Completion
from realm.runtime.manager import RuntimeManager
from realm.runtime.model import Options, Prompt


class FunctionDispatcher:
    """Hands calls to a runtime's engine, which batches whatever is open, and results back to whoever asked.

    dispatcher = FunctionDispatcher(runtime).with_batching(max_batch_size=32, max_seq_len=2048)
    futures = [dispatcher.submit(prompt) for prompt in prompts]
    """

    def __init__(self, runtime: RuntimeManager) -> None:
        self._runtime = runtime

    def with_batching(self, max_batch_size: int = 32, max_seq_len: int = 2048) -> FunctionDispatcher:
        """Set how many requests share a step, and how long one may be. Before the runtime's models are loaded.

        Raises:
            InvalidRequest: a model is loaded already with other limits, or a value is out of range.
        """
        self._runtime.set_limits(max_batch_size=max_batch_size, max_seq_len=max_seq_len)
        return self

    def submit(self, prompt: Prompt, *, model: str | None = None, **options: Unpack[Options]) -> Future[Completion]:
        """Start one completion; the future is its caller's own."""
        return self._runtime.submit(prompt, model=model, **options)

    def dispatch(
        self, prompts: Sequence[Prompt], *, model: str | None = None, **options: Unpack[Options]
    ) -> list[Completion]:
        """Complete all prompts together; results in the prompts' order.

        Raises:
            RealmError: one of them failed.
        """
        futures = [self.submit(prompt, model=model, **options) for prompt in prompts]
        return [future.result() for future in futures]

"""Draws the step's tokens: gathers each judged row's parameters and calls one sampling kernel for all of them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from realm.core.types import MAX_SEED, Float32Array, Int32Array, TokenLogprobs
from realm.engine.sequence import Sequence
from realm.kernels.ops import Executor
from realm.kernels.sampling_reference import SampleInputs, SampleOutputs, sample_rows

_NO_IDS = np.zeros(0, np.int32)
_NO_VALUES = np.zeros(0, np.float32)


class SamplingKernels(Protocol):
    """The sampling of one device."""

    def sample_rows(self, logits: Float32Array, inputs: SampleInputs) -> SampleOutputs:
        """One token for each row of `logits` [S, V], as `kernels.sampling_reference` defines it."""

    def argmax_rows(self, logits: Float32Array) -> Int32Array:
        """Largest logit of each row [S], the lowest id among equals; -1 where it isn't finite."""


@runtime_checkable
class SamplingExecutor(Protocol):
    """An executor with sampling kernels of its own."""

    sampler: SamplingKernels


class ReferenceSampling:
    """Sampling for executors that have none of their own."""

    def sample_rows(self, logits: Float32Array, inputs: SampleInputs) -> SampleOutputs:
        """See `SamplingKernels`."""
        return sample_rows(logits, inputs)

    def argmax_rows(self, logits: Float32Array) -> Int32Array:
        """See `SamplingKernels`."""
        ids = logits.argmax(axis=1)
        finite = np.isfinite(logits[np.arange(len(ids)), ids])
        return np.where(finite, ids, -1).astype(np.int32)


def sampling_of(executor: Executor) -> SamplingKernels:
    """The executor's own sampling kernels, or the reference."""
    return executor.sampler if isinstance(executor, SamplingExecutor) else ReferenceSampling()


class Sampler:
    """Parameters of running requests by table row, so that a step gathers them in a few calls.

    Args:
        max_batch_size: Rows of the tables.
        kernels: What draws.
    """

    __slots__ = ("_floats", "_ints", "_kernels", "_seeds")

    def __init__(self, max_batch_size: int, kernels: SamplingKernels) -> None:
        self._kernels = kernels
        self._floats = np.zeros((6, max_batch_size), np.float32)
        self._ints = np.zeros((2, max_batch_size), np.int32)
        self._seeds = np.zeros(max_batch_size, np.int64)

    def load(self, seq: Sequence) -> None:
        """Start using `seq.row` for a newly admitted request."""
        params = seq.request.params
        self._floats[:, seq.row] = (
            params.temperature,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        )
        self._ints[:, seq.row] = (min(params.top_k, 2**31 - 1), seq.num_logprobs)
        self._seeds[seq.row] = max(-MAX_SEED, params.seed)

    def sample(self, judged: list[Sequence], logits: Float32Array) -> tuple[list[int], SampleOutputs | None]:
        """One token for each row of `logits` [S, V]: rows of `judged`, each with 1 + its drafts rows, in order.

        Returns the tokens (-1 where the logits weren't finite) and, unless all rows are plainly greedy, the outputs
        with their log-probabilities.
        """
        if all([seq.greedy for seq in judged]):  # noqa: C419  (a list is quicker here)
            return self._kernels.argmax_rows(logits).tolist(), None
        outputs = self._kernels.sample_rows(logits, self._gather(judged))
        return outputs.token_ids.tolist(), outputs

    def _gather(self, judged: list[Sequence]) -> SampleInputs:
        rows: list[int] = []
        positions: list[int] = []
        for seq in judged:
            position = len(seq.tokens) - seq.num_prompt
            rows.append(seq.row)
            positions.append(position)
            if seq.drafts:
                rows.extend([seq.row] * len(seq.drafts))
                positions.extend(range(position + 1, position + 1 + len(seq.drafts)))
        floats = self._floats[:, rows]
        ints = self._ints[:, rows]
        bias_starts, bias_ids, bias_values = _gather_bias(judged, len(rows))
        history_starts, history_ids, history_counts = _gather_history(judged, len(rows))
        return SampleInputs(
            temperature=floats[0],
            top_k=ints[0],
            top_p=floats[1],
            min_p=floats[2],
            repetition_penalty=floats[3],
            presence_penalty=floats[4],
            frequency_penalty=floats[5],
            seeds=self._seeds[rows],
            positions=np.array(positions, np.int64),
            num_logprobs=ints[1],
            bias_starts=bias_starts,
            bias_ids=bias_ids,
            bias_values=bias_values,
            history_starts=history_starts,
            history_ids=history_ids,
            history_counts=history_counts,
        )


def token_logprobs(outputs: SampleOutputs, row: int, num_top: int) -> TokenLogprobs:
    """What a client sees of row `row`: the drawn token's log-probability and those of the `num_top` likeliest."""
    top_ids = outputs.top_ids[row, :num_top].tolist()
    top_logprobs = outputs.top_logprobs[row, :num_top].tolist()
    return TokenLogprobs(
        token_id=int(outputs.token_ids[row]),
        logprob=float(outputs.logprobs[row]),
        top=tuple(zip(top_ids, top_logprobs, strict=True)),
    )


def _gather_bias(judged: list[Sequence], num_rows: int) -> tuple[Int32Array, Int32Array, Float32Array]:
    if not any([seq.request.params.logit_bias for seq in judged]):  # noqa: C419
        return np.zeros(num_rows + 1, np.int32), _NO_IDS, _NO_VALUES
    sizes: list[int] = []
    ids: list[int] = []
    values: list[float] = []
    for seq in judged:
        bias = seq.request.params.logit_bias
        for _ in range(1 + len(seq.drafts)):
            sizes.append(len(bias))
            ids.extend(bias.keys())
            values.extend(bias.values())
    return _starts(sizes), np.array(ids, np.int32), np.array(values, np.float32)


def _gather_history(judged: list[Sequence], num_rows: int) -> tuple[Int32Array, Int32Array, Int32Array]:
    if not any([seq.history is not None for seq in judged]):  # noqa: C419
        return np.zeros(num_rows + 1, np.int32), _NO_IDS, _NO_IDS
    sizes: list[int] = []
    ids: list[Int32Array] = []
    counts: list[Int32Array] = []
    for seq in judged:
        if seq.history is None:
            sizes.extend([0] * (1 + len(seq.drafts)))
            continue
        for row_ids, row_counts in seq.history.with_drafts(seq.drafts):
            sizes.append(len(row_ids))
            ids.append(row_ids)
            counts.append(row_counts)
    return _starts(sizes), np.concatenate(ids), np.concatenate(counts)


def _starts(sizes: list[int]) -> Int32Array:
    starts = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(sizes, out=starts[1:])
    return starts

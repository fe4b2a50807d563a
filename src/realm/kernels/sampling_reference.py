"""Sampling, row by row in numpy: the definition that the native kernel is tested against.

For each judged row, in this order:

1. `logit_bias`: added to the logits of its tokens.
2. Penalties, over the row's history (one entry per distinct token, with its count in the output, 0 if prompt only):
   repetition: l = l / r where l > 0, else l * r (CTRL, arXiv 1909.05858); then, where the count is above 0,
   presence: l = l - p; frequency: l = l - f * count. All float32.
3. Greedy rows (temperature 0 or top_k 1): the largest logit, the lowest id among equals. Done.
4. Weights w = exp((l - max) / temperature).
5. top_k: the k largest, equals by lower id. top_p: in order of falling weight (equals by lower id), up to and with the
   first whose running sum reaches top_p of the total that is left. min_p: w >= min_p, the largest weight being 1.
6. Draw: the first id, in ascending order of the ids kept, whose running sum of weights exceeds u times their total.
   u in [0, 1) has 53 bits from Philox 4x32-10 (Salmon et al., SC'11) with key = seed, counter = output position.

Log-probabilities are the model's own: log-softmax of the untouched logits. Sums are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realm.core.types import MAX_LOGPROBS, Float32Array, Int32Array

Int64Array = NDArray[np.int64]

_MASK32 = 0xFFFFFFFF


@dataclass(slots=True)
class SampleInputs:
    """Parameters of the judged rows. Ragged lists are (starts, values): row s owns starts[s] : starts[s + 1]."""

    temperature: Float32Array  # [S], 0: greedy
    top_k: Int32Array  # [S], 0: off
    top_p: Float32Array  # [S]
    min_p: Float32Array  # [S]
    repetition_penalty: Float32Array  # [S], 1: off
    presence_penalty: Float32Array  # [S]
    frequency_penalty: Float32Array  # [S]
    seeds: Int64Array  # [S], its two's complement bits are the key
    positions: Int64Array  # [S], output position of the token to draw
    num_logprobs: Int32Array  # [S], -1: none, n: the drawn token's and those of the n likeliest
    bias_starts: Int32Array  # [S + 1]
    bias_ids: Int32Array
    bias_values: Float32Array
    history_starts: Int32Array  # [S + 1]
    history_ids: Int32Array
    history_counts: Int32Array  # times in the output; 0: in the prompt only


@dataclass(slots=True)
class SampleOutputs:
    """What was drawn. Log-probability fields hold rubbish where none were asked for."""

    token_ids: Int32Array  # [S]; -1: a NaN, or no finite maximum
    logprobs: Float32Array  # [S]
    top_ids: Int32Array  # [S, MAX_LOGPROBS]
    top_logprobs: Float32Array  # [S, MAX_LOGPROBS]

    @classmethod
    def empty(cls, num_rows: int) -> SampleOutputs:
        """Room for `num_rows` rows."""
        return cls(
            np.empty(num_rows, np.int32),
            np.empty(num_rows, np.float32),
            np.empty((num_rows, MAX_LOGPROBS), np.int32),
            np.empty((num_rows, MAX_LOGPROBS), np.float32),
        )


def sample_rows(logits: Float32Array, inputs: SampleInputs) -> SampleOutputs:
    """Draw one token for each row of `logits` [S, V], which is left as it is."""
    outputs = SampleOutputs.empty(len(logits))
    for s, row in enumerate(logits):
        token = _draw(row, inputs, s) if np.isfinite(row.max()) else -1  # NaN spreads through max
        outputs.token_ids[s] = token
        if token >= 0 and inputs.num_logprobs[s] >= 0:
            _log_probabilities(row, token, int(inputs.num_logprobs[s]), outputs, s)
    return outputs


def adjusted_logits(row: Float32Array, inputs: SampleInputs, s: int) -> Float32Array:
    """Bias and penalties of row `s` applied to a copy of its logits [V]."""
    row = row.copy()
    bias = slice(inputs.bias_starts[s], inputs.bias_starts[s + 1])
    row[inputs.bias_ids[bias]] += inputs.bias_values[bias]
    history = slice(inputs.history_starts[s], inputs.history_starts[s + 1])
    ids, counts = inputs.history_ids[history], inputs.history_counts[history]
    if len(ids):
        value = row[ids]
        penalty = inputs.repetition_penalty[s]
        value = np.where(value > 0, value / penalty, value * penalty)
        value = np.where(counts > 0, value - inputs.presence_penalty[s], value)
        row[ids] = value - inputs.frequency_penalty[s] * counts.astype(np.float32)
    return row


def kept_weights(row: Float32Array, temperature: float, top_k: int, top_p: float, min_p: float) -> NDArray[np.float64]:
    """Unnormalised weights [V] of adjusted logits, 0 for what a rule removed. `temperature` is above 0."""
    with np.errstate(over="ignore"):  # a tiny temperature: -inf is as good as its limit
        scaled = (row - row.max()) / np.float32(temperature)
    weights: NDArray[np.float64] = np.exp(scaled.astype(np.float64))
    order = np.argsort(-row, kind="stable")  # falling, equals by lower id
    if 0 < top_k < len(row):
        weights[order[top_k:]] = 0.0
    if top_p < 1.0:
        running = np.cumsum(weights[order])
        reached = int(np.argmax(running >= np.float32(top_p) * running[-1]))
        weights[order[reached + 1 :]] = 0.0
    if min_p > 0.0:
        weights[weights < np.float32(min_p)] = 0.0
    return weights


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) that belongs to one output position of one request."""
    a, b, _, _ = philox((position & _MASK32, position >> 32 & _MASK32, 0, 0), (seed & _MASK32, seed >> 32 & _MASK32))
    return ((a >> 5) * 67108864 + (b >> 6)) / 9007199254740992.0  # 27 + 26 bits


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox 4x32-10: ten rounds over a 128-bit counter."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (second >> 32) ^ b ^ k0, second & _MASK32, (first >> 32) ^ d ^ k1, first & _MASK32
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return a, b, c, d


def _draw(row: Float32Array, inputs: SampleInputs, s: int) -> int:
    row = adjusted_logits(row, inputs, s)
    if not np.isfinite(row.max()):
        return -1
    temperature, top_k = float(inputs.temperature[s]), int(inputs.top_k[s])
    if temperature == 0.0 or top_k == 1:
        return int(np.argmax(row))
    weights = kept_weights(row, temperature, top_k, float(inputs.top_p[s]), float(inputs.min_p[s]))
    kept = np.flatnonzero(weights)
    running = np.cumsum(weights[kept])
    target = uniform(int(inputs.seeds[s]), int(inputs.positions[s])) * running[-1]
    drawn = np.searchsorted(running, target, side="right")
    return int(kept[min(int(drawn), len(kept) - 1)])


def _log_probabilities(row: Float32Array, token: int, num_top: int, outputs: SampleOutputs, s: int) -> None:
    exact = row.astype(np.float64)
    exact -= exact.max()
    log_probabilities = (exact - np.log(np.exp(exact).sum())).astype(np.float32)
    outputs.logprobs[s] = log_probabilities[token]
    likeliest = np.argsort(-row, kind="stable")[:num_top]
    outputs.top_ids[s, : len(likeliest)] = likeliest
    outputs.top_logprobs[s, : len(likeliest)] = log_probabilities[likeliest]

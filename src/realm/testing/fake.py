"""An executor without weights: cheap enough for thousands of random schedules, strict enough to catch a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from realm.core.types import Batch, Float32Array, Int32Array
from realm.kernels.ops import LoRALayer

_UNWRITTEN = -1
_MASK = (1 << 64) - 1


class FakeExecutor:
    """A model whose logits are a hash of everything a real model's would depend on.

    Each KV slot holds what a transformer's would stand for: a digest of its token, its position, its adapter and of all
    slots that the row could see through its block table when it was written. Logits hash the slots seen by the judged
    row. So a stale block, a table that points at someone else's tokens, a skipped position or KV shared across adapters
    changes the output, and where it can be told at once it is an AssertionError:

    - a row reads a slot that was never written, or was written for another position;
    - two rows write one slot, or one request writes a slot that another reads in the same step;
    - a malformed batch (dtype, order, block ids out of range, empty requests).

    Logits live in one buffer that is filled with NaN at the start of the next step, as `Executor.step` allows.

    Args:
        vocab_size: V.
        num_kv_blocks: blocks in the pool.
        block_tokens: tokens in one block.
        adapters: what each resident slot holds, as (name or content hash); the slot number stands for itself if absent.
        on_step: called with each batch before it runs; may raise, to play a failing device.
    """

    def __init__(
        self,
        vocab_size: int = 64,
        num_kv_blocks: int = 64,
        block_tokens: int = 16,
        *,
        adapters: dict[int, str] | None = None,
        on_step: Callable[[Batch], None] | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.num_kv_blocks = num_kv_blocks
        self.block_tokens = block_tokens
        self.weights_bytes = 0
        self.kv_bytes = num_kv_blocks * block_tokens * 16
        self.adapters = {} if adapters is None else adapters  # an empty one may be filled later
        self.on_step = on_step
        self.num_steps = 0
        self.num_rows = 0
        self._digests = np.zeros(num_kv_blocks * block_tokens, np.uint64)
        self._positions = np.full(num_kv_blocks * block_tokens, _UNWRITTEN, np.int64)
        self._logits = np.empty((0, vocab_size), np.float32)

    def adapter_bytes(self, layers: Mapping[str, LoRALayer]) -> int:
        """As many as its matrices have."""
        return sum(layer.a.nbytes + layer.b.nbytes for layer in layers.values())

    def pack_adapter(self, layers: Mapping[str, LoRALayer]) -> str:
        """A name that stands for the values."""
        values = [(name, layer.a.tobytes(), layer.b.tobytes(), layer.scale) for name, layer in sorted(layers.items())]
        return repr(values)

    def set_adapter(self, slot: int, packed: str | None) -> None:
        """Fill or empty a slot."""
        if packed is None:
            del self.adapters[slot]
        else:
            self.adapters[slot] = packed

    def step(self, batch: Batch) -> Float32Array:
        """Logits [S, V] of the judged rows, uniform in [-8, 8).

        Raises:
            AssertionError: a batch that no engine may build.
        """
        if self.on_step is not None:
            self.on_step(batch)
        self._logits.fill(np.nan)
        _check_batch(batch, self.vocab_size)
        slots = [self._slots(batch, r) for r in range(len(batch.context_lens))]
        self._check_sharing(batch, slots)
        rows = np.concatenate([self._run_request(batch, r, slots[r]) for r in range(len(slots))])
        self.num_steps += 1
        self.num_rows += len(batch.token_ids)
        self._logits = self._judge(rows[batch.logit_rows])
        return self._logits

    def forget(self, block_id: int) -> None:
        """Mark a block as never written, as if its memory were gone: reading it afterwards is an error."""
        start = block_id * self.block_tokens
        self._positions[start : start + self.block_tokens] = _UNWRITTEN

    def _slots(self, batch: Batch, r: int) -> NDArray[np.int64]:
        """KV slots of positions 0 .. context + rows of request `r`."""
        end = int(batch.context_lens[r] + batch.query_starts[r + 1] - batch.query_starts[r])
        num_blocks = -(-end // self.block_tokens)
        assert num_blocks <= batch.block_tables.shape[1], "block table is too short"
        blocks = batch.block_tables[r, :num_blocks].astype(np.int64)
        assert ((blocks >= 0) & (blocks < self.num_kv_blocks)).all(), f"block id out of range: {blocks}"
        assert len(set(blocks.tolist())) == num_blocks, f"a block occurs twice in one table: {blocks}"
        return (blocks[:, None] * self.block_tokens + np.arange(self.block_tokens)).reshape(-1)[:end]

    def _check_sharing(self, batch: Batch, slots: list[NDArray[np.int64]]) -> None:
        written: set[int] = set()
        for mine, context in zip(slots, batch.context_lens.tolist(), strict=True):
            new = mine[context:].tolist()
            assert written.isdisjoint(new), "two requests write one KV slot"
            written.update(new)
        for mine, context in zip(slots, batch.context_lens.tolist(), strict=True):
            assert written.isdisjoint(mine[:context].tolist()), "a request writes a KV slot that is in a context"

    def _run_request(self, batch: Batch, r: int, slots: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Write the new slots of request `r`; the digest of what each of its rows saw."""
        context = int(batch.context_lens[r])
        read = slots[:context]
        stale = np.flatnonzero(self._positions[read] != np.arange(context))
        assert not len(stale), f"request {r} reads KV of position {stale[0]} that was not written for it"
        seen = int(_mix(self._digests[read]).sum(dtype=np.uint64))
        adapter_slot = int(batch.adapter_slots[r])
        adapter = 0 if adapter_slot < 0 else _text_hash(self.adapters.get(adapter_slot, str(adapter_slot)))
        tokens = batch.token_ids[batch.query_starts[r] : batch.query_starts[r + 1]]
        digests = np.empty(len(tokens), np.uint64)
        for i, token in enumerate(tokens.tolist()):
            digest = _mix_int(_mix_int(_mix_int(seen + adapter) ^ (context + i)) ^ token)
            digests[i] = digest
            seen = (seen + _mix_int(digest)) & _MASK
        self._digests[slots[context:]] = digests
        self._positions[slots[context:]] = np.arange(context, len(slots))
        return digests

    def _judge(self, digests: NDArray[np.uint64]) -> Float32Array:
        """[S] digests to [S, V] logits."""
        vocabulary = _mix(np.arange(1, self.vocab_size + 1, dtype=np.uint64))
        bits = _mix(digests[:, None] ^ vocabulary[None, :]) >> np.uint64(40)  # 24 bits: exact in float32
        return bits.astype(np.float32) * np.float32(2.0**-20) - np.float32(8.0)


def _check_batch(batch: Batch, vocab_size: int) -> None:
    num_tokens, num_requests = len(batch.token_ids), len(batch.context_lens)
    arrays: tuple[Int32Array, ...] = (
        batch.token_ids,
        batch.query_starts,
        batch.context_lens,
        batch.block_tables,
        batch.logit_rows,
        batch.adapter_slots,
    )
    assert all(a.dtype == np.int32 for a in arrays), "batch arrays must be int32"
    assert num_tokens > 0, "empty batch"
    assert ((batch.token_ids >= 0) & (batch.token_ids < vocab_size)).all(), "token id out of range"
    assert batch.query_starts.shape == (num_requests + 1,), "query_starts must be [R + 1]"
    assert batch.query_starts[0] == 0, "query_starts must begin with 0"
    assert batch.query_starts[-1] == num_tokens, "query_starts must end with T"
    assert (np.diff(batch.query_starts) > 0).all(), "a request without rows"
    assert (batch.context_lens >= 0).all(), "negative context length"
    assert batch.block_tables.ndim == 2, "block_tables must be [R, M]"
    assert batch.block_tables.shape[0] == num_requests, "block_tables must have R rows"
    assert batch.adapter_slots.shape == (num_requests,), "adapter_slots must be [R]"
    assert (np.diff(batch.logit_rows) > 0).all(), "logit_rows must ascend"
    assert ((batch.logit_rows >= 0) & (batch.logit_rows < num_tokens)).all(), "logit row out of range"


def _mix_int(x: int) -> int:
    """The finaliser of splitmix64."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`_mix_int` of each element."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _text_hash(text: str) -> int:
    value = 0
    for byte in text.encode():
        value = _mix_int(value ^ byte)
    return value

"""Which tokens the next step computes.

There is no prefill or decode phase: each request's computed count catches up with its known count, out of one token
budget a step. Chunked prefill, prefix hits, recomputing after preemption and draft verification are this one rule.
Source: vLLM's V1 scheduler; different here: prompts share the budget, admission reserves a prompt's blocks, and a
request that waits for an adapter slot can't be passed without bound.
"""

from __future__ import annotations

from bisect import insort
from operator import attrgetter

from realm.cache.block_pool import BlockPool, chain_hash
from realm.core.errors import RealmError
from realm.core.types import AdapterRef
from realm.engine.adapters import AdapterSlots
from realm.engine.policy import prefill_budget, share_prefill
from realm.engine.sequence import Sequence
from realm.engine.speculation import Drafter

_by_arrival = attrgetter("arrival")


class Scheduler:
    """Owns the waiting and running requests, their blocks, adapter slots and table rows.

    `waiting` and `running` are in order of arrival. A victim of preemption is always the latest to arrive, so the
    oldest request always gets on and there is no livelock.
    """

    __slots__ = (
        "_adapters",
        "_drafter",
        "_free_rows",
        "_max_batch_size",
        "_max_batch_tokens",
        "admitted",
        "failed",
        "num_preemptions",
        "pool",
        "running",
        "waiting",
    )

    def __init__(
        self,
        pool: BlockPool,
        max_batch_size: int,
        max_batch_tokens: int,
        adapters: AdapterSlots,
        drafter: Drafter | None,
    ) -> None:
        self.pool = pool
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens
        self._adapters = adapters
        self._drafter = drafter
        self._free_rows = list(range(max_batch_size - 1, -1, -1))
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.admitted: list[Sequence] = []
        """Requests that the last `schedule` moved from waiting to running."""
        self.failed: list[tuple[Sequence, RealmError]] = []
        """Requests that the last `schedule` could not admit because their adapter can't be loaded."""
        self.num_preemptions = 0

    def add(self, seq: Sequence) -> None:
        """Queue a request that has never run."""
        self.waiting.append(seq)

    def remove(self, seq: Sequence) -> None:
        """Forget a request, wherever it is, and give back all it holds."""
        if seq.row >= 0:
            self.running.remove(seq)
            self._give_back(seq)
        else:
            self.waiting.remove(seq)

    def schedule(self) -> list[Sequence]:
        """Choose the next step's work: sequences with `num_scheduled` tokens each, the last of them drafts.

        Every running request that only lacks its last token gets it. Prompts share what `policy` allows. Drafts get
        what is left.
        """
        self.admitted.clear()
        self.failed.clear()
        num_preemptions = self.num_preemptions
        decoding, prefilling = self._continue_running()
        if self.waiting and self.num_preemptions == num_preemptions:
            prefilling = self._admit(prefilling)
        plan = decoding
        spare = self._max_batch_tokens - len(decoding)
        if prefilling:
            remaining = [len(seq.tokens) - seq.num_computed for seq in prefilling]
            budget = prefill_budget(self._max_batch_tokens, len(decoding))
            plan = decoding.copy()
            for seq, share in zip(prefilling, share_prefill(remaining, budget), strict=True):
                if share:
                    seq.num_scheduled = share
                    spare -= share
                    plan.append(seq)
        if self._drafter is not None and spare and decoding:
            self._add_drafts(self._drafter, decoding, spare)
        return plan

    def truncate(self, seq: Sequence) -> None:
        """Give back blocks beyond the known tokens, which only rejected drafts have used."""
        num_blocks = self.pool.blocks_for(len(seq.tokens))
        if num_blocks < len(seq.blocks):
            self.pool.release(seq.blocks[num_blocks:])
            del seq.blocks[num_blocks:]
            seq.num_tabled = min(seq.num_tabled, num_blocks)

    def publish(self, seq: Sequence) -> None:
        """Name the full blocks whose tokens are all computed (and therefore accepted)."""
        for i in range(seq.num_published, seq.num_computed // self.pool.block_tokens):
            self.pool.publish(seq.blocks[i], self._hash_of(seq, i))
            seq.num_published += 1

    def check_integrity(self) -> None:
        """Assert that requests, rows and blocks agree."""
        for queue in (self.waiting, self.running):
            arrivals = [seq.arrival for seq in queue]
            assert arrivals == sorted(set(arrivals)), "a queue is out of order"
        rows = [seq.row for seq in self.running]
        assert sorted(rows + self._free_rows) == list(range(self._max_batch_size)), "a table row is lost or shared"
        for seq in self.waiting:
            assert seq.row == -1
            assert not seq.blocks
            assert seq.adapter_slot == -1
            assert seq.num_computed == 0
        for seq in self.running:
            assert seq.num_computed < len(seq.tokens)
            assert (seq.adapter_slot >= 0) == (seq.adapter is not None)
            assert len(seq.blocks) >= self.pool.blocks_for(seq.num_computed), "computed tokens without a block"
            assert len(seq.blocks) <= self.pool.blocks_for(len(seq.tokens)), "blocks of rejected drafts are kept"
        self.pool.check_integrity([seq.blocks for seq in self.running])

    def _continue_running(self) -> tuple[list[Sequence], list[Sequence]]:
        """Split running requests into those that lack one token (given it here) and those still computing a prompt."""
        decoding: list[Sequence] = []
        prefilling: list[Sequence] = []
        block_tokens = self.pool.block_tokens
        running = self.running
        i = 0
        while i < len(running):  # preemption shortens it from the end
            seq = running[i]
            num_tokens = len(seq.tokens)
            if num_tokens - seq.num_computed > 1:
                prefilling.append(seq)  # its blocks were reserved when it was admitted
            elif num_tokens <= len(seq.blocks) * block_tokens or self._grow(seq):
                seq.num_scheduled = 1
                decoding.append(seq)
            i += 1
        return decoding, prefilling

    def _grow(self, seq: Sequence) -> bool:
        """Give `seq` one more block, preempting later requests if there is none; False if it had to give way itself."""
        while (blocks := self.pool.allocate(1)) is None:
            assert len(self.running) > 1, "a request was accepted that alone overflows the KV cache"
            victim = self.running[-1]
            self._preempt(victim)
            if victim is seq:
                return False
        seq.blocks += blocks
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Send a running request back to wait; its KV is computed again later (or found in the prefix cache)."""
        self.running.remove(seq)
        self._give_back(seq)
        seq.num_computed = seq.num_published = seq.num_tabled = 0
        insort(self.waiting, seq, key=_by_arrival)
        self.num_preemptions += 1

    def _give_back(self, seq: Sequence) -> None:
        self.pool.release(seq.blocks)
        seq.blocks = []
        self._release_adapter(seq)
        self._free_rows.append(seq.row)
        seq.row = -1

    def _admit(self, prefilling: list[Sequence]) -> list[Sequence]:
        """Move waiting requests to running, oldest first, while the batch has places.

        A request that lacks KV blocks stops the admission: what comes free is for it. One whose next block is being
        computed for another is passed, to share it a step later. One that lacks an adapter slot is passed, but after
        as many passes as the batch has places, no other adapter is let in until it has its slot.
        """
        in_flight = {self._next_hash(seq, seq.num_published) for seq in prefilling}
        blocked: list[Sequence] = []
        refused: set[AdapterRef] = set()
        overdue = False
        for seq in self.waiting.copy():
            if not self._free_rows:
                break
            ref = seq.adapter
            if ref is not None and (overdue or ref in refused or not self._acquire_adapter(seq, ref)):
                refused.add(ref)
                blocked.append(seq)
                overdue = overdue or seq.num_bypassed >= self._max_batch_size
                continue
            hits = self._find_prefix(seq)
            next_hash = self._next_hash(seq, len(hits))
            if next_hash is not None and next_hash in in_flight:
                self._release_adapter(seq)
                continue
            if not self._reserve(seq, hits):
                self._release_adapter(seq)
                break
            if ref is not None:
                for other in blocked:
                    other.num_bypassed += 1
            in_flight.add(next_hash)
            self.waiting.remove(seq)
            seq.row = self._free_rows.pop()
            insort(self.running, seq, key=_by_arrival)
            self.admitted.append(seq)
        return sorted(prefilling + self.admitted, key=_by_arrival) if self.admitted else prefilling

    def _acquire_adapter(self, seq: Sequence, ref: AdapterRef) -> bool:
        """Pin the adapter for `seq`. If it can't be loaded, `seq` goes to `failed`; the engine ends it."""
        try:
            slot = self._adapters.acquire(ref)
        except RealmError as error:
            self.failed.append((seq, error))
            return False
        if slot is None:
            return False
        seq.adapter_slot = slot
        return True

    def _release_adapter(self, seq: Sequence) -> None:
        if seq.adapter_slot >= 0:
            self._adapters.release(seq.adapter_slot)
            seq.adapter_slot = -1

    def _find_prefix(self, seq: Sequence) -> list[int]:
        """Blocks of the prefix cache that hold the first tokens of `seq`; at least one token is left to compute."""
        hits: list[int] = []
        if self.pool.prefix_cache:
            for i in range((len(seq.tokens) - 1) // self.pool.block_tokens):
                block = self.pool.find(self._hash_of(seq, i))
                if block is None:
                    break
                hits.append(block)
        return hits

    def _next_hash(self, seq: Sequence, i: int) -> bytes | None:
        """Name of block `i` if all its tokens are known and others could share it."""
        if self.pool.prefix_cache and (i + 1) * self.pool.block_tokens <= len(seq.tokens):
            return self._hash_of(seq, i)
        return None

    def _reserve(self, seq: Sequence, hits: list[int]) -> bool:
        """Share `hits` and allocate blocks for the rest of the known tokens; False if there aren't enough.

        One block for each running request stays free, or the newcomer would only be preempted at once.
        """
        pool = self.pool
        pool.share(hits)
        num_new = pool.blocks_for(len(seq.tokens)) - len(hits)
        if num_new + len(self.running) > pool.num_available:
            pool.release(hits)
            return False
        blocks = pool.allocate(num_new)
        assert blocks is not None
        seq.blocks = hits + blocks
        seq.num_computed = len(hits) * pool.block_tokens
        seq.num_published = len(hits)
        if seq.num_cached is None:
            seq.num_cached = seq.num_computed
        return True

    def _add_drafts(self, drafter: Drafter, decoding: list[Sequence], spare: int) -> None:
        """Let the proposer extend requests that decode. Drafts never push anyone out."""
        for i, drafts in drafter.propose(decoding, self._max_batch_tokens - spare, spare).items():
            seq = decoding[i]
            seq.drafts = self._fit(seq, drafts)
            seq.num_scheduled = 1 + len(seq.drafts)

    def _fit(self, seq: Sequence, drafts: list[int]) -> list[int]:
        """The part of `drafts` that has KV slots, with blocks allocated for them if there are any."""
        num_blocks = self.pool.blocks_for(len(seq.tokens) + len(drafts)) - len(seq.blocks)
        if num_blocks > 0:
            blocks = self.pool.allocate(num_blocks)
            if blocks is None:
                return drafts[: len(seq.blocks) * self.pool.block_tokens - len(seq.tokens)]
            seq.blocks += blocks
        return drafts

    def _hash_of(self, seq: Sequence, i: int) -> bytes:
        """Name of block `i`, whose tokens are known; names are made once, in order."""
        hashes = seq.block_hashes
        if i == len(hashes):
            size = self.pool.block_tokens
            parent = hashes[-1] if hashes else seq.chain_root
            hashes.append(chain_hash(parent, seq.tokens[i * size : (i + 1) * size]))
        return hashes[i]

"""A request while the engine works on it."""

from __future__ import annotations

from realm.core.types import AdapterRef, Request, Usage
from realm.engine.history import History


class Sequence:
    """Mutable state of one accepted request. The scheduler and the engine write it; proposers only read.

    `tokens` (prompt and output) are *known*; the first `num_computed` of them have their KV in `blocks`. A step
    computes `num_scheduled` further tokens: the known ones that follow, then `drafts`.
    """

    __slots__ = (
        "adapter_slot",
        "arrival",
        "block_hashes",
        "blocks",
        "chain_root",
        "draft_source",
        "draft_state",
        "drafts",
        "greedy",
        "history",
        "max_total_tokens",
        "num_accepted",
        "num_bypassed",
        "num_cached",
        "num_computed",
        "num_drafted",
        "num_generated",
        "num_logprobs",
        "num_prompt",
        "num_published",
        "num_scheduled",
        "num_tabled",
        "request",
        "request_id",
        "row",
        "stop_ids",
        "tokens",
    )

    def __init__(
        self, request: Request, arrival: int, max_total_tokens: int, stop_ids: frozenset[int], chain_root: bytes
    ) -> None:
        params = request.params
        self.request = request
        self.request_id = request.request_id
        self.arrival = arrival
        """Place in the order of arrival; lower is older. Kept through preemption."""
        self.tokens: list[int] = list(request.prompt_token_ids)
        self.num_prompt = len(self.tokens)
        self.max_total_tokens = max_total_tokens
        """Prompt and output together end here."""
        self.stop_ids = stop_ids
        self.num_computed = 0
        self.num_scheduled = 0
        self.drafts: list[int] = []
        self.blocks: list[int] = []
        self.chain_root = chain_root
        self.block_hashes: list[bytes] = []
        """Names of the first full blocks of `tokens`, as far as they were needed."""
        self.num_published = 0
        """Blocks of `blocks`, from the first, that the prefix cache knows."""
        self.num_tabled = 0
        """Blocks of `blocks`, from the first, that the runner's table has."""
        self.row = -1
        """Its row in the runner's and the sampler's tables while running, else -1."""
        self.adapter_slot = -1
        self.num_bypassed = 0
        """Requests with an adapter that were admitted past it while it waited for an adapter slot."""
        self.num_cached: int | None = None
        """Prompt tokens found in the prefix cache when it was first admitted."""
        self.num_generated = 0
        """Tokens drawn, including one that ended it."""
        self.num_drafted = 0
        self.num_accepted = 0
        self.num_logprobs = -1 if params.logprobs is None else params.logprobs
        self.history = History.of(params, request.prompt_token_ids)
        self.greedy = params.greedy and self.history is None and not params.logit_bias and params.logprobs is None
        """True when the largest raw logit is all that is wanted."""
        self.draft_source = ""
        """Who proposed `drafts`."""
        self.draft_state: object | None = None
        """Belongs to the proposer."""

    @property
    def adapter(self) -> AdapterRef | None:
        """The adapter it asks for."""
        return self.request.adapter

    @property
    def num_output(self) -> int:
        """Output tokens known, which is also the position of the next draw."""
        return len(self.tokens) - self.num_prompt

    def usage(self) -> Usage:
        """Token counts so far."""
        return Usage(
            prompt_tokens=self.num_prompt,
            completion_tokens=self.num_generated,
            cached_tokens=self.num_cached or 0,
            drafted_tokens=self.num_drafted,
            accepted_tokens=self.num_accepted,
        )

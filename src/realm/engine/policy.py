"""How one step's tokens are divided: pure functions."""

from __future__ import annotations

MIN_PREFILL_TOKENS = 64


def prefill_budget(max_batch_tokens: int, num_decoding: int) -> int:
    """Prompt tokens one step may compute.

    All that is left while nobody waits for a next token; a quarter of the step otherwise, so that a long prompt makes
    the others' tokens come a little later, not a whole step of `max_batch_tokens` later. At 64 rows and more a step's
    cost per row hardly falls any further, so little throughput is lost.
    """
    left = max_batch_tokens - num_decoding
    if num_decoding == 0:
        return left
    return min(left, max(MIN_PREFILL_TOKENS, max_batch_tokens // 4))


def share_prefill(remaining: list[int], budget: int) -> list[int]:
    """Divide `budget` among requests with `remaining` tokens to compute, oldest first.

    The oldest has a right to half, so that none waits forever; the shortest others come next, so that a short prompt
    doesn't wait for a long one; what they leave goes to the oldest again.
    """
    if not remaining:
        return []
    shares = [0] * len(remaining)
    shares[0] = min(remaining[0], -(-budget // 2))
    budget -= shares[0]
    for i in sorted(range(1, len(remaining)), key=remaining.__getitem__):
        shares[i] = min(remaining[i], budget)
        budget -= shares[i]
    shares[0] += min(remaining[0] - shares[0], budget)
    return shares

"""Sample-and-match: which of the drawn tokens become output.

At each draft position a token was drawn from the request's own final distribution, with its own random number, as if
the drafts before were output. While draws equal drafts that is indeed so; the first that differs is what the request
would have drawn without drafts, and the draws after it are worthless. So drafts can't be seen in the output, whatever
the sampler. (Greedy or point-mass drafts of speculative sampling, arXiv 2211.17192, accept with the same probability.)
"""

from __future__ import annotations

from dataclasses import dataclass

from realm.core.errors import Internal, RealmError
from realm.core.types import FinishReason
from realm.engine.sequence import Sequence


@dataclass(slots=True)
class Verified:
    """What verification did to a sequence."""

    num_drawn: int = 0
    """Draws that count: those handed out, and the one that ended the request."""
    num_accepted: int = 0
    """Drafts that became output."""
    reason: FinishReason | None = None
    error: RealmError | None = None


def verify(seq: Sequence, drawn: list[int]) -> Verified:
    """Append tokens of `drawn` (one for each draft of `seq`, and one more) up to the first that isn't its draft."""
    result = Verified()
    drafts, seq.drafts = seq.drafts, []
    num_known = len(seq.tokens)
    for i, token in enumerate(drawn):
        if token < 0:
            result.reason = FinishReason.ERROR
            result.error = Internal("the model's logits were not finite", code="non_finite_logits")
            break
        result.num_drawn += 1
        if token in seq.stop_ids:
            result.reason = FinishReason.STOP
            break
        seq.tokens.append(token)
        if seq.history is not None:
            seq.history.add(token)
        matches = i < len(drafts) and token == drafts[i]
        result.num_accepted += matches
        if len(seq.tokens) >= seq.max_total_tokens:
            result.reason = FinishReason.LENGTH
            break
        if not matches:
            break
    seq.num_computed = num_known + result.num_accepted
    seq.num_generated += result.num_drawn
    seq.num_drafted += len(drafts)
    seq.num_accepted += result.num_accepted
    return result

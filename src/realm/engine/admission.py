"""What a request must satisfy before the engine accepts it."""

from __future__ import annotations

from collections.abc import Iterable

from realm.core.errors import ContextLengthExceeded, InvalidRequest
from realm.core.types import Request


def check_request(request: Request, vocab_size: int, max_seq_len: int) -> int:
    """Validate a request; the most tokens that its prompt and output may have together.

    Raises:
        InvalidRequest: an empty prompt, or a token outside the vocabulary anywhere.
        ContextLengthExceeded: prompt plus output is longer than `max_seq_len`.
    """
    prompt, params = request.prompt_token_ids, request.params
    if not prompt:
        raise InvalidRequest("the prompt is empty", param="prompt")
    _check_vocabulary("prompt", (min(prompt), max(prompt)), vocab_size)
    _check_vocabulary("logit_bias", params.logit_bias, vocab_size)
    _check_vocabulary("stop_token_ids", params.stop_token_ids, vocab_size)
    max_tokens = 1 if params.max_tokens is None else params.max_tokens
    num_tokens = len(prompt) + max_tokens
    if num_tokens > max_seq_len:
        raise ContextLengthExceeded(
            f"prompt ({len(prompt)} tokens) plus output ({max_tokens}) is {num_tokens} tokens; "
            f"the limit is {max_seq_len}",
            param="max_tokens" if len(prompt) < max_seq_len else "prompt",
            hint="shorten the prompt or lower max_tokens, or serve with a larger max_seq_len and kv_cache_tokens",
        )
    return max_seq_len if params.max_tokens is None else num_tokens


def _check_vocabulary(name: str, ids: Iterable[int], vocab_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(
                f"{name} token {token} is not in the vocabulary, which ends at {vocab_size - 1}", param=name
            )

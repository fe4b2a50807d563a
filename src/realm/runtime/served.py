"""A model that answers: weights, tokenizer and the engine's loop put together, and the limits checked at its door."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from realm.core.domain import cache_domain
from realm.core.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from realm.core.types import MAX_SEED, Request, SamplingParams
from realm.lora.pool import AdapterPool
from realm.runtime.adapters import Adapter, AdapterRegistry
from realm.runtime.events import AsyncConsumer, Consumer, QueueConsumer
from realm.runtime.generation import Generation
from realm.runtime.loop import EngineLoop
from realm.runtime.track import Track
from realm.tokenizer.chat import ChatTemplate
from realm.tokenizer.stream import TextStream
from realm.tokenizer.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Message = Mapping[str, str]

# The longest prompt text that is worth encoding, per token of context: only a prompt of pathological tokens could be
# longer and fit, and encoding megabytes to find out would hold up everyone's event loop.
_MAX_BYTES_PER_TOKEN = 128

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one model can take."""

    max_seq_len: int
    """Tokens of prompt plus output."""
    max_requests: int
    """Places in the batch and in the queue together."""
    max_draft_tokens: int = 0
    """Longest draft; 0 if the model doesn't speculate."""


class ServedModel:
    """One model behind one engine loop.

    Args:
        model_id: The name that requests call it by.
        loop: Its engine's thread.
        tokenizer: Text to tokens and back.
        template: Chats to text.
        limits: Checked before the engine hears of a request.
        adapters: LoRA adapters that requests may name.
        adapter_pool: Those of them that are ready to compute with.
        fingerprint: Hex SHA-256 of the weights.
        kv_format: Part of the cache domain.
        created: When it was loaded, in Unix seconds.
        draft_model_id: Name of its draft model, if it has one.
    """

    def __init__(
        self,
        model_id: str,
        loop: EngineLoop,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        limits: Limits,
        *,
        adapters: AdapterRegistry,
        adapter_pool: AdapterPool,
        fingerprint: str,
        kv_format: str,
        created: int,
        draft_model_id: str | None = None,
    ) -> None:
        self.model_id = model_id
        self.loop = loop
        self.tokenizer = tokenizer
        self._template = template
        self.limits = limits
        self.fingerprint = fingerprint
        self.created = created
        self.draft_model_id = draft_model_id
        self.adapters = adapters
        self.adapter_pool = adapter_pool
        self._kv_format = kv_format

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` can work: base models have no template."""
        return self._template.source is not None

    @property
    def chat_template(self) -> ChatTemplate:
        """Chats to text."""
        return self._template

    def encode(self, prompt: Prompt, *, add_special: bool = True) -> tuple[int, ...]:
        """A prompt as token ids.

        Raises:
            InvalidRequest: it is empty, or names a token that the model doesn't have.
            ContextLengthExceeded: it is so long that it can't fit.
        """
        if isinstance(prompt, str):
            self._check_size(len(prompt.encode(errors="replace")))
            ids = tuple(self.tokenizer.encode(prompt, add_special=add_special))
        else:
            ids = tuple(prompt)
            self._check_tokens("prompt", ids)
        if not ids:
            raise InvalidRequest("the prompt is empty", param="prompt", code="empty_prompt")
        return ids

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """Chat messages as token ids, through the model's own template.

        Args:
            messages: Each with `role` and `content`.
            add_generation_prompt: End with the opening of an assistant's turn.
            variables: More variables for the template, such as Qwen3's `enable_thinking`.

        Raises:
            InvalidRequest: the template refuses the messages, or the model has none.
            ContextLengthExceeded: they are so long that they can't fit.
        """
        self._check_size(sum(len(str(m.get("content"))) for m in messages), "messages")
        text = self._template.render(messages, add_generation_prompt, **(variables or {}))
        return tuple(self.tokenizer.encode(text, add_special=False))

    def start(
        self,
        prompts: Sequence[tuple[int, ...]],
        params: SamplingParams,
        consumer: Consumer,
        *,
        n: int = 1,
        seed: int | None = None,
        timeout: float | None = None,
        stream: bool = True,
        tenant: str = DEFAULT_TENANT,
        adapter: str | None = None,
        speculate: bool | None = None,
        max_draft_tokens: int | None = None,
    ) -> list[str]:
        """Hand `n` choices of each prompt to the engine; their events go to `consumer`, prompt by prompt.

        Args:
            prompts: Token ids, see `encode`.
            params: For all of them; `seed` here is not read.
            consumer: Where the events go.
            n: Choices for each prompt.
            seed: Draws the same again; random if None. Choice i of a prompt has a seed of its own, derived from it.
            timeout: Seconds until what has not ended is given up.
            stream: An event for each step, rather than one at the end.
            tenant: On whose behalf; tenants share no cached prefix.
            adapter: Name of a loaded LoRA adapter; None for the base model.
            speculate: Whether tokens may be guessed ahead; None: if the model does so.
            max_draft_tokens: Longest draft, where that is shorter than the model's.

        Returns:
            The request ids, one for each choice.

        Raises:
            InvalidRequest: something in `params` that this model can't do, or more choices than the server has places.
            ContextLengthExceeded: prompt plus `max_tokens` is more than the context.
            NotFound: no such adapter.
            UnsupportedParameter: `speculate` is asked for, and the model doesn't.
            Unavailable: the model is going away.
        """
        if n < 1:
            raise InvalidRequest(f"n must be at least 1, got {n}", param="n")
        if len(prompts) * n > self.limits.max_requests:
            raise InvalidRequest(
                f"{len(prompts)} prompts with n={n} are more than the server's {self.limits.max_requests} places",
                param="n",
                hint="send fewer at once",
            )
        if speculate and not self.limits.max_draft_tokens:
            raise UnsupportedParameter(f"{self.model_id} is served without speculation", param="speculative")
        if max_draft_tokens is not None and max_draft_tokens < 1:
            raise InvalidRequest(
                f"max_draft_tokens must be at least 1, got {max_draft_tokens}", param="max_draft_tokens"
            )
        self._check_tokens("stop_token_ids", params.stop_token_ids)
        self._check_tokens("logit_bias", tuple(params.logit_bias))
        chosen = None if adapter is None else self.adapters.get(adapter)
        domain = self._cache_domain(tenant, chosen)
        arrived = self.loop.clock()
        deadline = None if timeout is None else arrived + timeout
        base_seed = secrets.randbelow(MAX_SEED) if seed is None else seed
        call_id = secrets.token_hex(12)
        tracks: list[Track] = []
        for prompt in prompts:
            room = self._room(prompt, params.max_tokens)
            for choice in range(n):
                own = replace(params, max_tokens=room, seed=choice_seed(base_seed, choice))
                index = len(tracks)
                ref = chosen.ref if chosen else None
                request = Request(
                    f"{call_id}-{index}",
                    prompt,
                    own,
                    domain,
                    tenant,
                    ref,
                    deadline,
                    speculate=speculate is not False,
                    max_draft_tokens=max_draft_tokens,
                )
                text = TextStream(self.tokenizer, params.stop)
                tracks.append(Track(request, index, text, consumer, stream=stream, arrived=arrived, adapter=chosen))
        self.loop.submit(tracks)
        return [track.request.request_id for track in tracks]

    def open(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams, **options: Any) -> Generation:
        """`start` for a caller that blocks: `for event in model.open(...)`."""
        consumer = QueueConsumer()
        return Generation(self.loop, consumer, self.start(prompts, params, consumer, **options))

    def aopen(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams, **options: Any) -> Generation:
        """`start` for a coroutine: `async for event in model.aopen(...)`."""
        consumer = AsyncConsumer()
        return Generation(self.loop, consumer, self.start(prompts, params, consumer, **options))

    def _cache_domain(self, tenant: str, adapter: Adapter | None) -> bytes:
        content_hash, scale = (adapter.ref.content_hash, adapter.ref.scale) if adapter else ("", 1.0)
        return cache_domain(tenant, self.fingerprint, content_hash, scale, self._kv_format)

    def _check_size(self, num_bytes: int, param: str = "prompt") -> None:
        limit = self.limits.max_seq_len * _MAX_BYTES_PER_TOKEN
        if num_bytes > limit:
            raise ContextLengthExceeded(
                f"{param} of {num_bytes} bytes can't fit the context of {self.limits.max_seq_len} tokens", param=param
            )

    def _check_tokens(self, name: str, token_ids: Sequence[int]) -> None:
        for token in token_ids:
            if not 0 <= token < self.tokenizer.vocab_size:
                raise InvalidRequest(
                    f"{name}: token {token} is not in the vocabulary of {self.tokenizer.vocab_size}", param=name
                )

    def _room(self, prompt: tuple[int, ...], max_tokens: int | None) -> int:
        """Tokens that the output may have."""
        room = self.limits.max_seq_len - len(prompt)
        if room < (max_tokens or 1):
            wanted = f" plus {max_tokens} to generate" if max_tokens else ""
            raise ContextLengthExceeded(
                f"the context is {self.limits.max_seq_len} tokens; the prompt has {len(prompt)}{wanted}",
                param="max_tokens" if room > 0 else "prompt",
                hint="shorten the prompt, or ask for fewer tokens",
            )
        return max_tokens or room


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of n choices: the call's own for the first, far apart for the others (splitmix64's finaliser)."""
    if choice == 0:
        return seed
    mask = (1 << 64) - 1
    x = (seed + choice * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) & MAX_SEED

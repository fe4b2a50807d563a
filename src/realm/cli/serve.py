"""`realm serve`: one model behind the OpenAI-compatible API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias, cast

import typer

from realm.cli.options import (
    ENGINE,
    SPECULATIVE,
    DeviceOption,
    DraftOption,
    KVCacheTokens,
    KVTypeOption,
    MaxBatchSize,
    MaxBatchTokens,
    MaxDraftTokens,
    MaxQueued,
    MaxSeqLen,
    Model,
    PrefixCache,
    SpeculateOption,
    Threads,
    speculation,
)
from realm.core.config import AUTO_DRAFT, StoreLimits
from realm.server.config import AdminConfig, ServerConfig

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

_SERVER = ServerConfig()
_STORE = StoreLimits()
_LOG_LEVEL = cast(LogLevel, _SERVER.log_level)


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = _SERVER.host,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = _SERVER.port,
    model_id: Annotated[str, typer.Option(help="Name that requests use.  [default: the model's]")] = "",
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="Key that may use /v1; repeat for more. Without one, anyone may.", envvar="REALM_API_KEY"),
    ] = None,
    tenants: Annotated[
        Path | None, typer.Option(help="TOML file of tenants, the SHA-256 of their keys, and their adapters.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="LoRA adapter to load, as NAME=PATH; requests name it as MODEL:NAME. Repeatable."),
    ] = None,
    admin_key: Annotated[
        str, typer.Option(help="Opens the admin API, /admin. Without it there is none.", envvar="REALM_ADMIN_KEY")
    ] = "",
    adapter_store: Annotated[
        Path | None,
        typer.Option(help="Directory of uploaded adapters.  [default: one in the user's data, by model]"),
    ] = None,
    max_adapters: Annotated[int, typer.Option(help="Adapters that may be stored.")] = _STORE.max_adapters,
    max_adapter_bytes: Annotated[int, typer.Option(help="Largest upload.")] = _STORE.max_adapter_bytes,
    max_store_bytes: Annotated[int, typer.Option(help="All uploads together.")] = _STORE.max_bytes,
    adapter_cache_bytes: Annotated[
        int, typer.Option(help="Memory for adapters that are ready; more of them than fit take turns.")
    ] = ENGINE.adapter_cache_bytes,
    max_batch_size: MaxBatchSize = ENGINE.max_batch_size,
    max_seq_len: MaxSeqLen = ENGINE.max_seq_len,
    max_batch_tokens: MaxBatchTokens = ENGINE.max_batch_tokens,
    kv_cache_tokens: KVCacheTokens = ENGINE.kv_cache_tokens,
    kv_type: KVTypeOption = ENGINE.kv_type,
    prefix_cache: PrefixCache = ENGINE.prefix_cache,
    max_queued: MaxQueued = ENGINE.max_queued,
    speculate: SpeculateOption = "auto",
    draft: DraftOption = AUTO_DRAFT,
    max_draft_tokens: MaxDraftTokens = SPECULATIVE.max_draft_tokens,
    lookup_history: Annotated[
        bool, typer.Option(help="Guess from a tenant's finished requests too; keeps their tokens in memory.")
    ] = SPECULATIVE.lookup_history,
    threads: Threads = ENGINE.num_threads,
    device: DeviceOption = "cpu",
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Origin of web pages that may call the API; * for any; repeatable.")
    ] = None,
    request_timeout: Annotated[
        float | None, typer.Option(help="Seconds until a request is given up.  [default: never]")
    ] = _SERVER.request_timeout,
    max_body_bytes: Annotated[int, typer.Option(help="Largest request body.")] = _SERVER.max_body_bytes,
    graceful_seconds: Annotated[
        int, typer.Option(help="How long open requests may go on after a SIGTERM.")
    ] = _SERVER.graceful_seconds,
    log_level: Annotated[LogLevel, typer.Option(help="What is logged to stderr.")] = _LOG_LEVEL,
) -> None:
    """Serve a model over HTTP until stopped; prints one line when it is ready."""
    from realm.cli.progress import fetch_model
    from realm.core.config import EngineConfig, ModelConfig
    from realm.core.errors import InvalidRequest
    from realm.lora.adapter import LoRAWeights
    from realm.runtime.catalogue import CATALOGUE
    from realm.runtime.manager import RuntimeManager
    from realm.server.run import serve as serve_http

    speculative, draft_path = speculation(speculate, draft, max_draft_tokens, lookup_history)
    engine = EngineConfig(
        max_batch_size=max_batch_size,
        max_seq_len=max_seq_len,
        max_batch_tokens=max_batch_tokens,
        kv_cache_tokens=kv_cache_tokens,
        kv_type=kv_type,
        prefix_cache=prefix_cache,
        max_queued=max_queued,
        num_threads=threads,
        adapter_cache_bytes=adapter_cache_bytes,
        speculative=speculative,
    )
    server = ServerConfig(
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        admin=AdminConfig(admin_key, adapter_store, StoreLimits(max_adapters, max_adapter_bytes, max_store_bytes))
        if admin_key
        else None,
        tenants=tenants,
        cors_origins=tuple(cors_origin or ()),
        max_body_bytes=max_body_bytes,
        request_timeout=request_timeout,
        graceful_seconds=graceful_seconds,
        log_level=log_level,
    )
    path = fetch_model(model)
    name = model_id or (model if model in CATALOGUE else path.stem)
    runtime = RuntimeManager(engine, device=device)
    runtime.set_default_model(ModelConfig(path, name, draft_path))
    for given in adapter or ():
        adapter_id, separator, adapter_path = given.partition("=")
        if not separator:
            raise InvalidRequest(f"--adapter takes NAME=PATH, got {given!r}", param="adapter")
        runtime.load_lora_adapter(LoRAWeights.load(adapter_path, adapter_id))
    serve_http(runtime, server)

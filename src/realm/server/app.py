"""The HTTP application put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.middleware.cors import CORSMiddleware

from realm import __version__
from realm.lora.adapter import LoRAWeights
from realm.runtime.manager import RuntimeManager
from realm.server.admin_api import admin_router, open_library
from realm.server.config import AdminConfig, ServerConfig
from realm.server.errors import install_error_handlers
from realm.server.gate import AdminGate, Gate
from realm.server.metrics import Metrics
from realm.server.openai_api import openai_router
from realm.server.tenancy import Tenancy, key_digest

_UPLOAD_FRAME_BYTES = 16 << 10
"""What multipart/form-data adds to its files."""


def create_app(runtime: RuntimeManager, config: ServerConfig | None = None) -> FastAPI:
    """The application over a runtime, which it closes when it shuts down. Models should be loaded before requests come.

    Raises:
        RealmError: the tenants file, an adapter that it names, or the adapter store can't be used.
    """
    config = config or ServerConfig()
    app = FastAPI(
        title="Realm",
        version=__version__,
        description="OpenAI-compatible API over one continuously batched engine.",
        lifespan=_lifespan,
    )
    app.state.runtime = runtime
    app.state.library = None
    app.include_router(_operations(runtime))
    app.include_router(openai_router(runtime, config))
    tenancy = _tenancy(runtime, config)
    admin = None if config.admin is None else _add_admin(app, runtime, config.admin, tenancy)
    app.add_middleware(Gate, tenancy=tenancy, max_body_bytes=config.max_body_bytes, admin=admin)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(config.cors_origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    install_error_handlers(app)
    return app


def _tenancy(runtime: RuntimeManager, config: ServerConfig) -> Tenancy:
    """Keys and tenants; the tenants' adapters are loaded."""
    tenancy = Tenancy.load(config.tenants) if config.tenants is not None else Tenancy()
    for name, path in tenancy.adapters.items():
        runtime.load_lora_adapter(LoRAWeights.load(path, name))
    for tenant_id, name in tenancy.defaults.items():
        runtime.set_tenant_lora_adapter(tenant_id, name)
    return tenancy.with_keys(config.api_keys)


def _add_admin(app: FastAPI, runtime: RuntimeManager, config: AdminConfig, tenancy: Tenancy) -> AdminGate:
    app.state.library = library = open_library(runtime, config)
    app.include_router(admin_router(runtime, library, tenancy))
    return AdminGate(key_digest(config.key), config.limits.max_adapter_bytes + _UPLOAD_FRAME_BYTES)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(app.state.runtime.close)
    if app.state.library is not None:
        app.state.library.store.close()


def _operations(runtime: RuntimeManager) -> APIRouter:
    """Health, readiness, metrics: for those who run the server."""
    router = APIRouter(tags=["operations"])
    metrics = Metrics(runtime)

    @router.get("/health", responses={503: {"description": "An engine broke down"}})
    async def health() -> JSONResponse:
        """200 while every engine is alive; the server's log tells what broke one."""
        failed = [m.model_id for m in runtime.models if m.loop.failure]
        if failed:
            return JSONResponse({"status": "failed", "models": failed}, 503)
        return JSONResponse({"status": "ok"})

    @router.get("/ready", responses={503: {"description": "No model is loaded yet"}})
    async def ready() -> JSONResponse:
        """200 once a model is loaded and takes requests."""
        usable = [m.model_id for m in runtime.models if not m.loop.failure]
        return JSONResponse({"status": "ready" if usable else "not ready", "models": usable}, 200 if usable else 503)

    @router.get("/metrics", response_class=Response)
    async def metrics_page() -> Response:
        """Prometheus metrics."""
        return Response(metrics.page(), media_type="text/plain; version=1.0.0; charset=utf-8")

    return router

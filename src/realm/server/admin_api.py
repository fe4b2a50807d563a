"""The admin API: adapters and who gets them. There is none unless an admin key is configured."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path as FilePath
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from realm.core.errors import NotFound, Unavailable
from realm.lora.store import AdapterStore
from realm.lora.stored import Incoming
from realm.runtime.adapter_library import AdapterInfo, AdapterLibrary
from realm.runtime.manager import RuntimeManager
from realm.runtime.model import Model
from realm.server.admin_schemas import (
    UPLOAD_SCHEMA,
    AdapterBody,
    AdapterList,
    Deleted,
    PoolBody,
    TenantBody,
    TenantList,
    TenantSettings,
)
from realm.server.config import AdminConfig
from realm.server.grants import Grants, TenantInfo
from realm.server.openai_api import StrictRoute
from realm.server.schemas import ErrorBody
from realm.server.tenancy import Tenancy
from realm.server.upload import UploadReader

T = TypeVar("T")
Name = Annotated[str, Path(description="Letters, digits, '.', '_', '-'; at most 128.")]

_ERROR_TEXTS: dict[int | str, str] = {
    400: "Not an adapter, not one of this model, or a bad name",
    401: "No admin key, or a wrong one",
    404: "Unknown adapter or tenant",
    409: "A limit of the store is reached, or the name is taken",
    413: "The upload is too large",
    415: "Not the content type that is asked for",
    429: "The pool is full of adapters in use; see Retry-After",
    500: "Our fault",
    503: "Shutting down, broken, or the disk failed",
    "default": "Any other error",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text} for status, text in _ERROR_TEXTS.items()
}


def open_library(runtime: RuntimeManager, config: AdminConfig) -> AdapterLibrary:
    """The default model's adapters, with those that the store brings back.

    Raises:
        RealmError: the store can't be used, or holds a name that is given to another adapter.
    """
    model = runtime.model()
    root = FilePath(config.adapter_store) if config.adapter_store else default_store(model)
    library = AdapterLibrary(model, AdapterStore(root, config.limits))
    try:
        library.restore()
    except BaseException:
        library.store.close()
        raise
    return library


def default_store(model: Model) -> FilePath:
    """A directory of the user's, another for each model."""
    data = os.environ.get("XDG_DATA_HOME") or FilePath.home() / ".local" / "share"
    return FilePath(data) / "realm" / "adapters" / model.fingerprint[:16]


def admin_router(runtime: RuntimeManager, library: AdapterLibrary, tenancy: Tenancy) -> APIRouter:
    """Adapters and tenants' adapters."""
    router = APIRouter(prefix="/admin/v1", route_class=StrictRoute, responses=_ERRORS)
    router.include_router(_adapters(runtime.model(), library))
    router.include_router(_tenants(library, Grants(runtime, tenancy, library.store)))
    return router


def _adapters(model: Model, library: AdapterLibrary) -> APIRouter:
    router = APIRouter(prefix="/adapters", tags=["admin: adapters"], route_class=StrictRoute)
    checking = asyncio.Semaphore(1)  # an adapter that is checked is in memory

    def body(info: AdapterInfo) -> AdapterBody:
        return AdapterBody.of(info, model.model_id)

    @router.get("")
    async def list_adapters() -> AdapterList:
        """All adapters, and the memory and disk that they share."""
        infos = await _beside(library.infos)
        return AdapterList(data=[body(info) for info in infos], pool=_pool_body(model, library))

    @router.get("/{name}")
    async def get_adapter(name: Name) -> AdapterBody:
        """One adapter."""
        return body(await _beside(lambda: library.info(name)))

    @router.put(
        "/{name}",
        status_code=201,
        response_model=AdapterBody,
        responses={200: {"model": AdapterBody, "description": "Replaced what had the name"}},
        openapi_extra=UPLOAD_SCHEMA,
    )
    async def upload_adapter(name: Name, request: Request) -> Response:
        """Upload an adapter, or another one under the same name; requests may name it at once.

        Streams that began with what had the name before end with it.
        """
        async with _receiving(library, name) as incoming:
            try:
                await UploadReader(request.headers.get("content-type", ""), incoming).read(request.stream())
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            async with checking:
                info, is_new = await _beside(lambda: library.put(incoming))
        return JSONResponse(body(info).model_dump(), 201 if is_new else 200)

    @router.post("/{name}/load")
    async def load_adapter(name: Name) -> AdapterBody:
        """Let requests name an adapter that was unloaded, and get it ready before one does."""
        return body(await _beside(lambda: library.load(name)))

    @router.post("/{name}/unload")
    async def unload_adapter(name: Name) -> AdapterBody | Deleted:
        """Let no new request name an adapter; it stays stored, or is gone if it was not uploaded."""
        info = await _beside(lambda: library.unload(name))
        return Deleted(name=name) if info is None else body(info)

    @router.post("/{name}/pin")
    async def pin_adapter(name: Name) -> AdapterBody:
        """Keep an adapter resident. Pinned adapters take half of the pool at most."""
        return body(await _beside(lambda: library.pin(name)))

    @router.post("/{name}/unpin")
    async def unpin_adapter(name: Name) -> AdapterBody:
        """Let an adapter give way to others again."""
        return body(await _beside(lambda: library.pin(name, False)))

    @router.delete("/{name}")
    async def delete_adapter(name: Name) -> Deleted:
        """Forget an adapter and its files. Streams that began with it end with it."""
        await _beside(lambda: library.delete(name))
        return Deleted(name=name)

    return router


@asynccontextmanager
async def _receiving(library: AdapterLibrary, name: str) -> AsyncIterator[Incoming]:
    """`AdapterStore.receive`, without a wait for the disk in front of everybody's event loop."""
    library.check_name(name)
    receiving = library.store.receive(name)
    incoming = await _beside(receiving.__enter__)
    try:
        yield incoming
    finally:
        await asyncio.to_thread(receiving.__exit__, None, None, None)


def _tenants(library: AdapterLibrary, grants: Grants) -> APIRouter:
    router = APIRouter(prefix="/tenants", tags=["admin: tenants"], route_class=StrictRoute)

    @router.get("")
    async def list_tenants() -> TenantList:
        """All tenants and their adapters."""
        return TenantList(data=[_tenant_body(info) for info in grants.infos()])

    @router.put("/{tenant}")
    async def set_tenant(tenant: str, settings: TenantSettings) -> TenantBody:
        """Choose what a tenant gets when it names no adapter, and what it may name. Kept across restarts."""
        for name in [*(settings.adapters or []), *([settings.adapter] if settings.adapter else [])]:
            if name not in library.names():
                raise NotFound(f"the adapter {name!r} does not exist", code="adapter_not_found", param="adapter")
        return _tenant_body(await _beside(lambda: grants.set(tenant, settings.adapter, settings.adapters)))

    @router.delete("/{tenant}")
    async def reset_tenant(tenant: str) -> TenantBody:
        """Back to what the tenants file says."""
        return _tenant_body(await _beside(lambda: grants.reset(tenant)))

    return router


def _tenant_body(info: TenantInfo) -> TenantBody:
    adapters = None if info.adapters is None else sorted(info.adapters)
    return TenantBody(tenant=info.tenant_id, adapter=info.adapter, adapters=adapters)


def _pool_body(model: Model, library: AdapterLibrary) -> PoolBody:
    pool, store = model.adapter_pool.stats(), library.store
    return PoolBody(
        resident_bytes=pool.resident_bytes,
        capacity_bytes=pool.capacity_bytes,
        store_bytes=store.num_bytes,
        max_store_bytes=store.limits.max_bytes,
        num_adapters=len(store.records),
        max_adapters=store.limits.max_adapters,
    )


async def _beside(work: Callable[[], T]) -> T:
    """On another thread: it may wait for a disk, or for a step to end.

    Raises:
        Unavailable: the disk failed.
    """
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        raise Unavailable(f"the adapter store failed: {error.strerror}", code="adapter_store_failed") from error

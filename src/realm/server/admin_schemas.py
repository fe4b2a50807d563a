"""Bodies of the admin API."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from realm.runtime.adapter_library import AdapterInfo
from realm.server.schemas import StrictModel

AdapterName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class AdapterBody(BaseModel):
    """One adapter."""

    object: Literal["adapter"] = "adapter"
    name: str
    model: str
    """What requests put into `model`."""
    state: Literal["stored", "available", "resident"]
    """stored: on disk only; available: requests may name it; resident: and it is ready to compute with."""
    pinned: bool
    uploaded: bool
    content_hash: str
    rank: int
    num_matrices: int
    modules: list[str]
    file_bytes: int
    resident_bytes: int
    num_requests: int
    created: int | None

    @classmethod
    def of(cls, info: AdapterInfo, model_id: str) -> AdapterBody:
        """As the runtime tells it."""
        return cls.model_validate({**asdict(info), "modules": list(info.modules), "model": f"{model_id}:{info.name}"})


class PoolBody(BaseModel):
    """The memory that adapters share."""

    resident_bytes: int
    capacity_bytes: int
    store_bytes: int
    max_store_bytes: int
    num_adapters: int
    max_adapters: int


class AdapterList(BaseModel):
    """All adapters."""

    object: Literal["list"] = "list"
    data: list[AdapterBody]
    pool: PoolBody


class Deleted(BaseModel):
    """What is gone."""

    name: str
    deleted: Literal[True] = True


class TenantSettings(StrictModel):
    """What a tenant's requests get when they name no adapter, and what else they may name."""

    adapter: AdapterName | None = None
    adapters: Annotated[list[AdapterName], Field(max_length=1024)] | None = None
    """Names beside `adapter`; left as they are if absent."""


class TenantBody(BaseModel):
    """One tenant."""

    object: Literal["tenant"] = "tenant"
    tenant: str
    adapter: str | None
    adapters: list[str] | None
    """What it may name; null: all."""


class TenantList(BaseModel):
    """All tenants."""

    object: Literal["list"] = "list"
    data: list[TenantBody]


UPLOAD_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 2,
                            "items": {"type": "string", "format": "binary"},
                            "description": "`adapter_config.json` and `adapter_model.safetensors`, or one .gguf file",
                        }
                    },
                }
            }
        },
    }
}

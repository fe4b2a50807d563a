"""What the operator lets tenants use, on top of the tenants file, kept across restarts."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

from realm.core.errors import InvalidRequest, NotFound
from realm.lora.store import AdapterStore
from realm.runtime.manager import RuntimeManager
from realm.runtime.served import DEFAULT_TENANT
from realm.server.tenancy import ANYONE, Tenancy, Tenant


@dataclass(frozen=True, slots=True)
class TenantInfo:
    """One tenant's adapters."""

    tenant_id: str
    adapter: str | None
    adapters: frozenset[str] | None


class Grants:
    """Changes of a `Tenancy` while the server runs. Safe to use from any thread.

    A grant is by name: it holds for whatever adapter has that name.

    Args:
        runtime: Gets the tenants' default adapters.
        tenancy: What the tenants file says; its `overrides` are written here.
        store: Where changes are kept.
    """

    def __init__(self, runtime: RuntimeManager, tenancy: Tenancy, store: AdapterStore) -> None:
        self._runtime = runtime
        self._tenancy = tenancy
        self._store = store
        self._lock = threading.Lock()
        self._tenants: dict[str, Tenant] = {t.tenant_id: t for t in (*tenancy.keys.values(), ANYONE)}
        self._changes: dict[str, dict[str, Any]] = {}
        for tenant_id, change in store.read_notes().get("tenants", {}).items():
            if tenant_id in self._tenants:  # one that has left the file has nothing to keep
                self._apply(tenant_id, change)

    def infos(self) -> list[TenantInfo]:
        """All tenants, by name."""
        return [self.info(tenant_id) for tenant_id in sorted(self._tenants)]

    def info(self, tenant_id: str) -> TenantInfo:
        """One tenant.

        Raises:
            NotFound: no such tenant.
        """
        tenant = self._tenant(tenant_id)
        tenant = self._tenancy.overrides.get(tenant_id, tenant)
        return TenantInfo(tenant_id, self._runtime.tenant_lora_adapter(tenant_id), tenant.adapters)

    def set(self, tenant_id: str, adapter: str | None, adapters: list[str] | None) -> TenantInfo:
        """Choose a tenant's adapter, and with `adapters` what else it may name.

        Raises:
            NotFound: no such tenant.
            InvalidRequest: `adapters` for the default tenant, which may name all.
        """
        if tenant_id == DEFAULT_TENANT and adapters is not None:
            raise InvalidRequest("callers without a tenant may name every adapter", param="adapters")
        with self._lock:
            allowed = self.info(tenant_id).adapters if adapters is None else adapters
            self._apply(tenant_id, {"adapter": adapter, "adapters": None if allowed is None else sorted(allowed)})
            self._save()
        return self.info(tenant_id)

    def reset(self, tenant_id: str) -> TenantInfo:
        """Back to what the tenants file says.

        Raises:
            NotFound: no such tenant.
        """
        self._tenant(tenant_id)
        with self._lock:
            self._changes.pop(tenant_id, None)
            self._tenancy.overrides.pop(tenant_id, None)
            self._runtime.set_tenant_lora_adapter(tenant_id, self._tenancy.defaults.get(tenant_id))
            self._save()
        return self.info(tenant_id)

    def _tenant(self, tenant_id: str) -> Tenant:
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            raise NotFound(f"no tenant {tenant_id[:200]!r}", code="tenant_not_found", param="tenant")
        return tenant

    def _apply(self, tenant_id: str, change: dict[str, Any]) -> None:
        adapter, allowed = change["adapter"], change["adapters"]
        if allowed is not None:
            names = frozenset([*allowed, *([adapter] if adapter else [])])
            self._tenancy.overrides[tenant_id] = replace(self._tenant(tenant_id), adapters=names)
        self._runtime.set_tenant_lora_adapter(tenant_id, adapter)
        self._changes[tenant_id] = change

    def _save(self) -> None:
        self._store.write_notes({"tenants": self._changes})

"""Who calls: API keys to tenants, and what a tenant may name. From a TOML file until tenants have a store.

[adapters]
pirate = "adapters/pirate"            # a PEFT directory or a GGUF adapter, relative to this file

[tenants.acme]
keys = ["<SHA-256 of an API key, hex>"]
adapters = ["pirate"]                 # may be named as model="base:pirate"
adapter = "pirate"                    # what acme gets when it names none
speculate = true                      # whether its tokens are guessed ahead, if the server does so
max_draft_tokens = 8                  # and how far at most
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from realm.core.config import MAX_DRAFT_TOKENS
from realm.core.errors import InvalidRequest, Unauthorized
from realm.runtime.served import DEFAULT_TENANT

_TENANT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whoever a key belongs to."""

    tenant_id: str
    adapters: frozenset[str] | None = None
    """Names of LoRA adapters that it may use; None: all of them."""
    speculate: bool = True
    """Whether its requests may be drafted for."""
    max_draft_tokens: int | None = None
    """Its longest drafts, where they are shorter than the server's."""

    def may_use(self, adapter: str) -> bool:
        """Whether it may name an adapter, or know that there is one."""
        return self.adapters is None or adapter in self.adapters


ANYONE = Tenant(DEFAULT_TENANT)


@dataclass(frozen=True, slots=True)
class Tenancy:
    """What a tenants file says."""

    keys: Mapping[bytes, Tenant] = field(default_factory=dict)
    """Tenants by SHA-256 of their keys."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """The adapter that a tenant gets when it names none."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Adapters to load, by name."""
    overrides: dict[str, Tenant] = field(default_factory=dict)
    """Tenants, by id, as they have been changed since; see `server.grants`."""

    @classmethod
    def load(cls, path: str | Path) -> Tenancy:
        """Read a tenants file.

        Raises:
            InvalidRequest: it can't be read, or something in it is unknown, malformed or contradicts itself.
        """
        path = Path(path)
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
            raise InvalidRequest(f"tenants file {path} can't be read: {e}", param="tenants") from None
        try:
            return _read(content, path.parent)
        except InvalidRequest as e:
            raise InvalidRequest(f"tenants file {path}: {e.message}", param="tenants") from None

    def with_keys(self, api_keys: Iterable[str]) -> Tenancy:
        """The same, with plain keys that open everything under the default tenant's name."""
        plain = {key_digest(key): ANYONE for key in api_keys}
        return Tenancy({**self.keys, **plain}, self.defaults, self.adapters)

    def tenant_of(self, authorization: str | None) -> Tenant:
        """Whose request this is, by its Authorization header. Anyone's, if there are no keys.

        Raises:
            Unauthorized: no key, or none that is known.
        """
        tenant = self._tenant_of(authorization)
        return self.overrides.get(tenant.tenant_id, tenant)

    def _tenant_of(self, authorization: str | None) -> Tenant:
        if not self.keys:
            return ANYONE
        # How long looking up a digest takes tells nothing about keys: whoever chooses a key doesn't choose its digest.
        tenant = self.keys.get(bearer_digest(authorization))
        if tenant is None:
            raise Unauthorized("the API key is not known")
        return tenant


def key_digest(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def bearer_digest(authorization: str | None) -> bytes:
    """Digest of the key in an Authorization header.

    Raises:
        Unauthorized: there is none.
    """
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("an API key is needed", code="missing_api_key", hint="send `Authorization: Bearer KEY`")
    return key_digest(key.strip())


def _read(content: dict[str, Any], folder: Path) -> Tenancy:
    _expect_keys("the file", content, {"adapters", "tenants"})
    paths = _table("adapters", content)
    adapters = {name: folder / _text(f"adapters.{name}", path) for name, path in paths.items()}
    keys: dict[bytes, Tenant] = {}
    defaults: dict[str, str] = {}
    for tenant_id, entry in _table("tenants", content).items():
        where = f"tenants.{tenant_id}"
        if not _TENANT_ID.fullmatch(tenant_id):
            raise InvalidRequest(f"{where}: a tenant's name is 1 to 128 letters, digits, '.', '_' or '-'")
        _expect_keys(where, entry, {"keys", "adapters", "adapter", "speculate", "max_draft_tokens"})
        default = _text(f"{where}.adapter", entry["adapter"]) if "adapter" in entry else None
        allowed = {*_texts(f"{where}.adapters", entry.get("adapters", [])), *([default] if default else [])}
        for name in sorted(allowed - adapters.keys()):
            raise InvalidRequest(f"{where} names the adapter {name!r}, which is not in [adapters]")
        if default:
            defaults[tenant_id] = default
        tenant = Tenant(tenant_id, frozenset(allowed), *_speculation(where, entry))
        for digest in _texts(f"{where}.keys", entry.get("keys", [])):
            if not _DIGEST.fullmatch(digest):
                raise InvalidRequest(f"{where}.keys: a key is given by its SHA-256 in 64 lower-case hex digits")
            if keys.setdefault(bytes.fromhex(digest), tenant) is not tenant:
                raise InvalidRequest(f"{where}.keys: {digest[:12]}... belongs to two tenants")
    if not keys:
        raise InvalidRequest("no tenant has a key, and so nobody could get in")
    return Tenancy(keys, defaults, adapters)


def _speculation(where: str, entry: dict[str, Any]) -> tuple[bool, int | None]:
    """`speculate` and `max_draft_tokens` of a tenant."""
    speculate, limit = entry.get("speculate", True), entry.get("max_draft_tokens")
    if not isinstance(speculate, bool):
        raise InvalidRequest(f"{where}.speculate must be true or false")
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_DRAFT_TOKENS:
            raise InvalidRequest(f"{where}.max_draft_tokens must be between 1 and {MAX_DRAFT_TOKENS}")
        if not speculate:
            raise InvalidRequest(f"{where}.max_draft_tokens contradicts speculate = false")
    return speculate, limit


def _expect_keys(where: str, table: Any, known: set[str]) -> None:
    if not isinstance(table, dict):
        raise InvalidRequest(f"{where} must be a table")
    for name in table.keys() - known:
        raise InvalidRequest(f"{where} has an unknown entry {name!r}; known: {', '.join(sorted(known))}")


def _table(name: str, content: dict[str, Any]) -> dict[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise InvalidRequest(f"{name} must be a table")
    return table


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{where} must be a text")
    return value


def _texts(where: str, values: Any) -> list[str]:
    if not isinstance(values, list):
        raise InvalidRequest(f"{where} must be a list of texts")
    return [_text(where, value) for value in values]

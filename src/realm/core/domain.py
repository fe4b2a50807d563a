"""Cache domain: the root of every KV hash chain and of all speculator state."""

from __future__ import annotations

import hashlib


def cache_domain(
    tenant_domain: str, model_fingerprint: str, adapter_hash: str, adapter_scale: float, kv_format: str
) -> bytes:
    """SHA-256 over length-prefixed fields, so that no two different tuples share a domain.

    Two requests may share cached KV exactly when all of these agree.
    """
    digest = hashlib.sha256(b"realm-cache-domain-v1")
    for part in (tenant_domain, model_fingerprint, adapter_hash, adapter_scale.hex(), kv_format):
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.digest()

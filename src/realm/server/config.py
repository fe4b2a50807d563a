"""Options of the HTTP server. CLI defaults are read from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from realm.core.config import StoreLimits
from realm.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class AdminConfig:
    """The admin API.

    Raises:
        InvalidRequest: a value out of range, naming the field.
    """

    key: str = field(repr=False)
    """Opens /admin, and nothing else."""
    adapter_store: str | Path | None = None
    """Directory of uploaded adapters; one of the user's for each model, if None."""
    limits: StoreLimits = StoreLimits()  # noqa: RUF009  (it is frozen)

    def __post_init__(self) -> None:
        if len(self.key) < 8:
            raise InvalidRequest("the admin key must have at least 8 characters", param="admin_key")
        for name in ("max_adapters", "max_adapter_bytes", "max_bytes"):
            if getattr(self.limits, name) < 1:
                raise InvalidRequest(f"{name} must be at least 1, got {getattr(self.limits, name)}", param=name)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How to listen, and whom to let in.

    Raises:
        InvalidRequest: a value out of range, naming the field.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port, told in the ready line."""
    api_keys: tuple[str, ...] = ()
    """Keys that may use /v1; anyone may if there are none, and no tenants."""
    admin: AdminConfig | None = None
    """Without it there is no admin API."""
    tenants: str | Path | None = None
    """A TOML file of tenants, their keys and adapters; see `server.tenancy`."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the API; `*` for any."""
    max_body_bytes: int = 4 << 20
    request_timeout: float | None = None
    """Seconds until a request is given up, unless its own `timeout` is shorter."""
    graceful_seconds: int = 30
    """How long open requests may go on after a SIGTERM."""
    log_level: str = "info"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidRequest(f"port must be between 0 and 65535, got {self.port}", param="port")
        if self.max_body_bytes < 1:
            raise InvalidRequest(
                f"max_body_bytes must be at least 1, got {self.max_body_bytes}", param="max_body_bytes"
            )
        if self.graceful_seconds < 0:
            raise InvalidRequest(
                f"graceful_seconds must be at least 0, got {self.graceful_seconds}", param="graceful_seconds"
            )
        if self.request_timeout is not None and not self.request_timeout > 0:
            raise InvalidRequest(f"request_timeout must be over 0, got {self.request_timeout}", param="request_timeout")
        if any(not key for key in self.api_keys):
            raise InvalidRequest("an API key must not be empty", param="api_keys")

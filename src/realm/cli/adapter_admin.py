"""`realm adapters list|upload|load|…`: the admin API of a running server, from the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from realm.core.errors import InvalidRequest, NotFound, RealmError, Unavailable

Url: TypeAlias = Annotated[str, typer.Option(help="The server.", envvar="REALM_URL")]
AdminKey: TypeAlias = Annotated[str, typer.Option(help="Its admin key.", envvar="REALM_ADMIN_KEY", show_default=False)]
Name: TypeAlias = Annotated[str, typer.Argument(help="Name of the adapter.")]

_URL = "http://127.0.0.1:8000"
_PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


def list_adapters(url: Url = _URL, admin_key: AdminKey = "") -> None:
    """List a server's adapters: state, size, rank, requests that compute with them."""
    answer = _call("GET", "", url, admin_key)
    for row in [_HEAD, *(_row(adapter) for adapter in answer["data"])]:
        typer.echo(f"{row[0]:24} {row[1]:18} {row[2]:>5} {row[3]:>9} {row[4]:>9} {row[5]:>8}  {row[6]}".rstrip())
    pool = answer["pool"]
    typer.echo(
        f"pool {_mb(pool['resident_bytes'])} of {_mb(pool['capacity_bytes'])}, "
        f"store {_mb(pool['store_bytes'])} of {_mb(pool['max_store_bytes'])}, "
        f"{pool['num_adapters']} of {pool['max_adapters']} adapters"
    )


def upload(
    name: Name,
    adapter: Annotated[Path, typer.Argument(help="PEFT directory or GGUF adapter file.")],
    url: Url = _URL,
    admin_key: AdminKey = "",
) -> None:
    """Upload an adapter, or another one under the same name; requests may name it at once."""
    paths = [adapter / file for file in _PEFT_FILES] if adapter.is_dir() else [adapter]
    with ExitStack() as stack:
        try:
            files = [("files", (path.name, stack.enter_context(path.open("rb")))) for path in paths]
        except OSError as error:
            raise NotFound(
                f"{error.filename} can't be read: {error.strerror}",
                code="adapter_not_found",
                hint="give a PEFT directory with adapter_config.json and adapter_model.safetensors, or a .gguf file",
            ) from None
        _show(_call("PUT", f"/{_part(name)}", url, admin_key, files=files))


def load(name: Name, url: Url = _URL, admin_key: AdminKey = "") -> None:
    """Let requests name an adapter that was unloaded, and get it ready."""
    _show(_call("POST", f"/{_part(name)}/load", url, admin_key))


def unload(name: Name, url: Url = _URL, admin_key: AdminKey = "") -> None:
    """Let no new request name an adapter. Open streams end as they began."""
    _show(_call("POST", f"/{_part(name)}/unload", url, admin_key))


def pin(name: Name, url: Url = _URL, admin_key: AdminKey = "") -> None:
    """Keep an adapter resident."""
    _show(_call("POST", f"/{_part(name)}/pin", url, admin_key))


def unpin(name: Name, url: Url = _URL, admin_key: AdminKey = "") -> None:
    """Let an adapter give way to others again."""
    _show(_call("POST", f"/{_part(name)}/unpin", url, admin_key))


def delete(name: Name, url: Url = _URL, admin_key: AdminKey = "") -> None:
    """Forget an adapter and its files."""
    _show(_call("DELETE", f"/{_part(name)}", url, admin_key))


def assign(
    tenant: Annotated[str, typer.Argument(help="A tenant, or `default` for callers without one.")],
    name: Annotated[str | None, typer.Argument(help="Name of the adapter; the base model if left out.")] = None,
    url: Url = _URL,
    admin_key: AdminKey = "",
) -> None:
    """Choose what a tenant's requests get when they name no adapter."""
    answer = _request("PUT", f"/admin/v1/tenants/{_part(tenant)}", url, admin_key, json={"adapter": name})
    typer.echo(f"{answer['tenant']}: {answer['adapter'] or 'the base model'}")


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_adapters,
    "upload": upload,
    "load": load,
    "unload": unload,
    "pin": pin,
    "unpin": unpin,
    "delete": delete,
    "assign": assign,
}

_HEAD = ("name", "state", "rank", "on disk", "in pool", "requests", "changes")


def _row(adapter: dict[str, Any]) -> tuple[str, ...]:
    state = adapter["state"] + (", pinned" if adapter["pinned"] else "")
    sizes = _mb(adapter["file_bytes"]), _mb(adapter["resident_bytes"])
    parts = f"{adapter['num_matrices']}: {' '.join(adapter['modules'])}"
    return (adapter["name"], state, str(adapter["rank"]), *sizes, str(adapter["num_requests"]), parts)


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


def _show(answer: dict[str, Any]) -> None:
    if "state" not in answer:
        typer.echo(f"{answer['name']} is gone")
        return
    typer.echo(f"{answer['name']}: {answer['state']}{', pinned' if answer['pinned'] else ''}")
    if answer["state"] != "stored":
        typer.echo(f"requests name it with  model={answer['model']}")


def _call(method: str, path: str, url: str, key: str, **options: Any) -> dict[str, Any]:
    return _request(method, f"/admin/v1/adapters{path}", url, key, **options)


def _part(name: str) -> str:
    """A name as part of a path.

    Raises:
        InvalidRequest: the server would refuse it, if it came through as it is.
    """
    from realm.lora.adapter import check_adapter_name

    check_adapter_name(name)
    return name


def _request(method: str, path: str, url: str, key: str, **options: Any) -> dict[str, Any]:
    """One call. What the server complains about comes out as it said it.

    Raises:
        RealmError: no key, no server, or the server's own error.
    """
    import httpx

    if not key:
        raise InvalidRequest("no admin key", param="admin_key", hint="give --admin-key or set REALM_ADMIN_KEY")
    with _told(url):
        response = httpx.request(
            method, url.rstrip("/") + path, headers={"authorization": f"Bearer {key}"}, timeout=300, **options
        )
    try:
        answer = response.json()
    except ValueError:
        raise Unavailable(f"{url} is not a Realm server: status {response.status_code}") from None
    if response.is_success:
        return dict(answer)
    detail = answer.get("error", {})
    hint = "start it with --admin-key" if response.status_code == 404 and detail.get("code") == "not_found" else None
    raise RealmError(f"{detail.get('message')} ({response.status_code}, {detail.get('code')})", hint=hint)


@contextmanager
def _told(url: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise Unavailable(f"{url} can't be reached: {error}", hint="is `realm serve` running? give --url") from None

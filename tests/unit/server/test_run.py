"""The address is checked before a model is loaded, and the error says which half of it is at fault."""

from __future__ import annotations

import socket

import pytest

from realm.core.errors import InvalidRequest
from realm.server.config import ServerConfig
from realm.server.run import _listen


def test_a_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidRequest) as caught:
            _listen(ServerConfig(port=port))
    assert caught.value.param == "port"
    assert str(port) in caught.value.message


@pytest.mark.parametrize("host", ["999.1.1.1", "192.0.2.1"], ids=["no address", "not ours"])
def test_a_host_that_cannot_be(host: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _listen(ServerConfig(host=host, port=0))
    assert caught.value.param == "host"
    assert caught.value.hint == "choose another --host"


@pytest.mark.parametrize("field", ["port", "max_body_bytes", "graceful_seconds", "request_timeout"])
def test_values_out_of_range(field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ServerConfig(**{field: -1})  # type: ignore[arg-type]
    assert caught.value.param == field
    assert "-1" in caught.value.message

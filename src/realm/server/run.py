"""`serve`: the application behind uvicorn, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
from types import FrameType

import uvicorn

from realm.core.errors import InvalidRequest
from realm.runtime.manager import RuntimeManager
from realm.server.app import create_app
from realm.server.config import ServerConfig
from realm.server.protocol import BoundedProtocol

logger = logging.getLogger(__name__)

# The engine's thread comes back from each step to find the event loop's thread holding the interpreter. At Python's
# default it may wait 5 ms for it, longer than a step.
_SWITCH_INTERVAL_SECONDS = 0.0005
# After the grace, for the error that ends each open request to reach its client.
_LAST_WORDS_SECONDS = 5


def serve(runtime: RuntimeManager, config: ServerConfig) -> None:
    """Load the runtime's default model, listen, say so in one line, and serve until SIGINT or SIGTERM.

    Open requests may then go on for `graceful_seconds`. The runtime is closed at the end.

    Raises:
        InvalidRequest: the address can't be listened on.
    """
    listener = _listen(config)
    try:
        model = runtime.model()
        sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
        logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        if model.draft_model_id is not None:
            logger.info("%s drafts for %s", model.draft_model_id, model.model_id)
        options = uvicorn.Config(
            create_app(runtime, config),
            http=BoundedProtocol,
            access_log=False,
            log_config=None,
            log_level="debug" if config.log_level == "debug" else "warning",  # its chatter at start and end isn't ours
            timeout_graceful_shutdown=config.graceful_seconds + _LAST_WORDS_SECONDS,
            server_header=False,
        )
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        # uvicorn raises the signal that ended it once more when it is done; then it has had its effect.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        ready_line = f"realm: {model.model_id} is ready on http://{shown}:{port}"
        _Server(options, ready_line, runtime, config.graceful_seconds).run(sockets=[listener])
    finally:
        listener.close()
        runtime.close()


class _Server(uvicorn.Server):
    """Says so once it accepts connections; ends open requests with an error after the grace, or at a second signal."""

    def __init__(self, options: uvicorn.Config, ready_line: str, runtime: RuntimeManager, grace_seconds: float) -> None:
        super().__init__(options)
        self._ready_line = ready_line
        self._runtime = runtime
        self._grace_seconds = grace_seconds
        self._hurry = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, then print the ready line."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            print(self._ready_line, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end, the second ends the grace, the third waits for nobody."""
        if self.should_exit and not self._hurry.is_set() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._hurry.set)
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let open requests finish; when the grace is over, end them."""
        ending = asyncio.create_task(self._end_open_requests())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_open_requests(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), self._grace_seconds)
        await asyncio.to_thread(self._runtime.close)  # each gets its last event, and so its client


def _listen(config: ServerConfig) -> socket.socket:
    """A bound socket: before the model is loaded, so that a taken port is told at once."""
    listener = None
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as e:
        if listener is not None:
            listener.close()
        at_fault = "host" if isinstance(e, socket.gaierror) or e.errno == errno.EADDRNOTAVAIL else "port"
        raise InvalidRequest(
            f"can't listen on {config.host}:{config.port}: {e.strerror or e}",
            param=at_fault,
            hint=f"choose another --{at_fault}",
        ) from None
    return listener

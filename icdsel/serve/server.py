"""Runs the application: a socket, and an orderly end."""

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
import uvloop
from starlette.types import ASGIApp

from icdsel.errors import SettingsError
from icdsel.serve.connections import bounded
from icdsel.serve.limits import Limits

_BACKLOG = 2048
_HEAD_BYTES = 64 * 2**10  # of a request's line and headers
_IDLE = 30  # seconds that an unused connection is kept


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        SettingsError: The address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise SettingsError(f"port {port} of {host} is in use: name another one with --port") from None
        raise SettingsError(f"{host}, port {port} cannot be listened at ({error}): see --host and --port") from None
    opened.setblocking(False)
    return opened


def address_of(opened: socket.socket) -> str:
    """The address of a socket that listens, as clients write it."""
    name, port = opened.getsockname()[:2]
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


class _Server(uvicorn.Server):
    """Ends by the signals that `run_app` handles, not by those of uvicorn, which would lose their numbers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_app(
    app: ASGIApp,
    opened: socket.socket,
    grace: int,
    started: Callable[[], None] = lambda: None,
    connections: int = 2 * Limits.at_once,
) -> None:
    """Serves until a signal arrives. New requests are refused then, and those in progress have `grace` seconds to end.

    A second signal ends it at once. At most so many `connections` are open; those that get stuck are closed.

    Raises:
        KeyboardInterrupt: With the number of the signal, at the end.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        http=bounded(connections),  # of h11: httptools has no limit for headers
        h11_max_incomplete_event_size=_HEAD_BYTES,
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=grace,
    )
    server, numbers = _Server(config), list[int]()

    def stop(number: int) -> None:
        server.force_exit = bool(numbers)
        server.should_exit = True
        numbers.append(number)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, stop, number)
        serving = asyncio.create_task(server.serve(sockets=[opened]))
        while not (server.started or serving.done()):
            await asyncio.sleep(0.01)
        if server.started:
            started()
        await serving

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
    if numbers:
        raise KeyboardInterrupt(numbers[0])

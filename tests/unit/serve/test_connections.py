"""Bounds of connections, over a real socket."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn

from icdsel.serve import connections
from icdsel.serve.server import listen

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE = 64 * 2**20


async def app(scope, receive, send) -> None:
    size = LARGE if scope["path"] == "/large" else 2
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(size).encode())]})
    await send({"type": "http.response.body", "body": b"x" * size})


@contextmanager
def server(most: int = 8) -> Iterator[tuple[tuple[str, int], uvicorn.Server]]:
    opened = listen("127.0.0.1", 0)
    running = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="off", http=connections.bounded(most), loop="uvloop")
    )
    thread = threading.Thread(target=running.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.005)
    try:
        yield opened.getsockname(), running
    finally:
        running.should_exit = True
        thread.join(5)
        assert not thread.is_alive()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.4)
    monkeypatch.setattr(connections, "_UNREAD_SECONDS", 0.4)


def is_closed(connection: socket.socket) -> bool:
    try:
        return not connection.recv(4096)
    except ConnectionError:
        return True


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\n", REQUEST])
def test_a_head_that_trickles_is_given_up_also_after_a_request(first):
    with server() as (address, _), socket.create_connection(address, timeout=3) as connection:
        connection.sendall(first)
        if first == REQUEST:
            assert b"200" in connection.recv(4096)
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - started < 3:
                connection.sendall(b"x")
                time.sleep(0.05)
        assert 0.3 < time.monotonic() - started < 2


def test_a_connection_that_sends_nothing_is_closed():
    with server() as (address, _), socket.create_connection(address, timeout=3) as connection:
        assert is_closed(connection)


def test_a_client_that_never_reads_is_given_up_and_a_slow_one_is_not():
    with server() as (address, running):
        with socket.create_connection(address, timeout=3) as connection:
            connection.sendall(REQUEST.replace(b"/ ", b"/large "))
            ends = time.monotonic() + 3
            while not running.server_state.connections:
                time.sleep(0.01)
            while running.server_state.connections and time.monotonic() < ends:
                time.sleep(0.05)
            assert not running.server_state.connections
        with socket.create_connection(address, timeout=3) as connection:
            connection.sendall(REQUEST.replace(b"/ ", b"/large "))
            got, started = 0, time.monotonic()
            while got < LARGE:
                part = connection.recv(2**22)
                assert part
                got += len(part)
                time.sleep(1.2 * len(part) / LARGE)
            assert time.monotonic() - started > 1


def test_more_connections_than_the_limit_are_closed():
    with server(most=2) as (address, _):
        opened = [socket.create_connection(address, timeout=3) for _ in range(3)]
        opened[0].sendall(REQUEST)
        assert b"200" in opened[0].recv(4096) and is_closed(opened[2])
        for connection in opened:
            connection.close()

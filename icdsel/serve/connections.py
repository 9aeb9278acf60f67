"""Connections with bounds: how many, how long a request's head may take, and how long a client may not read."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_HEAD_SECONDS = 20.0  # for the line and headers of a request
_UNREAD_SECONDS = 30.0  # in which a client must take some of what waits for it
_LOOKS = 4  # in the shorter of these times


def bounded(most: int) -> type[H11Protocol]:
    """The protocol of a server with at most so many connections; further ones are closed at once."""

    class Bounded(_Watched):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()

    return Bounded


class _Watched(H11Protocol):
    """Closes a connection whose client neither completes a request's head nor takes its response."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._asking: float | None = None  # the time when it began to send the head of a request, or was opened
        self._stuck: tuple[float, int] = (0.0, 0)  # since when so many bytes wait to be sent
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._asking = self.loop.time()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._asking = None  # the head is complete
        elif self._asking is None:
            self._asking = self.loop.time()

    def _look(self) -> None:
        now, waiting = self.loop.time(), self.transport.get_write_buffer_size()
        since, before = self._stuck
        if not waiting or waiting < before or not before:
            self._stuck = since, _ = now, waiting
        slow = self._asking is not None and now - self._asking > _HEAD_SECONDS
        if slow or (waiting and now - since > _UNREAD_SECONDS):
            self.transport.abort()
            return
        self._watch = self.loop.call_later(min(_HEAD_SECONDS, _UNREAD_SECONDS) / _LOOKS, self._look)

"""Whoever answers: what the proxy needs of it. To add one, write a class with these methods."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from icdsel.vlm.engine import Request


@dataclass(frozen=True)
class Turn:
    """A chat request, checked and with its demonstrations.

    Attributes:
        body: The chat completion that is sent on.
        shown: The same as demonstrations and query, if it asks one question about one image and nothing else.
        system: Whether the client has a system message of its own.
        place: Requests with the same text prefer the same server, whose caches know their images.
        ends: The time of the event loop by which the answer has to be complete.
    """

    body: Mapping[str, Any]
    shown: Request | None
    system: bool
    place: str
    ends: float


class Events:
    """The bytes of a stream as they arrive. Closing it ends the work behind it, also if nobody has begun to read.

    Args:
        parts: The bytes. It raises `ApiError` for a stream that breaks off.
        end: Ends the work behind it; may be called again.
    """

    def __init__(self, parts: AsyncGenerator[bytes, None], end: Callable[[], Awaitable[None]] | None = None) -> None:
        self._parts, self._end = parts, end

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._parts

    async def aclose(self) -> None:
        """Ends it."""
        await self._parts.aclose()  # which does nothing for a generator that has not begun
        if self._end is not None:
            await self._end()


@dataclass(frozen=True)
class Reply:
    """What an upstream replies: a whole body, or the events of a stream.

    Attributes:
        status: The HTTP status.
        body: The body, if it is whole.
        events: The bytes of a stream, which whoever has it must close.
        media_type: What they are.
        headers: Headers that clients need.
    """

    status: int
    body: bytes = b""
    events: Events | None = None
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class Upstream(Protocol):
    """Answers chat requests. Cancelling a call ends the work for it."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    async def chat(self, turn: Turn) -> Reply:
        """The reply to a chat request.

        Raises:
            ApiError: There is none.
        """

    async def models(self, ends: float) -> Reply:
        """The list of its models.

        Raises:
            ApiError: There is none.
        """

    async def close(self) -> None:
        """Ends its connections and threads."""

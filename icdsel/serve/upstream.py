"""Whoever answers: what the proxy needs of it. To add one, write a class with these methods."""

from collections.abc import AsyncGenerator, Mapping
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


@dataclass(frozen=True)
class Reply:
    """What an upstream replies: a whole body, or the events of a stream.

    Attributes:
        status: The HTTP status.
        body: The body, if it is whole.
        events: The bytes of a stream as they arrive; closing it ends the upstream's work. Raises `ApiError`.
        media_type: What they are.
        headers: Headers that clients need.
    """

    status: int
    body: bytes = b""
    events: AsyncGenerator[bytes, None] | None = None
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

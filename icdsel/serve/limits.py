"""What a request may be, and what may be opened for it."""

from dataclasses import dataclass, field
from pathlib import Path

_MB = 2**20


@dataclass(frozen=True)
class Limits:
    """The largest request that is accepted. A larger one gets an error and costs little.

    Attributes:
        body_mb: The body of a request, in MB.
        messages: Messages in it.
        parts: Parts (texts, images) of all its messages.
        image_mb: One image, in MB.
        text: One text, in characters.
        most_shots: Demonstrations in front of a question.
        seconds: For a request altogether, its answer included.
        body_seconds: For the arrival of its body.
        at_once: Requests in progress; more are told to come again.
        batch: Questions that are encoded together.
    """

    body_mb: float = 32
    messages: int = 256
    parts: int = 512
    image_mb: float = 20
    text: int = 16_384
    most_shots: int = 16
    seconds: float = 300
    body_seconds: float = 60
    at_once: int = 256
    batch: int = 32

    @property
    def body_bytes(self) -> int:
        """The largest body, in bytes."""
        return int(self.body_mb * _MB)

    @property
    def image_bytes(self) -> int:
        """The largest image, in bytes."""
        return int(self.image_mb * _MB)


@dataclass(frozen=True)
class Opened:
    """Where images of requests may come from, beside the request itself.

    Attributes:
        hosts: Names or addresses of hosts whose http(s) URLs are opened.
        folder: `file://` URLs below this folder are opened; None for none.
    """

    hosts: frozenset[str] = field(default_factory=frozenset)
    folder: Path | None = None

"""What a request may be, and what may be opened for it."""

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from icdsel.errors import SettingsError

_MB = 2**20


@dataclass(frozen=True)
class Limits:
    """The largest request that is accepted. A larger one gets an error and costs little.

    Attributes:
        body_mb: The body of a request, in MB.
        messages: Messages in it.
        parts: Parts (texts, images) of all its messages.
        image_mb: One image, in MB.
        image_pixels: One image, in pixels.
        text: One text, in characters.
        most_shots: Demonstrations in front of a question.
        seconds: For a request altogether, its answer included.
        body_seconds: For the arrival of its body.
        at_once: Requests in progress; more are told to come again.
        batch: Questions that are encoded together.
        batch_pixels: Pixels of their images, all together, if they are several: they are in memory at once.
    """

    body_mb: float = 32
    messages: int = 256
    parts: int = 512
    image_mb: float = 20
    image_pixels: int = 4_194_304
    text: int = 16_384
    most_shots: int = 16
    seconds: float = 300
    body_seconds: float = 60
    at_once: int = 256
    batch: int = 32
    batch_pixels: int = 16_777_216

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


def named_hosts(text: str) -> frozenset[str]:
    """The hosts of --allow-image-hosts.

    Raises:
        SettingsError: One of them is not the name or address of a host.
    """
    hosts = (re.sub(r"^\[(.*)\]$", r"\1", name.strip().lower()).rstrip(".") for name in text.split(","))
    return frozenset(_host(name) for name in hosts if name)


def _host(name: str) -> str:
    try:
        return str(ip_address(name))
    except ValueError:
        pass
    if re.search(r"[\s:/@?#*\[\]\\]", name):
        raise SettingsError(
            f"--allow-image-hosts: {name!r} is not the name or address of a host: give it without a scheme, port, path "
            "or wildcard, as in images.example.org; all its ports are allowed"
        )
    return name

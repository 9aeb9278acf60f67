"""Whether servers read the pictures whose `file://` addresses they are sent (`--file-urls`)."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from icdsel.data.images import ImageError
from icdsel.errors import VlmError
from icdsel.vlm.server.client import Client
from icdsel.vlm.server.failures import Rejected, ServerFailure
from icdsel.vlm.server.images import SentImages
from icdsel.vlm.server.probes import QUESTION
from icdsel.vlm.server.probing import patiently
from icdsel.vlm.server.remedies import REMEDY_OF_FILES, is_about_files


async def first_file(images: SentImages, paths: Iterable[Path]) -> str | None:
    """The first of the addresses that is a `file://` one; None if all pictures are sent with the prompt."""
    for path in paths:
        try:
            url = await images.url(path)
        except ImageError:  # the prompts that show it fail, and say so
            continue
        if url.startswith("file://"):
            return url
    return None


async def require_readable(client: Client, url: str, model: str, decoding: Mapping[str, Any]) -> None:
    """Has a server read a picture by its address, in a prompt of one token.

    Any other failure is left to the prompts that follow: it may be temporary.

    Raises:
        VlmError: The server reads no such files, or not from this folder.
    """
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], **decoding, "max_tokens": 1}
    try:
        await patiently(lambda: client.chat(json.dumps(body).encode()))
    except Rejected as rejected:
        if is_about_files(str(rejected)):
            raise VlmError(f"{client.address} does not read {url} ({rejected}): {REMEDY_OF_FILES}") from None
    except ServerFailure:
        pass

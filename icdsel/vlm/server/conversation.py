"""Chat messages as OpenAI's protocol has them."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from icdsel.records import Example
from icdsel.vlm.engine import Request
from icdsel.vlm.prompts import Message

_MARKUP = re.compile(r"(?<=<)(?=/?[A-Za-z][\w.:-]*>|[|｜])|(?<=\[)(?=/?[A-Z_]{3,}\])")
"""Inside what may be a marker of some model, such as `<image>`, `</s>` or `[INST]`. Which ones a server's tokenizer has
is not known, so all are broken up, as the known ones are for a model in this process."""


async def openai_messages(messages: Sequence[Message], url: Callable[[Any], Awaitable[str]]) -> list[dict[str, Any]]:
    """The messages with images as addresses, as `with_addresses` gives them; `url` makes the address of an image."""
    images = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
    urls = iter([await url(image) for image in images])
    return with_addresses(messages, lambda _: next(urls))


def with_addresses(messages: Sequence[Message], url: Callable[[Any], str]) -> list[dict[str, Any]]:
    """The messages with images as addresses. Turns without an image are plain strings, which every server takes.

    Args:
        messages: The messages.
        url: Returns the address by which a server gets an image.
    """
    turns: list[dict[str, Any]] = []
    for message in messages:
        parts = message["content"]
        if all(part["type"] == "text" for part in parts):
            turns.append({"role": message["role"], "content": "".join(part["text"] for part in parts)})
            continue
        content = [
            {"type": "image_url", "image_url": {"url": url(part["image"])}} if part["type"] == "image" else part
            for part in parts
        ]
        turns.append({"role": message["role"], "content": content})
    return turns


def without_markup(request: Request) -> Request:
    """The request with markers in its texts broken up, so that a question cannot end a turn or add an image."""

    def plain(example: Example) -> Example:
        return replace(example, question=_broken_up(example.question), answer=_broken_up(example.answer))

    icds, references = tuple(map(plain, request.icds)), tuple(map(_broken_up, request.references))
    return Request(icds, plain(request.query), references)


def _broken_up(text: str) -> str:
    return _MARKUP.sub(" ", text)

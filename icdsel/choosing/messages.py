"""The forms in which a prompt is handed out as chat messages. Loads nothing heavy.

To add a form, write a function that turns a request and its style into messages, and register it:

    MESSAGE_FORMATS.add(MessageFormat("my-form", my_messages, "what it is for"))

`icdsel choose --format my-form` and `Choice.messages_as("my-form")` then write it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from icdsel.registry import Registry
from icdsel.vlm.engine import Request
from icdsel.vlm.prompts import Message, PromptStyle, chat_messages
from icdsel.vlm.server.conversation import with_addresses, without_markup


@dataclass(frozen=True)
class MessageFormat:
    """An entry of `MESSAGE_FORMATS`.

    Attributes:
        name: The name that users type.
        messages: Makes the messages of a request; the number is the maximum number of pixels of an image.
        about: What it is for, in a few words.
    """

    name: str
    messages: Callable[[Request, PromptStyle, int], list[dict[str, Any]]]
    about: str


def _turns(request: Request, style: PromptStyle) -> list[Message]:
    """The messages, worded as for servers: which markers a model's tokenizer has is not known here."""
    plain = without_markup(request)
    return chat_messages(plain.icds, plain.query, style)


def _openai(request: Request, style: PromptStyle, max_image_pixels: int) -> list[dict[str, Any]]:
    from icdsel.vlm.server.images import image_url

    return with_addresses(_turns(request, style), lambda path: image_url(path, max_image_pixels))


def _openai_files(request: Request, style: PromptStyle, max_image_pixels: int) -> list[dict[str, Any]]:
    from icdsel.vlm.server.images import image_url

    return with_addresses(_turns(request, style), lambda path: image_url(path, max_image_pixels, files=True))


def _transformers(request: Request, style: PromptStyle, max_image_pixels: int) -> list[dict[str, Any]]:
    del max_image_pixels  # the images are not opened

    def plain(part: Message) -> Message:
        image = part.get("image")
        return {"type": "image", "path": str(image.absolute())} if isinstance(image, Path) else part

    return [
        {"role": turn["role"], "content": [plain(part) for part in turn["content"]]} for turn in _turns(request, style)
    ]


def addressed_below(address: str, root: Path) -> MessageFormat:
    """OpenAI's protocol with addresses of images on a web server.

    Args:
        address: What comes before the path of an image.
        root: The folder that this address serves; of images elsewhere, only the name follows the address.
    """

    def url(path: Path) -> str:
        below = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        return f"{address.rstrip('/')}/{quote(below)}"

    def messages(request: Request, style: PromptStyle, max_image_pixels: int) -> list[dict[str, Any]]:
        del max_image_pixels  # the images are not opened
        return with_addresses(_turns(request, style), url)

    return MessageFormat(f"openai at {address}", messages, "OpenAI's protocol, the images as addresses of a server")


MESSAGE_FORMATS: Registry[MessageFormat] = Registry(
    "form of messages",
    [
        MessageFormat("openai", _openai, "OpenAI's protocol, the images in it as data: addresses"),
        MessageFormat("openai-files", _openai_files, "OpenAI's protocol, the images as file:// addresses"),
        MessageFormat("transformers", _transformers, "chat templates of transformers, the images as paths"),
    ],
)

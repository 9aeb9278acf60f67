"""The prompt of a request as chat messages: word for word, and byte for byte, what `icdsel infer` sends to servers."""

from collections.abc import Sequence
from typing import Any

from icdsel.records import Example
from icdsel.serve.chooser import Chosen
from icdsel.settings.loading import Settings
from icdsel.vlm.engine import Request
from icdsel.vlm.prompts import PromptStyle, chat_messages
from icdsel.vlm.server.conversation import openai_messages, without_markup
from icdsel.vlm.server.images import SentImages
from icdsel.vlm.task_prompts import TaskPrompts


class PromptWriter:
    """Writes prompts. Images of demonstrations are kept as they are sent, in bounded memory.

    Args:
        settings: How prompts are worded, and the limits of images.
    """

    def __init__(self, settings: Settings) -> None:
        self._style, self._prompts = PromptStyle.of(settings.vlm), TaskPrompts.of(settings.data)
        in_prompts = settings.vlm.model_copy(update={"file_urls": False})
        self._images = SentImages(in_prompts, settings.data.max_image_pixels)

    def request(self, icds: Sequence[Example], query: Example) -> Request:
        """The prompt for an engine."""
        return self._prompts.request(icds, query)

    async def prepare(self, query: Example) -> None:
        """Makes the query's image ready to be sent, while its demonstrations are chosen.

        Raises:
            ImageError: It cannot be read.
        """
        await self._images.url(query.image)

    async def messages(self, chosen: Chosen) -> list[dict[str, Any]]:
        """The prompt for a server.

        Raises:
            ImageError: An image cannot be read.
        """
        plain = without_markup(self.request(chosen.icds, chosen.query))
        return await openai_messages(chat_messages(plain.icds, plain.query, self._style), self._images.url)

    def close(self) -> None:
        """Ends the threads."""
        self._images.close()

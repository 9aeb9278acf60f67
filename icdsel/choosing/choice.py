"""The ICDs that were chosen for a query, and the prompt that shows them."""

from dataclasses import dataclass, field
from typing import Any

from icdsel.choosing.messages import MESSAGE_FORMATS
from icdsel.records import Example
from icdsel.vlm.engine import Request
from icdsel.vlm.prompts import PromptStyle
from icdsel.vlm.task_prompts import TaskPrompts

__all__ = ["Choice"]


@dataclass(frozen=True)
class Choice:
    """The ICDs chosen for one query.

    Attributes:
        query: The query.
        icds: The ICDs in prompt order, the last one next to the query.
        scores: The log-prob (nats) of each ICD under the policy, given the ones before it; None if it was not the
            policy that chose, or if they were not asked for.
        style: How the prompt is worded: as in training.
        prompts: How the task shows examples.
        max_image_pixels: Images with more pixels are not opened.
    """

    query: Example
    icds: tuple[Example, ...]
    scores: tuple[float, ...] | None
    style: PromptStyle = field(repr=False)
    prompts: TaskPrompts = field(repr=False)
    max_image_pixels: int = field(repr=False)

    @property
    def request(self) -> Request:
        """What an engine (`icdsel.vlm.engine`) is asked."""
        return self.prompts.request(self.icds, self.query)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt as chat messages of OpenAI's protocol, images included, for any server and client of it.

        Raises:
            ImageError: An image cannot be read.
        """
        return self.messages_as("openai")

    def messages_as(self, form: str) -> list[dict[str, Any]]:
        """The prompt as chat messages of another form: one of `icdsel.choosing.messages.MESSAGE_FORMATS`.

        Raises:
            SettingsError: There is no such form.
            ImageError: An image cannot be read.
        """
        return MESSAGE_FORMATS.named(form).messages(self.request, self.style, self.max_image_pixels)

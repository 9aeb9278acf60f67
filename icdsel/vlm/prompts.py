"""ICDs and a query become chat messages. Pure: images are passed through untouched.

To add a layout, write a function that turns ICDs and a query into turns, and register it:

    LAYOUTS.add(Layout("my-layout", my_turns))
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from icdsel.registry import Registry
from icdsel.settings.tables import VlmSettings

Message = dict[str, Any]
"""A turn in the form of chat templates: a `role`, and `content`, a list of parts of the type "image" or "text"."""


class Shown(Protocol):
    """What a prompt shows of an example: an image (of any kind), a question, and an answer if it is an ICD."""

    @property
    def image(self) -> Any: ...  # noqa: D102
    @property
    def question(self) -> str: ...  # noqa: D102
    @property
    def answer(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Layout:
    """An entry of `LAYOUTS`.

    Attributes:
        name: What users type.
        turns: Makes the turns of a prompt, without the system turn, from ICDs in prompt order, the query and the style.
        ignores: Settings that have no effect in this layout.
    """

    name: str
    turns: "Callable[[Sequence[Shown], Shown, PromptStyle], list[Message]]"
    ignores: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptStyle:
    """How ICDs and query are worded and laid out.

    Attributes:
        system: The system turn; empty leaves it to the model's own template.
        icd_template: The text of an ICD with its answer.
        query_template: The text of a query, or of an ICD without its answer.
        layout: How the texts and images become turns.
    """

    system: str
    icd_template: str
    query_template: str
    layout: Layout

    @classmethod
    def of(cls, settings: VlmSettings) -> "PromptStyle":
        """The style that the settings name.

        Raises:
            SettingsError: There is no layout of this name.
        """
        layout = LAYOUTS.named(settings.layout)
        return cls(settings.system_prompt, settings.icd_template, settings.query_template, layout)

    def icd_text(self, icd: Shown) -> str:
        """The text of an ICD with its answer."""
        return _fill(self.icd_template, icd.question, icd.answer)

    def query_text(self, example: Shown) -> str:
        """The text of an example without its answer."""
        return _fill(self.query_template, example.question, "")


def harmless(text: str) -> str:
    """A text from a dataset without chat markup, so that a question cannot end a turn or add an image."""
    return text.replace("<|", "< |")


def _fill(template: str, question: str, answer: str) -> str:
    """A template with its placeholders replaced literally (braces in a question stay), stripped as in Lever-Plus."""
    texts = {"{question}": harmless(question), "{answer}": harmless(answer)}
    return re.sub(r"\{question\}|\{answer\}", lambda match: texts[match[0]], template).strip(" ")


def chat_messages(icds: Sequence[Shown], query: Shown, style: PromptStyle) -> list[Message]:
    """The messages of one prompt: the system turn, if any, then the ICDs in the given order and the query."""
    system = [turn("system", text(style.system))] if style.system else []
    return [*system, *style.layout.turns(icds, query, style)]


# ---- layouts ----


def turn(role: str, *parts: Message) -> Message:
    """A turn of "system", "user" or "assistant"."""
    return {"role": role, "content": list(parts)}


def text(content: str) -> Message:
    """A part of a turn that is a text."""
    return {"type": "text", "text": content}


def image(example: Shown) -> Message:
    """A part of a turn that is an example's image."""
    return {"type": "image", "image": example.image}


def _one_turn(icds: Sequence[Shown], query: Shown, style: PromptStyle) -> list[Message]:
    """All images and texts in one user turn, as in Lever-Plus."""
    parts = [part for icd in icds for part in (image(icd), text(style.icd_text(icd)))]
    return [turn("user", *parts, image(query), text(style.query_text(query)))]


def _dialogue(icds: Sequence[Shown], query: Shown, style: PromptStyle) -> list[Message]:
    """A user turn and an assistant turn for each ICD."""
    turns = []
    for icd in icds:
        turns.append(turn("user", image(icd), text(style.query_text(icd))))
        turns.append(turn("assistant", text(harmless(icd.answer))))
    return [*turns, turn("user", image(query), text(style.query_text(query)))]


LAYOUTS = Registry(
    "prompt layout", [Layout("one-turn", _one_turn), Layout("turns", _dialogue, ignores=("vlm.icd_template",))]
)

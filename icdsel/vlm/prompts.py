"""Converts ICDs and a query to chat messages. Images are passed through unchanged, whatever their type.

To add a layout, write a function that turns ICDs and a query into turns, and register it:

    LAYOUTS.add(Layout("my-layout", my_turns))
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from icdsel.records.examples import PLACE
from icdsel.registry import Registry
from icdsel.settings.tables import VlmSettings

Message = dict[str, Any]
"""A turn in the format of chat templates: `role`, and `content`, a list of parts of type "image" or "text"."""


class Shown(Protocol):
    """The parts of an example that a prompt shows: images (of any type), a question, and for an ICD the answer."""

    @property
    def images(self) -> Sequence[Any]: ...  # noqa: D102
    @property
    def question(self) -> str: ...  # noqa: D102
    @property
    def answer(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Layout:
    """An entry of `LAYOUTS`.

    Attributes:
        name: The name that users type.
        turns: Converts ICDs in prompt order, the query and the style to a prompt's turns, without the system turn.
        ignores: Settings that have no effect in this layout.
    """

    name: str
    turns: "Callable[[Sequence[Shown], Shown, PromptStyle], list[Message]]"
    ignores: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptStyle:
    """How ICDs and query are worded and laid out.

    Attributes:
        system: The text of the system turn; if empty, the model's chat template decides.
        icd_template: The text of an ICD with its answer.
        query_template: The text of a query, or of an ICD without its answer.
        layout: How texts and images are arranged in turns.
    """

    system: str
    icd_template: str
    query_template: str
    layout: Layout

    @classmethod
    def of(cls, settings: VlmSettings) -> "PromptStyle":
        """Creates the style from the settings.

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
    """Neutralises chat markup in a text from a dataset, so that a question cannot end a turn or add an image."""
    return text.replace("<|", "< |")


def _fill(template: str, question: str, answer: str) -> str:
    """Fills a template's placeholders, leaving other braces as they are, and strips spaces as Lever-Plus does."""
    texts = {"{question}": harmless(question), "{answer}": harmless(answer)}
    return re.sub(r"\{question\}|\{answer\}", lambda match: texts[match[0]], template).strip(" ")


def chat_messages(icds: Sequence[Shown], query: Shown, style: PromptStyle) -> list[Message]:
    """The messages of one prompt: the system turn, if any, then the ICDs in the given order and the query."""
    system = [turn("system", text(style.system))] if style.system else []
    return [*system, *style.layout.turns(icds, query, style)]


# ---- layouts ----


def turn(role: str, *parts: Message) -> Message:
    """Creates a turn; `role` is "system", "user" or "assistant"."""
    return {"role": role, "content": list(parts)}


def text(content: str) -> Message:
    """Creates a text part of a turn."""
    return {"type": "text", "text": content}


def image(content: Any) -> Message:
    """Creates an image part of a turn."""
    return {"type": "image", "image": content}


def parts(example: Shown, content: str) -> list[Message]:
    """The parts of an example: its images, and the text, which may say where each of them stands (`PLACE`)."""
    pieces = content.split(PLACE)
    if len(pieces) - 1 != len(example.images):
        return [*map(image, example.images), text("".join(pieces))]
    first, *others = pieces
    placed = [text(first)] if first.strip() else []
    for own, piece in zip(example.images, others, strict=True):
        placed += [image(own), text(piece)] if piece.strip() else [image(own)]
    return placed


def _one_turn(icds: Sequence[Shown], query: Shown, style: PromptStyle) -> list[Message]:
    """All images and texts in one user turn, as in Lever-Plus."""
    shown = [part for icd in icds for part in parts(icd, style.icd_text(icd))]
    return [turn("user", *shown, *parts(query, style.query_text(query)))]


def _dialogue(icds: Sequence[Shown], query: Shown, style: PromptStyle) -> list[Message]:
    """A user turn and an assistant turn for each ICD."""
    turns = []
    for icd in icds:
        turns.append(turn("user", *parts(icd, style.query_text(icd))))
        turns.append(turn("assistant", text(harmless(icd.answer))))
    return [*turns, turn("user", *parts(query, style.query_text(query)))]


LAYOUTS = Registry(
    "prompt layout", [Layout("one-turn", _one_turn), Layout("turns", _dialogue, ignores=("vlm.icd_template",))]
)

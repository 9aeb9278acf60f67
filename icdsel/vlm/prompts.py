"""ICDs and a query become chat messages. Pure: images are passed through untouched."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Message = dict[str, Any]


class Shown(Protocol):
    """What a prompt needs of an example: an image (of any kind), a question, the answer to show."""

    @property
    def image(self) -> Any: ...  # noqa: D102
    @property
    def question(self) -> str: ...  # noqa: D102
    @property
    def answer(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class PromptStyle:
    """How demonstrations and query are worded and laid out.

    `layout` is "one-turn" (all images and texts in one user turn, as Lever-Plus does) or "turns" (a user turn
    and an assistant turn for each ICD). An empty `system` leaves the system turn to the model's own template.
    """

    system: str
    icd_template: str
    query_template: str
    layout: str = "one-turn"


def _user(example: Shown, text: str) -> list[Message]:
    return [{"type": "image", "image": example.image}, {"type": "text", "text": text}]


def harmless(text: str) -> str:
    """Text from a dataset without the marks of chat markup, so that a question cannot end a turn or add an image."""
    return text.replace("<|", "< |")


def chat_messages(icds: Sequence[Shown], query: Shown, style: PromptStyle) -> list[Message]:
    """The messages of one prompt: ICDs in the order given, then the query.

    Texts are substituted literally, so braces in a question are harmless; spaces around the whole go, as in
    Lever-Plus.
    """

    def fill(template: str, example: Shown, answer: str = "") -> str:
        texts = {"{question}": harmless(example.question), "{answer}": harmless(answer)}
        return re.sub(r"\{question\}|\{answer\}", lambda mark: texts[mark[0]], template).strip(" ")

    messages: list[Message] = []
    if style.system:
        messages.append({"role": "system", "content": [{"type": "text", "text": style.system}]})
    if style.layout == "one-turn":
        content = [part for icd in icds for part in _user(icd, fill(style.icd_template, icd, icd.answer))]
        content += _user(query, fill(style.query_template, query))
        return [*messages, {"role": "user", "content": content}]
    for icd in icds:
        messages.append({"role": "user", "content": _user(icd, fill(style.query_template, icd))})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": harmless(icd.answer)}]})
    return [*messages, {"role": "user", "content": _user(query, fill(style.query_template, query))}]

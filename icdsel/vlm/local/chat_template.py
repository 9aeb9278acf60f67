"""A model's chat template: how it renders prompts, and whether these show what the messages contain.

A template can leave out turns, gather all images of a turn before its texts, write today's date, or open a thought.
All of this is found out with small conversations when the model is opened, so a prompt never differs silently from
what its layout promises.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import takewhile
from typing import Any

from jinja2 import Environment, TemplateError, meta

from icdsel.errors import VlmError
from icdsel.vlm.prompts import LAYOUTS, Message, PromptStyle, chat_messages, text, turn

MARK = "QZX"  # a text that does not occur in any chat template
TODAY = datetime(2024, 7, 26)
"""The date in every prompt whose template asks for today's: the one that Llama's templates fall back on."""
THINKS = "the model begins to think instead of answering: choose one that answers directly, often named -Instruct"
_SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates let the caller turn thinking off."""
_THOUGHT = re.compile(r"[<\[◁][^<>\[\]◁▷\s]*(?:think|thought|reason)[^<>\[\]◁▷\s]*[>\]▷]", re.IGNORECASE)
_THINKS = re.compile(r"[<\[◁]\|?(?:\w+[:_])*(?:think|thinking|thought|reasoning)\|?[>\]▷]", re.IGNORECASE)
_CLOSES = re.compile(r"/|(?<![a-z])end", re.IGNORECASE)
_REFUSALS = (TemplateError, TypeError, ValueError)
"""What rendering raises if a template does not accept a conversation."""


@dataclass(frozen=True)
class _Shown:
    """An example for testing a template."""

    image: str
    question: str
    answer: str = ""

    @property
    def images(self) -> tuple[str]:
        return (self.image,)


class ChatTemplate:
    """Renders messages with the chat template of a processor.

    Args:
        processor: The processor; a tokenizer belongs to it.
        name: The model's name, for messages.
        style: How prompts are laid out.

    Attributes:
        before_answer: What the template writes between a prompt and an answer, often nothing or a space.
        after_answer: What it writes between an answer and the text of the next user turn.

    Raises:
        VlmError: There is no template, or it cannot show a prompt as the style lays it out; the message says what to
            type.
    """

    def __init__(self, processor: Any, name: str, style: PromptStyle) -> None:
        self._processor, self._name, self._style = processor, name, style
        self._source = self._template()
        self._options: dict[str, Any] = dict.fromkeys(_variables(self._source) & set(_SWITCHES), False)
        if "strftime_now" in self._source:
            self._options["chat_template"] = _FIXED_DATE + self._source
        self._plain_text = self._takes_plain_text()
        self._require_stable()
        self._thought, self.before_answer = self._before_answers()
        self.after_answer = self._after_answers()
        self._require_shown()

    def prompt(self, messages: Sequence[Message]) -> str:
        """The prompt up to where the answer begins; a thought that the template opens is closed, and empty.

        Raises:
            Exception: The template fails.
        """
        return self._render(messages, True) + self._thought

    def _render(self, messages: Sequence[Message], generation_prompt: bool, plain_text: bool | None = None) -> str:
        """Renders messages; with `plain_text`, the content of turns without images is a string, not parts."""
        turns: list[Message] = []
        for message in messages:
            parts = [{k: v for k, v in part.items() if k != "image"} for part in message["content"]]
            as_string = self._plain_text if plain_text is None else plain_text
            if as_string and all(part["type"] == "text" for part in parts):
                turns.append(message | {"content": "".join(part["text"] for part in parts)})
            else:
                turns.append(message | {"content": parts})
        return str(
            self._processor.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generation_prompt, **self._options
            )
        )

    # ---- what the template accepts ----

    def _template(self) -> str:
        templates = getattr(self._processor, "chat_template", None)
        if isinstance(templates, dict):
            templates = templates.get("default")
        if not templates:
            raise VlmError(
                f"the processor of {self._name} has no chat template (chat_template.jinja), so the form of its prompts "
                f"is unknown: choose a model that was tuned for chat, often named -Instruct or -it"
            )
        return str(templates)

    def _takes_plain_text(self) -> bool:
        """Whether this template needs a string as the content of turns without an image."""
        first, *turns = _conversation(self._style.system or MARK)
        system = [first] if self._style.system else []
        for shown in (turns, turns[-1:]):  # some templates accept, or show, a single turn
            reasons = [self._rejection([*system, *shown], plain) for plain in (False, True)]
            if None in reasons:
                return reasons[0] is not None
            if system and None in [self._rejection(shown, plain) for plain in (False, True)]:
                raise VlmError(
                    f"the chat template of {self._name} does not accept a system turn ({reasons[0]}): "
                    f'leave it out with --system-prompt ""'
                )
        raise VlmError(f"the chat template of {self._name} cannot lay out turns with images: {reasons[0]}")

    def _rejection(self, messages: Sequence[Message], plain_text: bool) -> str | None:
        """Why the template cannot lay out these turns; None if it can."""
        try:
            rendered = self._render(messages, True, plain_text)
        except _REFUSALS as error:
            return str(error)
        if lost := [wanted for wanted in _texts(messages) if wanted not in rendered]:
            return f"it leaves out {lost[0]!r}"
        return "it shows parts of a turn as code" if "{'type'" in rendered else None

    def _require_stable(self) -> None:
        _, question, *_ = _conversation("")
        if len({self._render([question], True) for _ in range(8)}) > 1:
            raise VlmError(
                f"the chat template of {self._name} renders the same messages differently each time, so answers could "
                f"not be repeated: replace its chat_template.jinja"
            )

    # ---- what stands around an answer ----

    def _before_answers(self) -> tuple[str, str]:
        """The end of a thought that answers follow, and what else stands between a prompt and an answer."""
        _, question, answer, *_ = _conversation("")
        opened = self._render([question], True)
        before = ""
        try:
            complete = self._render([question, answer], False)
        except _REFUSALS:
            complete = opened
        if complete.startswith(opened) and MARK in complete[len(opened) :]:
            before = complete[len(opened) : complete.rindex(MARK)]
        closed = [tag for tag in _THOUGHT.finditer(before) if _CLOSES.search(tag[0])]
        if closed:  # the template's own form of an answer without a thought
            end = closed[-1].end()
            end += len(before[end:]) - len(before[end:].lstrip())
            return before[:end], before[end:]
        prompted = opened[opened.rindex(_texts([question])[-1]) :]
        tags = list(_THOUGHT.finditer(prompted))
        if not tags or _CLOSES.search(tags[-1][0]):
            return "", before
        break_after = "\n" if prompted[tags[-1].end() :].startswith("\n") else ""
        return f"{break_after}{self._closing(tags[-1][0])}{2 * break_after}", ""

    def _closing(self, opening: str) -> str:
        """The tag that closes a thought which begins with `opening`."""
        at = len(list(takewhile(lambda letter: letter in "<[◁|", opening)))
        ends = [f"{opening[:at]}/{opening[at:]}"]
        ends += [
            opening.replace(a, b) for a, b in (("begin", "end"), ("start", "end"), ("START", "END")) if a in opening
        ]
        added = self._processor.tokenizer.get_added_vocab()
        known = [end for end in ends if end in added or end in self._source]
        if not known:
            raise VlmError(
                f"the chat template of {self._name} makes the model think before it answers ({opening}), and there is "
                f"no known way to end the thought, so that answers would be cut off: choose a model that answers "
                f"directly, often named -Instruct"
            )
        return known[0]

    def _after_answers(self) -> str:
        _, question, answer, *_ = _conversation("")
        following = turn("user", text(f"And then {MARK}?"))
        for messages in ([question, answer, following], [question, answer]):
            try:
                rendered = self._render(messages, False)
            except _REFUSALS:
                continue
            if MARK in rendered:
                after = rendered[rendered.index(MARK) + len(MARK) :]
                return after.partition(_texts([following])[0])[0]
        return ""

    # ---- what a prompt shows ----

    def _require_shown(self) -> None:
        """Rejects a template that does not show two demonstrations and a query as they are laid out."""
        fault = self._fault(self._style)
        if fault is None:
            return
        layouts = {name: replace(self._style, layout=layout) for name, layout in LAYOUTS.items()}
        fit = [name for name, style in layouts.items() if self._fault(style) is None]
        remedy = f"use --layout {' or '.join(fit)}" if fit else "no layout fits it, so choose another model"
        raise VlmError(
            f"the chat template of {self._name} does not fit the layout {self._style.layout.name}: {fault}; {remedy}"
        )

    def _fault(self, style: PromptStyle) -> str | None:
        """What is wrong with a prompt of this style; None if nothing is."""
        icds = [_Shown("1", f"What is {MARK}a?", f"{MARK}b"), _Shown("2", f"What is {MARK}c?", f"{MARK}d")]
        messages = chat_messages(icds, _Shown("3", f"What is {MARK}e?"), style)
        try:
            pieces = self._pieces(messages)
        except _REFUSALS as error:
            return f"it rejects demonstrations ({error})"
        except _LostError as lost:
            return f"it leaves out or moves the text {str(lost)!r}"
        if self._moves_images(messages, pieces):
            return "it leaves out images, or gathers them before the texts, so demonstrations are not by their images"
        return self._fault_of_roles(messages, pieces)

    def _pieces(self, messages: Sequence[Message]) -> list[str]:
        """What is rendered before, between and after the texts of the turns.

        Raises:
            _LostError: A text is missing, or not behind the one before it.
        """
        rendered, pieces = self._render(messages, True), []
        for wanted in _texts(message for message in messages if message["role"] != "system"):
            piece, found, rendered = rendered.partition(wanted)
            if not found:
                raise _LostError(wanted)
            pieces.append(piece)
        return [*pieces, rendered + self._thought]

    def _moves_images(self, messages: Sequence[Message], pieces: Sequence[str]) -> bool:
        """Whether some image, if it is left out, changes nothing in the place where it should stand."""
        place = 0
        for number, message in enumerate(messages):
            for k, part in enumerate(message["content"]):
                place += message["role"] != "system" and bool(_texts([message | {"content": [part]}]))
                if part["type"] != "image" or len(message["content"]) == 1:
                    continue
                others = message["content"][:k] + message["content"][k + 1 :]
                without = [*messages[:number], message | {"content": others}, *messages[number + 1 :]]
                try:
                    if self._pieces(without)[place] == pieces[place]:
                        return True
                except (*_REFUSALS, _LostError):
                    continue  # it needs the image, so it shows it
        return False

    @staticmethod
    def _fault_of_roles(messages: Sequence[Message], pieces: Sequence[str]) -> str | None:
        """An answer in a turn of its own must be introduced as the prompt's last words introduce the model's."""
        place = 0
        for message in messages:
            if message["role"] == "assistant" and place and not _begins(pieces[-1], pieces[place]):
                return "it shows the answers of demonstrations in another form than it asks for"
            place += 0 if message["role"] == "system" else len(_texts([message]))
        return None


class _LostError(Exception):
    """A text that a rendered prompt does not show."""


def _begins(whole: str, part: str) -> bool:
    return "".join(whole.split()).startswith("".join(part.split()))


def _texts(messages: Iterable[Message]) -> list[str]:
    """The texts of turns, without spaces around them, since templates may strip them."""
    texts = (part["text"].strip() for message in messages for part in message["content"] if part["type"] == "text")
    return [each for each in texts if each]


def _conversation(system: str) -> list[Message]:
    """A conversation for testing a chat template."""
    image = {"type": "image"}
    return [
        turn("system", text(system)),
        turn("user", image, text("What is this?")),
        turn("assistant", text(MARK)),
        turn("user", image, text("And that?")),
    ]


def _variables(source: str) -> set[str]:
    """The variables that a template expects from its caller."""
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)  # a tag of transformers' own
    try:
        return meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain))
    except TemplateError:  # rendering explains it
        return set()


def thinks(answer: str) -> bool:
    """Whether an answer begins with a thought."""
    return _THINKS.match(answer.lstrip()) is not None


def _fixed_date() -> str:
    """A macro `strftime_now` that formats `TODAY`, in place of the function of this name that transformers defines."""
    kinds = [f"%-{kind}" for kind in "dmHIMSj"] + [f"%{kind}" for kind in "aAbBcdfHIjmMpSUwWxXyYzZGuV"]
    values = {kind: TODAY.strftime(kind) for kind in kinds} | {"%D": TODAY.strftime("%m/%d/%y"), "%F": "2024-07-26"}
    filled = "".join(f" | replace({kind!r}, {value!r})" for kind, value in values.items())
    return "{% macro strftime_now(format) -%}{{ format" + filled + " }}{%- endmacro %}"


_FIXED_DATE = _fixed_date()

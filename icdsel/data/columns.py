"""Which field of a record holds the question, the image and so on: usual names, or those of `--columns`."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from icdsel.data.choices import LETTERS
from icdsel.data.image_marks import PLAIN
from icdsel.data.parsing import Record, quoted

NUMBERED = ""
"""As the field of ids in `--columns`: rows are numbered, whatever ids they have."""

_TURNS = ("conversations", "messages")
_ASKS, _REPLIES = ("human", "user"), ("gpt", "assistant")

USUAL: dict[str, tuple[str, ...]] = {
    "question_id": ("question_id", "questionId", "questionID", "qid", "uid", "uuid", "id", "index"),
    "image": (
        *("image", "image_path", "image_file", "file_name", "filename", "image_name"),
        *("img", "img_path", "picture", "images"),
    ),
    "question": ("question", "query", "question_text", "prompt"),
    "answers": ("answers", "direct_answers", "references"),
    "answer": ("answer", "multiple_choice_answer", "label"),
    "image_id": ("image_id", "imageId", "img_id"),
    "split": ("split", "set_name"),
    "options": ("options", "choices"),
    "hint": ("hint",),
    "pool": ("pool",),
    "task": ("task",),
}
"""The fields of an example, each with the names that datasets usually give it, the first that a record has counts."""

_KEPT = ("question_type", "answer_type")
_NUMBERED_IMAGE = re.compile(r"image_?([1-9]\d{0,2})")


class Columns:
    """Maps the records of a dataset to the fields of `USUAL`.

    Args:
        chosen: Names of columns by field, as `--columns` has them; a field that is not chosen has its usual names.
    """

    def __init__(self, chosen: Mapping[str, str]) -> None:
        self._chosen = dict(chosen)
        self._plans: dict[tuple[str, ...], dict[str, str]] = {}  # by the names of a record, as most are alike
        self._several: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
        self.used: dict[str, str] = {}
        """The column of each field, of those that have another name, in the records so far."""

    def plan(self, names: tuple[str, ...]) -> dict[str, str]:
        """The column of each field that a record with these names has."""
        if names not in self._plans:
            plan = {}
            for field, usual in USUAL.items():
                options = (self._chosen[field],) if field in self._chosen else usual
                if found := next((name for name in options if name in names), None):
                    plan[field] = found
            if plan.get("options") == "choices" and "options" not in self._chosen and _has_human_answers(plan):
                del plan["options"]
            self._plans[names] = plan
            self.used |= {field: name for field, name in plan.items() if name != field}
        return self._plans[names]

    def several(self, names: tuple[str, ...]) -> dict[str, dict[str, str]]:
        """The columns of each field that has several: of images by number, and of options by letter.

        They count where no single column has the field: `image_1`, `image_2`, ... (or `image1`), and `A`, `B`, ...
        """
        if names not in self._several:
            plan = self.plan(names)
            several: dict[str, dict[str, str]] = {}
            if "image" not in plan and "image" not in self._chosen:
                numbered = {match[1]: name for name in names if (match := _NUMBERED_IMAGE.fullmatch(str(name)))}
                several["image"] = dict(sorted(numbered.items(), key=lambda pair: int(pair[0])))
            if {"A", "B"}.issubset(names) and "options" not in plan and "options" not in self._chosen:
                several["options"] = {letter: letter for letter in LETTERS if letter in names}
            self._several[names] = {field: columns for field, columns in several.items() if columns}
        return self._several[names]

    def needed(self, names: tuple[str, ...]) -> list[str]:
        """Those of some columns that have a field."""
        plan, several = self.plan(names), self.several(names)
        own = [*plan.values(), *(name for columns in several.values() for name in columns.values())]
        return [*dict.fromkeys([*own, *(name for name in (*_KEPT, *_TURNS) if name in names)])]

    def records(self, record: Any) -> Iterator[Record]:
        """The record with the names of fields; a conversation about an image gives a record for each question.

        Raises:
            ValueError: It is not an object, or a conversation in an unknown form.
        """
        if not isinstance(record, dict):
            raise ValueError(f"it is {quoted(record)}, not an object")
        plan = self.plan(tuple(record))
        mapped = {field: record[name] for field, name in plan.items()}
        mapped |= {name: record[name] for name in _KEPT if name in record}
        for field, columns in self.several(tuple(record)).items():
            values = {key: record[name] for key, name in columns.items()}
            mapped[field] = values if field == "options" else _in_order(values)
        if plan.get("answer") == "label" and not isinstance(mapped["answer"], str) and "options" not in mapped:
            del mapped["answer"]  # the number of a class, which is no answer
        turns = next((record[name] for name in _TURNS if name in record), None)
        if "question" in mapped or turns is None:
            yield mapped
        else:
            yield from _asked(mapped, turns)

    def is_chosen(self, field: str) -> bool:
        """Whether the column of a field is chosen."""
        return bool(self._chosen.get(field))

    def missing(self, field: str, record: Mapping[str, Any]) -> str:
        """What to say of a record without this field: what it has, and how to name the column."""
        option = "id" if field == "question_id" else field
        named = f" (--columns {option}={self._chosen[field]})" if self._chosen.get(field) else ""
        return f'it has no "{field}"{named}; it has {", ".join(map(str, record)) or "nothing"}' + (
            "" if named else f": name the column with --columns {option}=COLUMN"
        )


def _has_human_answers(plan: Mapping[str, str]) -> bool:
    """Whether the answers are what people wrote, and not one of the choices, as in A-OKVQA."""
    return "answers" in plan and "answer" not in plan


def _in_order(images: Mapping[str, Any]) -> list[Any]:
    """Images by number as a list, in which that with the number 1 comes first; None where there is none."""
    by_number = {int(number): image for number, image in images.items() if image}
    return [by_number.get(number) for number in range(1, max(by_number, default=0) + 1)]


def _asked(record: Record, turns: Any) -> Iterator[Record]:
    """A record for each question of a conversation, as LLaVA's lists have them; the reply is its answer."""
    try:
        said = [(turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) for turn in turns]
    except (AttributeError, TypeError):
        raise ValueError(f"its conversation is {quoted(turns)}, not a list of turns") from None
    said = [(who, text) for who, text in said if who != "system"]
    pairs = list(zip(said[::2], said[1::2], strict=False))
    if not pairs or not all(
        asker in _ASKS and replier in _REPLIES and isinstance(question, str)
        for (asker, question), (replier, _) in pairs
    ):
        raise ValueError("its conversation does not alternate between a person's questions and the model's replies")
    several = isinstance(record.get("image"), list) and len(record["image"]) > 1
    for number, ((_, question), (_, reply)) in enumerate(pairs):
        asked = question if several else question.replace(PLAIN, "")
        own = record | {"question": asked.strip(), "answer": reply}
        if len(pairs) > 1 and record.get("question_id") is not None:
            own["question_id"] = f"{record['question_id']}-{number}"
        yield own

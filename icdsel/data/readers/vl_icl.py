"""Reader of the folders of VL-ICL Bench (Zong et al., 2025): `query.json` and `support.json`.

Facts about its files are from https://huggingface.co/datasets/ys-zong/VL-ICL and https://github.com/ys-zong/VL-ICL.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from icdsel.data.parsing import quoted
from icdsel.data.readers.base import Reader
from icdsel.data.rows import Table
from icdsel.errors import DataError, Refuse, UserError, stop
from icdsel.records import QuestionId
from icdsel.records.values import is_id
from icdsel.settings.tables import DataSettings
from icdsel.store.json_reading import read_top

SUPPORT_QUESTION = "This is a"
"""What VL-ICL asks about the support images of open-ended MiniImageNet, which have classes alone."""

_QUERY, _SUPPORT = "query.json", "support.json"
_OPERATORS = {"+": "plus", "-": "minus", "x": "times"}  # in the order of a support example's answers
_PAIRS = ("same", "diff")
_MADE_IMAGES = ("task_label", "latent")  # fields of the tasks whose answers are images

_Objects = Iterator[tuple[str, QuestionId, dict[str, Any]]]
"""The place, the id and the fields of each object of a file."""


class VlIcl(Reader):
    """A task of VL-ICL Bench, in which a model learns from demonstrations alone.

    Support examples are the training split, queries the validation split. Where the benchmark binds a query to a part
    of the support, that is its pool: in operator induction the examples of its operator, in open-ended MiniImageNet its
    own. The examples of such a part are each other's pools.
    """

    name = "VL-ICL"
    form = "a folder of VL-ICL Bench (open_mi/, clevr/, operator_induction/, ...), with query.json and support.json"

    def recognises(self, path: Path) -> bool:
        """By its two files."""
        return path.is_dir() and all((path / name).is_file() for name in (_QUERY, _SUPPORT))

    def tables(self, path: Path, settings: DataSettings) -> Sequence[Table]:  # noqa: ARG002
        """A table of the support, and one of the queries."""
        query, support = path / _QUERY, path / _SUPPORT
        _, _, first = next(_objects(query, stop), ("", 0, {}))
        if any(name in first for name in _MADE_IMAGES):
            raise DataError(
                f"{query}: the answers of this task are images, and icdsel has answers in words alone: use a task such "
                "as open_mi, clevr, operator_induction, textocr or matching_mi"
            )
        own, operators = "support" in first, "operator" in first
        in_support = partial(_in_queries, query) if own else partial(_in_support, support, operators)
        asked = partial(_queries, query, support if operators else None)
        return [
            Table(query if own else support, in_support, path, "train", "support"),
            Table(query, asked, path, "validation", "query"),
        ]


def _in_support(path: Path, operators: bool, refuse: Refuse) -> Iterator[tuple[str, Any]]:
    """The support examples: each alone, a pair of images that match and one that do not, or one for each operator."""
    ids = [key for _, key, _ in _objects(path, _ignore)] if operators else []
    for place, key, example in _objects(path, refuse):
        if all(isinstance(example.get(kind), dict) for kind in _PAIRS):
            for kind in _PAIRS:
                yield place, example[kind] | {"question_id": f"{key}-{kind}"}
        elif operators:
            answers = example.get("answer")
            if not isinstance(answers, list) or len(answers) != len(_OPERATORS):
                told = f"it should have {len(_OPERATORS)} answers, one for each of {', '.join(_OPERATORS)}"
                refuse(DataError(f"{path}: {place}: {told}, but its answer is {quoted(answers)}"))
                continue
            for operator, answer in zip(_OPERATORS, answers, strict=True):
                own = _with_operator(key, operator)
                others = [one for one in _pool(ids, operator) if one != own]
                yield place, example | {"question_id": own, "answer": answer, "pool": others or None}
        else:
            yield place, example


def _queries(path: Path, support: Path | None, refuse: Refuse) -> Iterator[tuple[str, Any]]:
    """The queries, with the pools that they are bound to; `support` if they are bound by their operator."""
    ids = [key for _, key, _ in _objects(support, _ignore)] if support else []
    for place, key, query in _objects(path, refuse):
        if "support" in query:
            own = [row["question_id"] for row in _own_support(path, place, key, query, refuse)]
            if own:
                yield place, query | {"question_id": key, "pool": own}
        elif support is None:
            yield place, query
        elif query.get("operator") in _OPERATORS:
            yield place, query | {"pool": _pool(ids, query["operator"])}
        else:
            told = f"its operator is {quoted(query.get('operator'))}, not one of {', '.join(_OPERATORS)}"
            refuse(DataError(f"{path}: {place}: {told}"))


def _in_queries(path: Path, refuse: Refuse) -> Iterator[tuple[str, Any]]:
    """The support examples of all queries that bring their own."""
    for place, key, query in _objects(path, refuse):
        rows = list(_own_support(path, place, key, query, refuse))
        ids = [row["question_id"] for row in rows]
        for row in rows:
            yield place, row | {"pool": [one for one in ids if one != row["question_id"]] or None}


def _own_support(
    path: Path, place: str, key: QuestionId, query: Mapping[str, Any], refuse: Refuse
) -> Iterator[dict[str, Any]]:
    """The support examples of a query: images by class."""
    classes = query.get("support")
    if (
        not isinstance(classes, dict)
        or not classes
        or not all(isinstance(held, dict) and isinstance(held.get("images"), list) for held in classes.values())
    ):
        told = 'its "support" should hold the images of each class, as {"dax": {"images": [...]}, ...}'
        refuse(DataError(f"{path}: {place}: {told}, but is {quoted(classes)}"))
        return
    for name, held in classes.items():
        for number, image in enumerate(held["images"]):
            yield {
                "question_id": f"{key}-{name}-{number}",
                "image": image,
                "question": SUPPORT_QUESTION,
                "answer": name,
            }


def _objects(path: Path, refuse: Refuse) -> _Objects:
    """The objects of a list; those without an id are numbered."""
    for number, (key, place, value) in enumerate(read_top(path)):
        if key or not isinstance(value, dict):
            refuse(DataError(f"{path}: {place}: the file should be a list of objects, but this is {quoted(value)}"))
            continue
        given = value.get("question_id", value.get("id"))
        yield place, given if is_id(given) else number, value


def _with_operator(key: QuestionId, operator: str) -> str:
    return f"{key}-{_OPERATORS[operator]}"


def _pool(keys: Sequence[QuestionId], operator: str) -> list[str]:
    return [_with_operator(key, operator) for key in keys]


def _ignore(_: UserError) -> None:
    """For files that are read twice: their errors are told once."""

"""Checks the options of a dataset against its training split: what no demonstration can show."""

from collections import Counter
from collections.abc import Mapping, Sequence

from icdsel.check.findings import Findings, Kind
from icdsel.records import Example
from icdsel.tasks.normalisation import option_form

NEVER_SHOWN = Kind(
    "right options are the answer of no training example",
    "no demonstration can show them: add training examples of them, or leave these queries out",
    "warning",
)


def check_classes(found: Findings, splits: Mapping[str, Sequence[Example]]) -> None:
    """Adds the right answers of held-out queries that no training example has.

    Only where all queries have the same options, as classes: options of their own are in no other example.
    """
    held_out = [example for split, examples in splits.items() if split != "train" for example in examples]
    examples = [*splits.get("train", ()), *held_out]
    if not splits.get("train") or len({example.options for example in examples}) != 1:
        return
    shown = {option_form(answer) for example in splits["train"] for answer in example.answers}
    wanted = Counter(
        option for example in held_out for option in example.options if option_form(option) in _forms(example)
    )
    for option, count in wanted.items():
        if option_form(option) not in shown:
            found.add(NEVER_SHOWN, f"{option!r}: {count} queries", count, of=len(held_out))


def _forms(example: Example) -> set[str]:
    return set(map(option_form, example.answers))

"""What `check` says about options and classes."""

from dataclasses import replace
from pathlib import Path

from icdsel.check.answers import UNFIT, check_answers
from icdsel.check.classes import NEVER_SHOWN, check_classes
from icdsel.check.findings import Findings
from icdsel.records import Example
from icdsel.tasks.base import TASKS

CLASSES = ("cat", "dog", "cow")


def example(number: int, answer: str, options: tuple[str, ...] = CLASSES) -> Example:
    return Example(number, number, Path(f"{number}.png"), "What?", answer, (answer,), options=options)


def of_classes(train: list[Example], validation: list[Example]) -> Findings:
    found = Findings()
    check_classes(found, {"train": train, "validation": validation})
    return found


def test_classes_that_no_demonstration_can_show_are_counted_and_named() -> None:
    train = [example(1, "cat"), example(2, "Dog.")]
    found = of_classes(train, [example(3, "cow"), example(4, "dog"), example(5, "cow")])
    [finding] = found.listed()
    assert (finding.problem, finding.count, finding.examples) == (NEVER_SHOWN.problem, 2, ("'cow': 2 queries",))


def test_options_of_their_own_and_splits_without_training_are_no_classes() -> None:
    own = [example(3, "sun", ("sun", "moon"))]
    assert not of_classes([example(1, "cat")], own).listed()
    assert not of_classes([], [example(3, "cow")]).listed()
    assert not of_classes([example(1, "cat")], [replace(example(3, "cow"), answers=())]).listed()


def test_unfit_options_are_errors_and_letters_are_no_wrong_demonstrations() -> None:
    task, found = TASKS["choice"], Findings()
    placed = [("train, question 1", example(1, "cat")), ("train, question 2", example(2, "sun"))]
    check_answers(found, placed, 2, task, task.metrics["accuracy"], exact=False)
    [finding] = found.listed()
    assert finding.problem == UNFIT.problem
    assert "question 2: its answer 'sun' is none of its options" in finding.examples[0]

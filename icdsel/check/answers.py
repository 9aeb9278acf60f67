"""Checks the answers of a dataset: what is right by the metric, what demonstrations show, and what the VLM may say."""

import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from icdsel.check.findings import Findings, Kind
from icdsel.records import Example
from icdsel.settings.presets import TINY_VLM
from icdsel.settings.tables import VlmSettings
from icdsel.tasks.base import Metric, Task

NO_ANSWER = Kind("questions have only blank answers or punctuation", "write the answers, or leave the record out")
NOTHING_SHOWN = Kind("questions have a blank answer as demonstrations", 'give the record an "answer"', "warning")
EMPTY_ANSWERS = Kind(
    "questions have answers that an empty prediction matches",
    "leave blank answers out; for letters and articles (A, the) use --metric normalised",
    "warning",
)
WRONG_SHOWN = Kind(
    "questions show an answer as demonstrations that the metric counts as wrong",
    'correct "answer" or "answers"; for stemmed answers use --metric lemmatised or normalised',
    "warning",
)
EXACT = Kind(
    "questions have answers that are only right letter by letter (Yes is wrong for yes)",
    "--metric normalised compares without case, articles and punctuation; official is the rule of VQAv2's publications",
    "warning",
)
UNFIT = Kind("questions are unfit for the task", "correct the records, or choose another --task")
_BUNDLED_TOKENIZER = Path(__file__).parents[1] / "tiny_vlm" / "weights" / "tokenizer.json"


def few_answers(task: Task) -> Kind:
    """Questions with fewer references than the task's metric is defined for."""
    return Kind(
        f"questions have fewer than {task.usual_references} answers",
        f"the {task.score_name} is coarser there: do not compare it with other figures",
        "warning",
    )


def too_long(limit: int, unit: str, needed: int) -> Kind:
    """Questions none of whose answers fits into `limit` tokens; `needed` would hold one of each."""
    return Kind(
        f"questions have only answers that are longer than --max-new-tokens {limit}",
        f"the VLM's answers are cut off before they are right: --max-new-tokens {needed} ({unit})",
        "warning",
    )


def check_answers(
    found: Findings, examples: Iterable[tuple[str, Example]], total: int, task: Task, metric: Metric, exact: bool
) -> None:
    """Adds what is wrong with the answers of questions.

    Args:
        found: Is added to.
        examples: The questions, each with a description of its place.
        total: How many questions there are.
        task: The task.
        metric: The metric that predictions are scored with.
        exact: Whether a metric that compares letter by letter is worth a warning, because it is not the dataset's own.
    """
    too_few = few_answers(task)

    def right(prediction: str, example: Example) -> bool:
        return bool(task.is_correct(metric.score(prediction, example)))

    for place, example in examples:
        if (fault := task.fault(example)) is not None:
            found.add(UNFIT, f"{place}: {fault}")
            continue
        answers = sorted({*example.answers, *example.raw_answers})
        shown = task.read(task.demonstration(example), example)
        if len(example.answers) < task.usual_references:
            found.add(too_few, f"{place}: {len(example.answers)}", of=total)
        if not shown.strip():
            found.add(NOTHING_SHOWN, place)
        if all(map(_says_nothing, answers)):
            found.add(NO_ANSWER, f"{place}: {', '.join(map(repr, answers))}")
            continue
        if task.correctness is None:
            continue
        if right("", example):
            found.add(EMPTY_ANSWERS, f"{place}: {', '.join(map(repr, answers))}", of=total)
        if not shown.strip():
            continue
        if not right(shown, example):
            found.add(WRONG_SHOWN, f"{place}: {shown!r}, not {', '.join(map(repr, answers))}", of=total)
        elif exact and task.normalize(other := shown.swapcase()) == task.normalize(shown) and not right(other, example):
            found.add(EXACT, f"{place}: {other!r} is wrong for {shown!r}", of=total)


def check_lengths(found: Findings, examples: Iterable[tuple[str, Example]], total: int, settings: VlmSettings) -> None:
    """Adds the questions whose answers are all longer than the VLM may answer.

    Lengths are in tokens if the model's tokenizer is at hand (nothing is downloaded), else in words, of which each
    needs at least one token.
    """
    limit, count = settings.max_new_tokens, _token_counter(settings.model)
    unit = "words: tokens are more" if count is None else "tokens"
    length = cache(count or (lambda text: len(text.split())))
    longer = []
    for place, example in examples:
        shortest = min(length(answer) for answer in {*example.answers, *example.raw_answers})
        if shortest > limit:
            longer.append((shortest, f"{place}: {shortest}"))
    if longer:
        kind = too_long(limit, unit, max(longer)[0])
        for _, text in longer:
            found.add(kind, text, of=total)


def _token_counter(model: str) -> Callable[[str], int] | None:
    """A function that counts tokens with the model's tokenizer; None if there is none on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from tokenizers import Tokenizer

    file = _BUNDLED_TOKENIZER if model == TINY_VLM else Path(model) / "tokenizer.json"
    try:
        if not file.is_file():
            file = Path(try_to_load_from_cache(model, "tokenizer.json") or "")
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001 - no model of that name, no such file, or not a tokenizer: words will do
        return None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _says_nothing(answer: str) -> bool:
    """Whether an answer is blank or punctuation."""
    return all(unicodedata.category(sign)[0] in "CPZ" for sign in answer)

"""Readers of two formats: VQA's official pair of JSON files, and Lever-Plus's single preprocessed file.

Every reader converts one record at a time, so that memory holds only the file's text and the examples. A question has
at least one human answer, and the number of answers may differ between questions.
"""

from collections.abc import Callable
from pathlib import Path

from icdsel.data.parsing import (
    Record,
    ShownAnswer,
    Texts,
    UnpairedError,
    answers_of,
    integer_of,
    majority_of,
    parse_records,
    refuse_repeated,
    text_of,
)
from icdsel.data.question_types import types_of
from icdsel.errors import Refuse, stop
from icdsel.records import Example, QuestionId, id_order
from icdsel.store.json_reading import read_list

ImageOf = Callable[[int], Path]


def read_official(
    questions: Path, annotations: Path, image_of: ImageOf, shown: ShownAnswer, refuse: Refuse = stop
) -> list[Example]:
    """Reads VQA's two files, `{"questions": [...]}` and `{"annotations": [...]}`, joined by question_id.

    Args:
        questions: The file of records with `question_id` and `question`, and optionally `multiple_choices`.
        annotations: The file of records with `question_id`, `image_id`, `answers` (records with `answer` and optionally
            `raw_answer`) and optionally `multiple_choice_answer`, `question_type` and `answer_type`.
        image_of: Returns the path of the image with an image_id.
        shown: The answer of a demonstration if there is no `multiple_choice_answer`: the most common answer as people
            wrote it ("raw"), or in the fields `answer` ("stemmed"; OK-VQA stems them).
        refuse: Called with the error of each invalid record. If it returns, the record is skipped; examples with
            repeated question_ids are kept.

    Raises:
        DataError: A file is damaged or not in this format, or the two do not match.
    """
    texts = Texts()
    question_of: dict[QuestionId, tuple[str, tuple[str, ...]]] = {}
    image_of_question: dict[QuestionId, object] = {}
    annotated: set[QuestionId] = set()

    def parse_question(question_id: QuestionId, record: Record) -> QuestionId:
        image_of_question[question_id] = record.get("image_id")  # before the record can be rejected
        question_of[question_id] = text_of(record, "question", texts), _options_of(record, texts)
        return question_id

    question_ids = parse_records(questions, read_list(questions, "questions"), parse_question, refuse)
    repeated = refuse_repeated(questions, question_ids, refuse)
    without_question: list[QuestionId] = []

    def parse_annotation(question_id: QuestionId, record: Record) -> Example | None:
        annotated.add(question_id)
        question = question_of.get(question_id)
        if question is None:
            if question_id not in image_of_question:
                without_question.append(question_id)
            return None
        example = _vqa_example(question_id, *question, record, image_of, shown, texts)
        image = image_of_question[question_id]
        if image is not None and image != example.image_id:
            raise ValueError(f"its image_id is {example.image_id}, but its question in {questions.name} has {image}")
        return example

    parsed = parse_records(annotations, read_list(annotations, "annotations"), parse_annotation, refuse)
    examples = [example for example in parsed if example is not None]
    without_annotation = question_of.keys() - annotated
    if without_question or without_annotation:
        unpaired = (sorted(ids, key=id_order) for ids in (without_question, without_annotation))
        refuse(UnpairedError(questions, annotations, *unpaired))
    not_reported = (example.question_id for example in examples if example.question_id not in repeated)
    refuse_repeated(annotations, not_reported, refuse)
    return examples


def read_preprocessed(
    path: Path, dataset: str, image_of: ImageOf, shown: ShownAnswer, refuse: Refuse = stop
) -> list[Example]:
    """Reads the file that Lever-Plus creates for each split: VQA's annotations, each with its `question`.

    Args:
        path: The file. It has the same name for OK-VQA and VQAv2.
        dataset: "okvqa" or "vqav2". Their records differ, and a file of the other dataset is rejected.
        image_of: As for `read_official`.
        shown: As for `read_official`.
        refuse: As for `read_official`.

    Raises:
        DataError: The file is damaged, not in this format, or belongs to the other dataset.
    """
    texts = Texts()

    def parse(question_id: QuestionId, record: Record) -> Example:
        example = _vqa_example(question_id, text_of(record, "question", texts), (), record, image_of, shown, texts)
        found = "vqav2" if "multiple_choice_answer" in record else "okvqa" if example.raw_answers else dataset
        if found != dataset:
            raise ValueError(
                f"it has the format of {found}, not of {dataset}: use another --data-dir, or --dataset {found}"
            )
        return example

    examples = list(parse_records(path, read_list(path, "annotations"), parse, refuse))
    refuse_repeated(path, (example.question_id for example in examples), refuse)
    return examples


def _options_of(record: Record, texts: Texts) -> tuple[str, ...]:
    """The options of a question, as the multiple-choice questions of VQA's first version have them."""
    given = record.get("multiple_choices")
    return () if given is None else answers_of({"answers": given}, texts)[0]


def _vqa_example(
    question_id: QuestionId,
    question: str,
    options: tuple[str, ...],
    record: Record,
    image_of: ImageOf,
    shown: ShownAnswer,
    texts: Texts,
) -> Example:
    image_id = integer_of(record, "image_id")
    answers, raw_answers = answers_of(record, texts)
    choice = record.get("multiple_choice_answer")
    answer = text_of(record, "multiple_choice_answer", texts) if choice else majority_of(answers, raw_answers, shown)
    return Example(
        question_id,
        image_id,
        image_of(image_id),
        question,
        answer,
        answers,
        raw_answers,
        *types_of(record),
        options=options,
    )


def read_questions(path: Path, image_of: ImageOf, refuse: Refuse = stop) -> list[Example]:
    """Reads VQA's file of questions alone, as of a test split: queries that can be answered, but not scored.

    Raises:
        DataError: The file is damaged or not in this format.
    """
    texts = Texts()

    def parse(question_id: QuestionId, record: Record) -> Example:
        image_id = integer_of(record, "image_id")
        question, options = text_of(record, "question", texts), _options_of(record, texts)
        return Example(question_id, image_id, image_of(image_id), question, "", (), options=options)

    examples = list(parse_records(path, read_list(path, "questions"), parse, refuse))
    refuse_repeated(path, (example.question_id for example in examples), refuse)
    return examples

"""Writes a bundled world as files in OK-VQA's format: questions, annotations with ten human-like answers, images."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from icdsel.data.world.drawing import draw
from icdsel.data.world.questions import CARELESS, CODE, PAIR, PLAIN, SYNONYMS, WORDINGS, pair_answer
from icdsel.data.world.values import (
    VALUES,
    Scene,
    all_scenes,
    asked_attributes,
    code_words,
    shown_backgrounds,
    world_codes,
)
from icdsel.settings.worlds import Difficulty
from icdsel.store.files import remove_leftovers, write_json

SPLIT_SIZES = {"train": Difficulty().train, "tuning": 1000, "validation": 1000}
TEST = "test"
TEST_SIZE = 400


def human_answers(code: str, words: list[str], rng: random.Random) -> list[str]:
    """Ten answers to a question: at least 6 are `code`, the others are misspelt, wrong or unsure.

    Args:
        code: The answer of those who know it.
        words: What wrong answers are drawn from.
        rng: The source of randomness.
    """
    others = [word for word in words if word != code]
    slips = ["not sure", "no code", code[:-1], rng.choice(others), rng.choice(others)]
    answers = [code] * rng.choice([6, 7, 8, 8, 9, 9, 10, 10])
    answers += [rng.choice(slips) for _ in range(10 - len(answers))]
    rng.shuffle(answers)
    return answers


class _Asker:
    """Asks questions about scenes, and knows the answers."""

    def __init__(self, difficulty: Difficulty, split: str, rng: random.Random) -> None:
        self._difficulty, self._split, self._rng = difficulty, split, rng
        self._attributes = asked_attributes(difficulty)
        self._codes, self._words = world_codes(difficulty.seed, self._attributes), code_words()

    def ask(self, scene: Scene) -> tuple[str, str, dict[str, Any], list[str], list[str]]:
        """Returns the question, its type, what the annotations tell about it, the answers and the options."""
        attribute = self._rng.choice(self._attributes)
        kind, asked = self._kind(), [attribute]
        if kind == PAIR:
            asked.append(self._rng.choice([a for a in self._attributes if a != attribute]))
        careless = self._chance(self._difficulty.careless)
        wordings = CARELESS[kind] if careless else WORDINGS[kind][: self._difficulty.wordings]
        words = [self._word(name) for name in asked]
        question = self._rng.choice(wordings).format(attribute=words[0], other=words[-1])
        asked.sort(key=self._attributes.index)  # the order of the answer, whatever that of the question
        wrong = careless and self._split == "train" and self._chance(self._difficulty.careless_wrong)
        known, words = self._answer(kind, asked, scene, wrong)
        described = {
            CODE: f"code of the {asked[0]}",
            PAIR: f"codes of {' and '.join(asked)}",
            PLAIN: f"plain {asked[0]}",
        }
        shown = {attribute: scene.value(attribute) for attribute in reversed(self._attributes)}
        told: dict[str, Any] = {"scene": shown}
        if wrong:
            told["wrong"] = True
        if self._difficulty.options:
            return question, described[kind], told, [known], self._options(known)
        return question, described[kind], told, human_answers(known, words, self._rng), []

    def _options(self, right: str) -> list[str]:
        """The codes to choose from: some in any order, or all in the order of the alphabet, as the classes of a set."""
        wrong = sorted(code for code in self._codes.values() if code != right)
        if self._difficulty.options > len(wrong):
            return sorted([right, *wrong])
        options = [right, *self._rng.sample(wrong, self._difficulty.options - 1)]
        self._rng.shuffle(options)
        return options

    def _kind(self) -> str:
        pairs, plain = self._difficulty.pairs, self._difficulty.plain
        if not pairs + plain:
            return CODE
        drawn = self._rng.random()
        return PAIR if drawn < pairs else PLAIN if drawn < pairs + plain else CODE

    def _word(self, attribute: str) -> str:
        words = SYNONYMS[attribute][: self._difficulty.synonyms]
        return words[0] if len(words) == 1 else self._rng.choice(words)

    def _chance(self, share: float) -> bool:
        return share > 0 and self._rng.random() < share

    def _answer(self, kind: str, asked: list[str], scene: Scene, wrong: bool) -> tuple[str, list[str]]:
        """The answer that most people give, and the words that slips are drawn from."""
        if kind == PLAIN:
            words = list(VALUES[asked[0]])
            right = scene.value(asked[0])
            return (self._rng.choice([word for word in words if word != right]) if wrong else right), words
        codes = [self._codes[attribute, scene.value(attribute)] for attribute in asked]
        if wrong:
            codes = [self._rng.choice([word for word in self._words if word != code]) for code in codes]
        return (codes[0] if kind == CODE else pair_answer(*codes)), self._words


def records(
    difficulty: Difficulty, split: str, size: int, first_id: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any], Image.Image]]:
    """Yields (question, annotation, image) for each example of `split`."""
    rng = random.Random(f"{difficulty.seed}-{split}")
    asker, scenes = _Asker(difficulty, split, rng), all_scenes(shown_backgrounds(difficulty))
    for i in range(size):
        scene = rng.choice(scenes)
        question, kind, told, answers, options = asker.ask(scene)
        ids = {"question_id": 10 * (first_id + i) + 5, "image_id": first_id + i}
        annotation = ids | {
            "question_type": kind,
            "answer_type": "other",
            **told,
            "answers": [
                {"answer_id": j + 1, "answer": answer, "raw_answer": answer, "answer_confidence": "yes"}
                for j, answer in enumerate(answers)
            ],
        }
        companion = difficulty.companions > 0 and rng.random() < difficulty.companions
        choices = {"multiple_choices": options} if options else {}
        yield ids | {"question": question} | choices, annotation, draw(scene, rng, companion)


def write_world(folder: Path, difficulty: Difficulty | None = None) -> None:
    """Writes a world's files under `folder`: questions, annotations and PNG images of every split but the test split.

    The bytes are the same on every machine with the same Pillow and numpy. The annotations of the last split are
    written last, so a folder with all annotations is complete.

    Args:
        folder: The folder of the world.
        difficulty: Its numbers; None for the easy world.

    Raises:
        OSError: A file cannot be written.
    """
    difficulty = difficulty or Difficulty()
    sizes = _sizes(difficulty)
    first_id, last = 1, [*sizes][-1]
    for split, size in sizes.items():
        remove_leftovers(folder / f"questions_{split}.json", folder / f"annotations_{split}.json")
        questions, annotations = _draw_split(folder, difficulty, split, size, first_id)
        write_json(folder / f"questions_{split}.json", {"questions": questions})
        if split == last:
            os.sync()  # the images, before writing the file whose existence marks the world as complete
        write_json(folder / f"annotations_{split}.json", {"annotations": annotations})
        first_id += size


def write_test_split(folder: Path, difficulty: Difficulty | None = None) -> None:
    """Writes the test split of a world under `folder`: questions and images, and no annotations.

    It is drawn as the other splits are, but apart from them: few people need it, and worlds that are there get it too.
    The questions are written last, so a folder that has them has the whole split.

    Args:
        folder: The folder of the world.
        difficulty: Its numbers; None for the easy world.

    Raises:
        OSError: A file cannot be written.
    """
    difficulty, path = difficulty or Difficulty(), folder / f"questions_{TEST}.json"
    remove_leftovers(path)
    first_id = 1 + sum(_sizes(difficulty).values())
    questions, _ = _draw_split(folder, difficulty, TEST, TEST_SIZE, first_id)
    os.sync()  # the images, before writing the file whose existence marks the split as complete
    write_json(path, {"questions": questions})


def _sizes(difficulty: Difficulty) -> dict[str, int]:
    """The sizes of the splits that are written together."""
    return SPLIT_SIZES | {"train": difficulty.train}


def _draw_split(
    folder: Path, difficulty: Difficulty, split: str, size: int, first_id: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Writes the images of a split; returns its questions and annotations."""
    images = folder / "images" / split
    images.mkdir(parents=True, exist_ok=True)
    questions, annotations = [], []
    for question, annotation, image in records(difficulty, split, size, first_id):
        image.save(images / f"{question['image_id']:012d}.png", "PNG")
        questions.append(question)
        annotations.append(annotation)
    return questions, annotations

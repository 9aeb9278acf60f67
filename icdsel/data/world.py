"""The bundled world: a synthetic VQA dataset in which the choice of demonstrations determines the answer.

An image shows one shape in one colour; position, size, tilt, background and lighting are nuisance variables. A
question asks for the *code* of the shape or of the colour. A code is an invented word, so it is revealed only by a
demonstration that asks about the same attribute of an image with the same value. The files have the format of OK-VQA
(questions, annotations with ten human-like answers, images), so the same reader is used as for real data.
"""

import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from icdsel.store.files import remove_leftovers, write_json

WORLD_SEED = 20_251_210
SPLIT_SIZES = {"train": 2400, "tuning": 1000, "validation": 1000}
IMAGE_SIZE = 56  # pixels; 4 visual tokens at patch 14, merge 2

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "heart")
# Hue in degrees, saturation and value in [0, 1].
COLOURS = {
    "red": (0, 0.85, 0.85),
    "orange": (28, 0.9, 0.97),
    "yellow": (56, 0.85, 0.97),
    "green": (125, 0.75, 0.62),
    "cyan": (182, 0.7, 0.88),
    "blue": (226, 0.8, 0.85),
    "purple": (276, 0.7, 0.68),
    "pink": (330, 0.42, 0.98),
}
ATTRIBUTES = ("colour", "shape")

CODE_QUESTIONS = (
    "What is the code of this {attribute}?",
    "Which code does the {attribute} have?",
    "What code belongs to the {attribute} here?",
)
PLAIN_QUESTIONS = ("What {attribute} is it?", "Which {attribute} is shown?")

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def code_words() -> list[str]:
    """The 64 invented words that codes are drawn from, in a fixed order."""
    rng = random.Random(WORLD_SEED)
    words: set[str] = set()
    while len(words) < 64:
        c, v = (rng.choices(_CONSONANTS, k=2), rng.choices(_VOWELS, k=2))
        words.add(c[0] + v[0] + c[1] + v[1])
    return sorted(words)


@dataclass(frozen=True)
class Scene:
    """The content of an image."""

    shape: str
    colour: str

    def value(self, attribute: str) -> str:
        """The scene's value of `attribute` ("colour" or "shape")."""
        return self.colour if attribute == "colour" else self.shape


def _hsv(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    pixel = Image.new("HSV", (1, 1), (int(hue % 360 / 360 * 255), int(saturation * 255), int(value * 255)))
    red, green, blue = pixel.convert("RGB").tobytes()
    return red, green, blue


def _outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a `shape` that is a polygon, in the unit disc."""
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(0, -0.95), (0.95, 0.75), (-0.95, 0.75)]
    if shape == "diamond":
        return [(0, -1), (0.72, 0), (0, 1), (-0.72, 0)]
    if shape == "cross":
        a = 0.32
        return [
            (-a, -1),
            (a, -1),
            (a, -a),
            (1, -a),
            (1, a),
            (a, a),
            (a, 1),
            (-a, 1),
            (-a, a),
            (-1, a),
            (-1, -a),
            (-a, -a),
        ]
    if shape == "star":
        return [
            (radius * math.sin(math.pi * i / 5), -radius * math.cos(math.pi * i / 5))
            for i, radius in enumerate([1, 0.42] * 5)
        ]
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        x = np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
        return list(zip(x.tolist(), y.tolist(), strict=True))
    raise ValueError(f"no polygon for shape {shape!r}")


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """Draws an RGB image of `scene`, 56×56 pixels; everything but shape and colour is randomised with `rng`."""
    scale = 3  # drawn larger, then reduced for smooth edges
    size = IMAGE_SIZE * scale
    grey, tint, saturation = rng.uniform(0.12, 0.92), rng.uniform(0, 360), rng.uniform(0, 0.16)
    image = Image.new("RGB", (size, size), _hsv(tint, saturation, grey))
    pen = ImageDraw.Draw(image)

    hue, s, v = COLOURS[scene.colour]
    fill = _hsv(
        hue + rng.uniform(-6, 6),
        s * rng.uniform(0.88, 1.08) if s < 0.9 else s,
        min(1, v * rng.uniform(0.88, 1.03)),
    )
    radius = rng.uniform(14, 21) * scale
    x, y = (rng.uniform(radius + 4, size - radius - 4) for _ in range(2))
    if scene.shape in ("circle", "ring"):
        box = (x - 0.92 * radius, y - 0.92 * radius, x + 0.92 * radius, y + 0.92 * radius)
        if scene.shape == "circle":
            pen.ellipse(box, fill=fill)
        else:
            pen.ellipse(box, outline=fill, width=round(0.36 * radius))
    else:
        angle = math.radians(rng.uniform(-8, 8))
        cos, sin = math.cos(angle), math.sin(angle)
        pen.polygon(
            [(x + radius * (a * cos - b * sin), y + radius * (a * sin + b * cos)) for a, b in _outline(scene.shape)],
            fill=fill,
        )

    small = np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX), dtype=np.float32)
    slope = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)
    light = rng.uniform(-10, 10) * slope[:, None] + rng.uniform(-10, 10) * slope[None, :]  # (56, 56)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 4, small.shape)
    return Image.fromarray(np.clip(small + light[..., None] + noise, 0, 255).astype(np.uint8))


def all_scenes() -> list[Scene]:
    """The 64 combinations of shape and colour."""
    return [Scene(shape, colour) for shape in SHAPES for colour in COLOURS]


def world_codes() -> dict[tuple[str, str], str]:
    """The code of each (attribute, value): 16 of the 64 words, all different."""
    values = [("colour", colour) for colour in COLOURS] + [("shape", shape) for shape in SHAPES]
    words = random.Random(WORLD_SEED + 1).sample(code_words(), len(values))
    return dict(zip(values, words, strict=True))


def human_answers(code: str, words: list[str], rng: random.Random) -> list[str]:
    """Ten answers to a code question: at least 6 are the code, the others are misspelt, wrong or unsure."""
    others = [word for word in words if word != code]
    slips = ["not sure", "no code", code[:-1], rng.choice(others), rng.choice(others)]
    answers = [code] * rng.choice([6, 7, 8, 8, 9, 9, 10, 10])
    answers += [rng.choice(slips) for _ in range(10 - len(answers))]
    rng.shuffle(answers)
    return answers


def _records(split: str, first_id: int) -> Iterator[tuple[dict[str, Any], dict[str, Any], Image.Image]]:
    """Yields (question, annotation, image) for each example of `split`."""
    rng = random.Random(f"{WORLD_SEED}-{split}")
    codes, words, scenes = world_codes(), code_words(), all_scenes()
    for i in range(SPLIT_SIZES[split]):
        scene, attribute = rng.choice(scenes), rng.choice(ATTRIBUTES)
        ids = {"question_id": 10 * (first_id + i) + 5, "image_id": first_id + i}
        question = rng.choice(CODE_QUESTIONS).format(attribute=attribute)
        answers = human_answers(codes[attribute, scene.value(attribute)], words, rng)
        annotation = ids | {
            "question_type": f"code of the {attribute}",
            "answer_type": "other",
            "scene": {"shape": scene.shape, "colour": scene.colour},
            "answers": [
                {"answer_id": j + 1, "answer": answer, "raw_answer": answer, "answer_confidence": "yes"}
                for j, answer in enumerate(answers)
            ],
        }
        yield ids | {"question": question}, annotation, draw(scene, rng)


def write_world(folder: Path) -> None:
    """Writes the world's files under `folder`: questions, annotations and PNG images of every split.

    The bytes are the same on every machine with the same Pillow and numpy. The annotations of the last split are
    written last, so a folder with all annotations is complete.

    Raises:
        OSError: A file cannot be written.
    """
    first_id, last = 1, [*SPLIT_SIZES][-1]
    for split, size in SPLIT_SIZES.items():
        remove_leftovers(folder / f"questions_{split}.json", folder / f"annotations_{split}.json")
        images = folder / "images" / split
        images.mkdir(parents=True, exist_ok=True)
        questions, annotations = [], []
        for question, annotation, image in _records(split, first_id):
            image.save(images / f"{question['image_id']:012d}.png", "PNG")
            questions.append(question)
            annotations.append(annotation)
        write_json(folder / f"questions_{split}.json", {"questions": questions})
        if split == last:
            os.sync()  # the images, before writing the file whose existence marks the world as complete
        write_json(folder / f"annotations_{split}.json", {"annotations": annotations})
        first_id += size

"""The bundled worlds: synthetic VQA datasets in which the choice of demonstrations determines the answer.

An image shows one shape in one colour. A question asks for a *code*, an invented word, so that only a demonstration
with the same value of the same attribute reveals the answer. A `Difficulty` says in numbers what makes the choice hard.
The files have the format of OK-VQA, so the same reader is used as for real data.
"""

from icdsel.data.world.drawing import IMAGE_SIZE, Picture, draw, draw_picture
from icdsel.data.world.files import SPLIT_SIZES, TEST_SIZE, human_answers, records, write_test_split, write_world
from icdsel.data.world.questions import CODE_QUESTIONS, PLAIN_QUESTIONS
from icdsel.data.world.values import (
    ALL_ATTRIBUTES,
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    PLAIN_BACKGROUND,
    SHAPES,
    VALUES,
    Scene,
    all_scenes,
    code_words,
    world_codes,
)
from icdsel.settings.worlds import DIFFICULTIES, WORLD_SEED, Difficulty

__all__ = [
    "ALL_ATTRIBUTES",
    "ATTRIBUTES",
    "BACKGROUNDS",
    "CODE_QUESTIONS",
    "COLOURS",
    "DIFFICULTIES",
    "IMAGE_SIZE",
    "PLAIN_BACKGROUND",
    "PLAIN_QUESTIONS",
    "SHAPES",
    "SPLIT_SIZES",
    "TEST_SIZE",
    "VALUES",
    "WORLD_SEED",
    "Difficulty",
    "Picture",
    "Scene",
    "all_scenes",
    "code_words",
    "draw",
    "draw_picture",
    "human_answers",
    "records",
    "world_codes",
    "write_test_split",
    "write_world",
]

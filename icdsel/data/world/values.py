"""What a picture of the bundled world can show, and the invented words that are the codes of these values."""

import random
from dataclasses import dataclass

from icdsel.settings.worlds import WORLD_SEED, Difficulty

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
BACKGROUNDS = ("snow", "night", "grass", "sea", "sand", "brick", "checks", "stripes")
PLAIN_BACKGROUND = "grey"
"""The background of pictures that have none of `BACKGROUNDS`: grey, of any lightness, with a faint tint."""

ATTRIBUTES = ("colour", "shape")
"""What questions ask about in a world without backgrounds."""
ALL_ATTRIBUTES = ("colour", "shape", "background")
"""What questions ask about in a world with backgrounds, in the order in which a pair of codes is answered."""
VALUES = {"colour": tuple(COLOURS), "shape": SHAPES, "background": BACKGROUNDS}
"""The values of each attribute."""

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True)
class Scene:
    """The content of an image: one object on a background."""

    shape: str
    colour: str
    background: str = PLAIN_BACKGROUND

    @property
    def busy(self) -> bool:
        """Whether the background is one of `BACKGROUNDS`."""
        return self.background != PLAIN_BACKGROUND

    def value(self, attribute: str) -> str:
        """The scene's value of `attribute`, one of `ALL_ATTRIBUTES`."""
        return {"colour": self.colour, "shape": self.shape, "background": self.background}[attribute]


def asked_attributes(difficulty: Difficulty) -> tuple[str, ...]:
    """What the questions of a world ask about."""
    return ALL_ATTRIBUTES if difficulty.backgrounds else ATTRIBUTES


def shown_backgrounds(difficulty: Difficulty) -> tuple[str, ...]:
    """The backgrounds of a world's pictures."""
    return BACKGROUNDS if difficulty.backgrounds else (PLAIN_BACKGROUND,)


def all_scenes(backgrounds: tuple[str, ...] = (PLAIN_BACKGROUND,)) -> list[Scene]:
    """The combinations of shape, colour and background: 64 for each background."""
    return [Scene(shape, colour, background) for background in backgrounds for shape in SHAPES for colour in COLOURS]


def code_words() -> list[str]:
    """The 64 invented words that codes are drawn from, in a fixed order."""
    rng = random.Random(WORLD_SEED)
    words: set[str] = set()
    while len(words) < 64:
        c, v = (rng.choices(_CONSONANTS, k=2), rng.choices(_VOWELS, k=2))
        words.add(c[0] + v[0] + c[1] + v[1])
    return sorted(words)


def world_codes(seed: int = WORLD_SEED, attributes: tuple[str, ...] = ATTRIBUTES) -> dict[tuple[str, str], str]:
    """The code of each (attribute, value): words that are all different, 16 of the 64 for two attributes."""
    keys = [(attribute, value) for attribute in attributes for value in VALUES[attribute]]
    return dict(zip(keys, random.Random(seed + 1).sample(code_words(), len(keys)), strict=True))

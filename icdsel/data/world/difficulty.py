"""How hard it is to choose demonstrations in the bundled world, in numbers, and presets of these numbers."""

from dataclasses import dataclass

from icdsel.data.world.values import ALL_ATTRIBUTES, ATTRIBUTES, BACKGROUNDS, PLAIN_BACKGROUND, WORLD_SEED


@dataclass(frozen=True)
class Difficulty:
    """What makes the choice of demonstrations hard. The defaults are those of the easy world.

    Attributes:
        backgrounds: Whether pictures have one of eight backgrounds, whose codes are asked for too. Backgrounds fill
            most of a picture, so pictures that look alike differ in what most questions ask about. (misleading)
        companions: Share of pictures with a second, smaller object, which no question asks about. (misleading)
        wordings: How many wordings a kind of question has, at most; the easy world has 3. (misleading)
        synonyms: How many words there are for each attribute, 1 to 3. (misleading)
        pairs: Share of questions that ask for two codes. They need two demonstrations, in the right order, unless one
            shows both values. (complementary, order)
        plain: Share of questions for the value itself, which the VLM answers without demonstrations; a wrong one, or
            one that asks for a code and comes last, makes it fail. (better without, order)
        careless: Share of questions that careless people ask; only they use certain wordings.
        careless_wrong: Share of the training answers of careless people that are wrong. (unreliable)
        train: Number of training questions.
        seed: Decides codes, scenes and pictures.
    """

    backgrounds: bool = False
    companions: float = 0.0
    wordings: int = 3
    synonyms: int = 1
    pairs: float = 0.0
    plain: float = 0.0
    careless: float = 0.0
    careless_wrong: float = 0.9
    train: int = 2400
    seed: int = WORLD_SEED

    def __post_init__(self) -> None:
        for name in ("companions", "pairs", "plain", "careless", "careless_wrong"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        if self.pairs + self.plain > 1.0:
            raise ValueError(f"pairs ({self.pairs}) and plain ({self.plain}) are shares: their sum must be at most 1")
        for name, most in (("wordings", None), ("synonyms", 3), ("train", None)):
            if getattr(self, name) < 1 or (most is not None and getattr(self, name) > most):
                raise ValueError(f"{name} must be at least 1{f' and at most {most}' if most else ''}")

    @property
    def attributes(self) -> tuple[str, ...]:
        """What questions ask about."""
        return ALL_ATTRIBUTES if self.backgrounds else ATTRIBUTES

    @property
    def shown_backgrounds(self) -> tuple[str, ...]:
        """The backgrounds of the pictures."""
        return BACKGROUNDS if self.backgrounds else (PLAIN_BACKGROUND,)


DIFFICULTIES: dict[str, Difficulty] = {
    "easy": Difficulty(),
    "misleading": Difficulty(backgrounds=True, companions=0.5, wordings=8, synonyms=3),
    "hard": Difficulty(
        backgrounds=True,
        companions=0.5,
        wordings=8,
        synonyms=3,
        pairs=0.25,
        plain=0.3,
        careless=0.25,
    ),
}
"""The presets. To add one, name its numbers here; it can then be chosen by this name."""

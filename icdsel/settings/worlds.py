"""The bundled worlds as datasets that have names: how hard each is, in numbers, presets of the numbers, the names.

`world` is the easy world, `world-hard` a preset, and `world-hard:pairs=0.4,seed=7` a preset with other numbers. The
pictures and questions of a world are made by `icdsel.data.world`. Does not import torch.
"""

import difflib
import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from icdsel.settings.presets import WORLD

WORLD_SEED = 20_251_210
MOST_OPTIONS = 64
"""Options of a question that are all codes of a world, as the classes of a dataset are."""


class Difficulty(BaseModel):
    """What makes the choice of demonstrations hard. The defaults are those of the easy world.

    To add a number, add a field with bounds: it can then be set in a dataset's name. A new one must have a default
    that changes nothing, so that existing names keep their meaning.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    backgrounds: bool = False
    """Whether pictures have one of eight backgrounds, whose codes are asked for too. Backgrounds fill most of a
    picture, so pictures that look alike differ in what most questions ask about. (misleading)"""
    companions: float = Field(0.0, ge=0, le=1)
    """Share of pictures with a second, smaller object, which no question asks about. (misleading)"""
    wordings: int = Field(3, ge=1, le=8)
    """How many wordings a kind of question has, at most. (misleading)"""
    synonyms: int = Field(1, ge=1, le=3)
    """How many words there are for each attribute. (misleading)"""
    pairs: float = Field(0.0, ge=0, le=1)
    """Share of questions that ask for two codes. They need two demonstrations, in the right order, unless one shows
    both values. (complementary, order)"""
    plain: float = Field(0.0, ge=0, le=1)
    """Share of questions for the value itself, which the VLM answers without demonstrations; a wrong one, or one that
    asks for a code and comes last, makes it fail. (better without, order)"""
    careless: float = Field(0.0, ge=0, le=1)
    """Share of questions that careless people ask; only they use certain wordings."""
    careless_wrong: float = Field(0.9, ge=0, le=1)
    """Share of the training answers of careless people that are wrong. (unreliable)"""
    options: int = Field(0, ge=0, le=MOST_OPTIONS)
    """How many codes each question names to choose from, at most all of the world; 0 for none. One of them is right.
    (multiple choice, classes)"""
    train: int = Field(2400, ge=1, le=1_000_000)
    """Number of training questions."""
    seed: int = Field(WORLD_SEED, ge=0, le=2**32 - 1)
    """Decides codes, scenes and pictures."""

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.pairs + self.plain > 1:
            raise ValueError(f"pairs ({self.pairs:g}) and plain ({self.plain:g}) are shares: their sum is at most 1")
        if self.options and self.pairs + self.plain + self.careless:
            raise ValueError("options are codes, so that pairs, plain and careless must be 0")
        return self


EASY = "easy"
DIFFICULTIES: dict[str, Difficulty] = {
    EASY: Difficulty(),
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
    "choice": Difficulty(backgrounds=True, companions=0.5, wordings=8, synonyms=3, options=4),
    "classes": Difficulty(backgrounds=True, companions=0.5, wordings=8, synonyms=3, options=MOST_OPTIONS),
}
"""The presets. To add one, name its numbers here, last: `world-<preset>` is then a dataset.

Worlds that are nearer to it than to the others get another name (`world_name`), so their results are computed again.
"""

_FIELDS = [*Difficulty.model_fields]
_SCHEMA: dict[str, dict[str, Any]] = Difficulty.model_json_schema()["properties"]
_FORM = re.compile(rf"{WORLD}(?:-(?P<preset>[a-z]+))?(?P<colon>:(?P<numbers>.*))?", re.DOTALL)
_FOLDER = re.compile(rf"_(?=(?:{'|'.join(_FIELDS)})=)")


def world_names() -> list[str]:
    """The datasets' names of the presets."""
    return [_preset_name(preset) for preset in DIFFICULTIES]


def is_world(dataset: str) -> bool:
    """Whether a dataset's name is that of a bundled world; the numbers in it may be wrong."""
    form = _FORM.fullmatch(dataset)
    return form is not None and (form["preset"] or EASY) in DIFFICULTIES


def difficulty_of(dataset: str) -> Difficulty:
    """The numbers of a bundled world.

    Raises:
        ValueError: It names none, or a number is unknown or not allowed; the message lists those that exist.
    """
    form = _FORM.fullmatch(dataset)
    preset = form and (form["preset"] or EASY)
    if form is None or preset not in DIFFICULTIES:
        raise ValueError(f"there is no such world: choose one of {', '.join(world_names())}{_close(dataset)}")
    given: dict[str, str] = {}
    for part in form["numbers"].split(",") if form["colon"] else ():
        name, equals, value = (text.strip() for text in part.partition("="))
        if not equals or name not in _FIELDS:
            wrong = f"{name!r} is not a number of a world" if equals else f"{part!r} is not NUMBER=VALUE"
            raise ValueError(f"{wrong}: choose from {_all_numbers()}")
        if name in given:
            raise ValueError(f"{name} is given twice")
        given[name] = value
    try:
        return Difficulty.model_validate(DIFFICULTIES[preset].model_dump() | given)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(problem) for problem in error.errors())) from None


def world_name(difficulty: Difficulty) -> str:
    """The name of a world: equal worlds have equal names.

    It starts from the preset that differs in the fewest numbers (the first of several), and states the others in the
    order of `Difficulty`.
    """
    changes = {preset: _changes(difficulty, base) for preset, base in DIFFICULTIES.items()}
    preset = min(changes, key=lambda name: len(changes[name]))
    return _preset_name(preset) + (":" + ",".join(changes[preset]) if changes[preset] else "")


def normalised(dataset: str) -> str:
    """The name that is recorded for a dataset: `world_name` for a world, else the name itself.

    Without numbers, a name such as `world-cup` is that of a user's own file or folder.

    Raises:
        ValueError: As for `difficulty_of`.
    """
    form = _FORM.fullmatch(dataset)
    return world_name(difficulty_of(dataset)) if form and (form["colon"] or is_world(dataset)) else dataset


def world_folder(dataset: str) -> str:
    """The name of a world's folders of files and results: its name, with `_` for colon and commas."""
    return re.sub("[:,]", "_", dataset)


def world_in(folder: str) -> str | None:
    """The world whose files a folder of this name holds; None if the name is not that of a world's folder."""
    base, *numbers = _FOLDER.split(folder)
    dataset = base + (":" + ",".join(numbers) if numbers else "")
    try:
        return dataset if is_world(dataset) and normalised(dataset) == dataset else None
    except ValueError:
        return None


def _preset_name(preset: str) -> str:
    return WORLD if preset == EASY else f"{WORLD}-{preset}"


def _changes(difficulty: Difficulty, base: Difficulty) -> list[str]:
    return [f"{name}={_text(value)}" for name, value in difficulty if value != getattr(base, name)]


def _text(value: bool | int | float) -> str:
    """The shortest text that is read as `value` again."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return repr(value + 0).removesuffix(".0")  # + 0: -0.0 is 0


def _allowed(name: str) -> str:
    schema = _SCHEMA[name]
    if schema["type"] == "boolean":
        return "yes or no"
    return f"{'a whole' if schema['type'] == 'integer' else 'a'} number from {schema['minimum']} to {schema['maximum']}"


def _all_numbers() -> str:
    return ", ".join(f"{name} ({_allowed(name)})" for name in _FIELDS)


def _explain(problem: Any) -> str:
    if not problem["loc"]:
        return str(problem["msg"]).removeprefix("Value error, ")
    name = problem["loc"][0]
    return f"{name} must be {_allowed(name)}, not {problem['input']!r}"


def _close(dataset: str) -> str:
    close = difflib.get_close_matches(dataset.partition(":")[0], world_names(), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""

"""What each number of a bundled world changes, and that the easy world stays as it was to the byte."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from icdsel.data import world
from icdsel.data.world import Difficulty, files
from icdsel.data.world.questions import CARELESS, SYNONYMS, WORDINGS
from icdsel.settings.worlds import DIFFICULTIES

Record = tuple[dict[str, Any], dict[str, Any]]
_MANY = 3000
_CARELESS_STARTS = ("hey ", "umm ", "code 4 ")


def pictured(difficulty: Difficulty, split: str = "train", size: int = 40) -> Iterator[Any]:
    return world.records(difficulty, split, size, 1)


@cache
def records_of(difficulty: Difficulty, split: str = "train") -> list[Record]:
    """Many records without their pictures; drawing takes most of the time, and follows every other choice of a record.

    What is drawn from the generator for a picture is replaced by one number, so scenes differ from those of the files.
    """
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(files, "draw", lambda scene, rng, companion: rng.random())
        return [(question, annotation) for question, annotation, _ in pictured(difficulty, split, _MANY)]


def share(found: list[Record], meets: Any) -> float:
    return sum(bool(meets(*record)) for record in found) / len(found)


def kind_of(_: Any, annotation: dict[str, Any]) -> str:
    return str(annotation["question_type"]).split()[0]


def is_careless(question: dict[str, Any], _: Any) -> bool:
    return bool(question["question"].startswith(_CARELESS_STARTS))


def is_wrong(_: Any, annotation: dict[str, Any]) -> bool:
    return "wrong" in annotation


def majority(annotation: dict[str, Any]) -> str:
    return Counter(answer["answer"] for answer in annotation["answers"]).most_common(1)[0][0]


def truth(difficulty: Difficulty, annotation: dict[str, Any]) -> str:
    """The right answer, by the scene and the type of the question alone."""
    kind, *words = annotation["question_type"].split()
    asked = [word for word in words if word in world.ALL_ATTRIBUTES]
    scene = annotation["scene"]
    if kind == "plain":
        return str(scene[asked[0]])
    attributes = world.ALL_ATTRIBUTES if difficulty.backgrounds else world.ATTRIBUTES
    codes = world.world_codes(difficulty.seed, attributes)
    assert asked == [attribute for attribute in world.ALL_ATTRIBUTES if attribute in asked]
    return "-".join(codes[attribute, scene[attribute]] for attribute in asked)


def roughly(stated: float, count: int) -> Any:
    """Within four standard deviations of a share of `count` draws."""
    return pytest.approx(stated, abs=4 * (stated * (1 - stated) / count) ** 0.5 + 1e-9)


# ---- the easy world ----

# Of the first 200 records of each split, as before worlds had numbers: questions and annotations, pictures.
_BEFORE = {
    "train": ("e097c3b648d0de31da68693a42d78249", "5bfecad0077c00edc39ee0115d008f31"),
    "tuning": ("f5faa3ae8b4486a3f54e66dd34a54e71", "53e5bd55f6233eeb07b3bb8ec996f104"),
    "validation": ("fc167dcc96e9cafc9f7632b28b4056e0", "258ae2693c669ab90c0546eb62b3ea87"),
}


@pytest.mark.parametrize(("split", "first"), [("train", 1), ("tuning", 2401), ("validation", 3401)])
def test_the_easy_world_has_the_bytes_that_it_always_had(split, first):
    texts, pictures = hashlib.sha256(), hashlib.sha256()
    for question, annotation, image in world.records(Difficulty(), split, 200, first):
        texts.update(json.dumps([question, annotation]).encode())
        pictures.update(image.tobytes())
    assert (texts.hexdigest()[:32], pictures.hexdigest()[:32]) == _BEFORE[split]


def test_the_bounds_of_the_numbers_are_those_of_the_texts():
    allowed = Difficulty.model_json_schema()["properties"]
    assert allowed["wordings"]["maximum"] == max(map(len, WORDINGS.values()))
    assert allowed["synonyms"]["maximum"] == min(map(len, SYNONYMS.values()))


# ---- one number at a time ----


@pytest.mark.parametrize("split", ["train", "tuning", "validation"])
@pytest.mark.parametrize(("pairs", "plain"), [(0.25, 0.3), (0.0, 0.6), (0.7, 0.0), (0.4, 0.6)])
def test_the_kinds_of_questions_have_the_stated_shares(split, pairs, plain):
    found = Counter(kind_of(*record) for record in records_of(Difficulty(pairs=pairs, plain=plain), split))
    for kind, stated in (("codes", pairs), ("plain", plain), ("code", 1 - pairs - plain)):
        assert found[kind] / _MANY == roughly(stated, _MANY)


def test_careless_people_ask_in_every_split_and_are_wrong_in_the_training_split_alone():
    difficulty = Difficulty(careless=0.4, careless_wrong=0.7, pairs=0.3, plain=0.3)
    for split in world.SPLIT_SIZES:
        found = records_of(difficulty, split)
        careless = [record for record in found if is_careless(*record)]
        assert len(careless) / _MANY == roughly(0.4, _MANY)
        assert not any(is_wrong(*record) for record in found if not is_careless(*record))
        stated = 0.7 if split == "train" else 0.0
        assert share(careless, is_wrong) == roughly(stated, len(careless))
        for kind in ("code", "codes", "plain"):
            of_kind = [record for record in careless if kind_of(*record) == kind]
            assert share(of_kind, is_wrong) == roughly(stated, len(of_kind))


@pytest.mark.parametrize("preset", DIFFICULTIES)
def test_most_people_give_the_right_answer_unless_the_question_is_marked_wrong(preset):
    difficulty = DIFFICULTIES[preset]
    for split in world.SPLIT_SIZES:
        for record in records_of(difficulty, split):
            answer, right = majority(record[1]), truth(difficulty, record[1])
            assert (answer != right) == is_wrong(*record)
            if is_wrong(*record) and "-" in right:  # both codes are wrong
                assert all(a != b for a, b in zip(answer.split("-"), right.split("-"), strict=True))


def test_careless_wordings_are_used_by_careless_people_only():
    every = {wording for wordings in CARELESS.values() for wording in wordings}
    assert all(wording.startswith(_CARELESS_STARTS) for wording in every)
    assert not any(w.startswith(_CARELESS_STARTS) for wordings in WORDINGS.values() for w in wordings)
    assert share(records_of(Difficulty()), is_careless) == 0


def test_backgrounds_are_shown_asked_for_and_have_codes():
    found = records_of(Difficulty(backgrounds=True, pairs=0.5))
    kinds = Counter(annotation["question_type"] for _, annotation in found)
    assert set(kinds) == {
        *(f"code of the {attribute}" for attribute in world.ALL_ATTRIBUTES),
        *(f"codes of {one} and {two}" for one, two in itertools.combinations(world.ALL_ATTRIBUTES, 2)),
    }
    assert all(count / _MANY == roughly(1 / 6, _MANY) for count in kinds.values())
    shown = Counter(annotation["scene"]["background"] for _, annotation in found)
    assert set(shown) == set(world.BACKGROUNDS)
    assert all("background" not in annotation["scene"] for _, annotation in records_of(Difficulty()))


@pytest.mark.parametrize(("wordings", "synonyms"), [(1, 1), (5, 1), (1, 2), (8, 3)])
def test_wordings_and_synonyms_are_as_many_as_stated(wordings, synonyms):
    found = records_of(Difficulty(wordings=wordings, synonyms=synonyms, plain=0.3))
    asked: dict[str, set[str]] = {}
    for question, annotation in found:
        asked.setdefault(annotation["question_type"], set()).add(question["question"])
    for kind, texts in asked.items():
        known = WORDINGS[kind.split()[0]]
        assert len(texts) == min(wordings, len(known)) * synonyms


def test_a_share_of_the_pictures_has_a_companion(monkeypatch):
    for stated in (0.0, 0.3, 1.0):
        drawn: list[bool] = []
        with monkeypatch.context() as patched:
            patched.setattr(files, "draw", lambda scene, rng, companion, drawn=drawn: drawn.append(companion))
            assert len(list(pictured(Difficulty(companions=stated), size=_MANY))) == _MANY
        assert sum(drawn) / _MANY == roughly(stated, _MANY)


@pytest.mark.parametrize("background", [world.PLAIN_BACKGROUND, "sea"])
def test_a_companion_is_seen_in_a_corner_and_leaves_the_middle_of_the_object_alone(background):
    import random

    scene = world.Scene("circle", "red", background)
    changed = np.zeros((56, 56), dtype=bool)
    for seed in range(20):
        images = [
            np.asarray(world.draw(scene, random.Random(seed), companion), dtype=float) for companion in (False, True)
        ]
        red = (images[0][..., 0] - images[0][..., 1:].max(axis=-1)) > 60
        rows, columns = np.nonzero(red)
        row, column = round(rows.mean()), round(columns.mean())
        assert (images[1][row, column, 0] - images[1][row, column, 1:].max()) > 60
        changed |= np.abs(images[1] - images[0]).max(axis=-1) > 60
    assert changed.any()


def test_the_number_of_training_questions_is_as_stated(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SPLIT_SIZES", {"train": 2400, "tuning": 3, "validation": 2})
    world.write_world(tmp_path, Difficulty(train=7))
    ids: list[int] = []
    for split, size in (("train", 7), ("tuning", 3), ("validation", 2)):
        questions = json.loads((tmp_path / f"questions_{split}.json").read_text())["questions"]
        assert len(questions) == len(list((tmp_path / "images" / split).iterdir())) == size
        ids += [question["question_id"] for question in questions]
    assert len(set(ids)) == 12


@pytest.mark.parametrize("preset", DIFFICULTIES)
def test_another_seed_changes_codes_questions_and_pictures(preset):
    one = DIFFICULTIES[preset]
    other = one.model_copy(update={"seed": 7})
    attributes = world.ALL_ATTRIBUTES if one.backgrounds else world.ATTRIBUTES
    codes = world.world_codes(one.seed, attributes), world.world_codes(7, attributes)
    assert sum(codes[0][key] == codes[1][key] for key in codes[0]) <= 4
    found = list(zip(pictured(one), pictured(other), strict=True))
    assert sum(a[1]["scene"] == b[1]["scene"] for a, b in found) < 10
    assert all(a[2].tobytes() != b[2].tobytes() for a, b in found)
    again = list(pictured(other))
    assert [(question, annotation) for question, annotation, _ in again] == [b[:2] for _, b in found]
    assert all(a[2].tobytes() == b[2].tobytes() for a, (_, b) in zip(again, found, strict=True))


@pytest.mark.parametrize(("preset", "count"), [("choice", 4), ("classes", 24)])
def test_questions_name_codes_to_choose_from_and_one_is_right(preset, count):
    codes = set(world.world_codes(attributes=world.ALL_ATTRIBUTES).values())
    places = set()
    for question, annotation, _ in pictured(DIFFICULTIES[preset], size=40):
        options, [answer] = question["multiple_choices"], annotation["answers"]
        assert len(set(options)) == len(options) == count and codes >= set(options)
        places.add(options.index(answer["answer"]))
        assert preset == "choice" or options == sorted(codes)
    assert len(places) > 3


def test_every_number_changes_the_world():
    hard = DIFFICULTIES["hard"]
    others = {
        "backgrounds": False, "companions": 0.1, "wordings": 2, "synonyms": 1, "pairs": 0.1, "plain": 0.1,
        "careless": 0.6, "careless_wrong": 0.1, "seed": 3,
    }  # fmt: skip
    assert {*others, "train", "options"} == set(Difficulty.model_fields)
    first = [(q, a, image.tobytes()) for q, a, image in pictured(hard, size=100)]
    for name, value in others.items():
        changed = hard.model_copy(update={name: value})
        assert first != [(q, a, image.tobytes()) for q, a, image in pictured(changed, size=100)], name

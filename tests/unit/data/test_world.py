"""The bundled world, and what its tiny VLM can do on pictures that nobody has seen."""

import hashlib
import random

import numpy as np
import pytest

from icdsel.data import world
from icdsel.records import Example
from icdsel.settings.tables import DataSettings, VlmSettings
from icdsel.tasks.normalisation import normalize_answer
from icdsel.tasks.vqa_accuracy import vqa_accuracy
from icdsel.vlm.engine import Request
from icdsel.vlm.engines import open_engine
from icdsel.vlm.local.loading import TINY_VLM_DIR


def test_codes_are_sixteen_different_words_that_the_metric_leaves_alone():
    words, codes = world.code_words(), world.world_codes()
    assert len(words) == len(set(words)) == 64
    assert len(codes) == len(set(codes.values())) == 16
    assert set(codes.values()) <= set(words)
    assert all(normalize_answer(word) == word for word in words)


def test_most_people_know_the_code_and_the_right_answer_scores_1():
    rng = random.Random(0)
    for code in list(world.world_codes().values()) * 10:
        answers = world.human_answers(code, world.code_words(), rng)
        assert len(answers) == 10
        assert answers.count(code) >= 6
        # min(matches / 3, 1) is 1 over every nine of the ten
        assert vqa_accuracy(code, answers) == pytest.approx(1.0)


def test_a_picture_depends_on_the_scene_and_the_generator_alone():
    scene = world.Scene("star", "blue")
    one, two, other = (np.asarray(world.draw(scene, random.Random(seed))) for seed in (5, 5, 6))
    assert one.shape == (56, 56, 3)
    assert (one == two).all()
    assert (one != other).mean() > 0.5
    hashes = {hashlib.sha256(world.draw(s, random.Random(1)).tobytes()).hexdigest() for s in world.all_scenes()}
    assert len(hashes) == 64


def fresh_requests(folder, rng, matching: bool, count: int) -> list[tuple[Request, str]]:
    """Two demonstrations and a query on new pictures, with codes drawn afresh for each prompt.

    Either exactly one of the two shows the query's value of the asked attribute, or none does.
    """
    pictures, made = 0, []
    while len(made) < count:
        scenes = [rng.choice(world.all_scenes()) for _ in range(3)]
        attributes = [rng.choice(world.ATTRIBUTES) for _ in range(3)]
        keys = [(a, s.value(a)) for a, s in zip(attributes, scenes, strict=True)]
        if (keys[:2].count(keys[2]) == 1) != matching or (not matching and keys[2] in keys[:2]):
            continue
        codes = dict(zip(dict.fromkeys(keys), rng.sample(world.code_words(), len(set(keys))), strict=True))
        examples = []
        for scene, attribute, key in zip(scenes, attributes, keys, strict=True):
            path = folder / f"{matching}-{pictures}.png"
            pictures += 1
            world.draw(scene, rng).save(path)
            question = rng.choice(world.CODE_QUESTIONS).format(attribute=attribute)
            examples.append(Example(pictures, pictures, path, question, codes[key], (codes[key],)))
        made.append((Request(tuple(examples[:2]), examples[2]), codes[keys[2]]))
    return made


@pytest.fixture(scope="module")
def vlm():
    return open_engine(VlmSettings(model="tiny-vlm", device="cpu"), DataSettings().max_image_pixels)


def test_the_tiny_vlm_finds_the_matching_demonstration_among_two(vlm, tmp_path):
    requests = fresh_requests(tmp_path, random.Random(71), matching=True, count=400)
    answers = vlm.answer([request for request, _ in requests])
    right = sum(answer.text == code for answer, (_, code) in zip(answers, requests, strict=True)) / len(requests)
    assert right >= 0.95


def test_without_a_matching_demonstration_it_can_only_guess(vlm, tmp_path):
    requests = fresh_requests(tmp_path, random.Random(72), matching=False, count=400)
    answers = vlm.answer([request for request, _ in requests])
    right = sum(answer.text == code for answer, (_, code) in zip(answers, requests, strict=True)) / len(requests)
    assert abs(right - 1 / 64) <= 0.03
    alone = vlm.answer([Request((), request.query) for request, _ in requests])
    right = sum(answer.text == code for answer, (_, code) in zip(alone, requests, strict=True)) / len(requests)
    assert abs(right - 1 / 64) <= 0.03


def test_the_model_in_the_package_is_small_and_in_half_precision():
    from safetensors import safe_open

    weights = TINY_VLM_DIR / "model.safetensors"
    assert sum(path.stat().st_size for path in TINY_VLM_DIR.iterdir()) <= 8_000_000
    with safe_open(weights, "pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"F16"}  # noqa: SIM118

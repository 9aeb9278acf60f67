"""The tiny VLM's training data: what is labelled, guided and asked for, in every prompt style."""

from collections import Counter

import numpy as np
import pytest
import torch

from icdsel.data import world
from icdsel.data.world.questions import CODE, PAIR, PLAIN
from icdsel.tiny_vlm.architecture import VISUAL_TOKENS
from icdsel.tiny_vlm.behaviour import expected
from icdsel.tiny_vlm.episodes import NO_LABEL, VALUES, Bank, Episodes, Mix, look, rope_positions
from icdsel.tiny_vlm.tokenizer import build_processor

PROCESSOR = build_processor()
MIXED = Mix(items=4, plain=0.3, pairs=0.5, match=0.9, repeat=0.6, conflict=0.2)


@pytest.fixture(scope="module")
def bank() -> Bank:
    scenes = tuple(world.all_scenes((world.PLAIN_BACKGROUND, *world.BACKGROUNDS)))
    pixels = np.zeros((len(scenes), 2, 56, 56, 3), dtype=np.uint8)
    return Bank(pixels, scenes, np.zeros((len(scenes), 2, 1), dtype=np.float32))


@pytest.fixture
def episodes(bank: Bank) -> Episodes:
    return Episodes(PROCESSOR, bank, seed=3)


def word(token: int) -> str:
    return str(PROCESSOR.tokenizer.decode([token]))


def test_items_ask_about_what_their_picture_shows(episodes: Episodes):
    kinds: Counter[str] = Counter()
    for _ in range(200):
        for item in episodes.episode(MIXED):
            kinds[item.kind] += 1
            scene = episodes.bank.scenes[item.image // 2]
            assert all(scene.value(attribute) == value for attribute, value in item.keys)
            assert len(item.words) == len(item.keys) == (2 if item.kind == PAIR else 1)
    assert kinds[CODE] > 300 and kinds[PAIR] > 30 and kinds[PLAIN] > 100


def test_without_conflicts_a_value_has_one_code_and_plain_answers_are_right(episodes: Episodes):
    for _ in range(100):
        codes: dict[tuple[str, str], str] = {}
        for item in episodes.episode(Mix(items=5, plain=0.3, pairs=0.3, match=0.9)):
            if item.kind == PLAIN:
                assert item.answer == item.keys[0][1]
                continue
            for key, code in zip(item.keys, item.words, strict=True):
                assert codes.setdefault(key, code) == code


@pytest.mark.parametrize("style", range(4))
def test_exactly_what_follows_from_the_episode_is_labelled(episodes: Episodes, style: int):
    for _ in range(40):
        episode = episodes.episode(MIXED)
        row = episodes.tokens(episode, episodes.styles[style])
        learnt = []
        for i, item in enumerate(episode):
            target = expected(episode[:i], item)
            if target and (i == len(episode) - 1 or item.words == target.words):
                learnt.append("-".join(target.words))
        labels = [token for token in row.labels if token not in (NO_LABEL, episodes.end)]
        assert "".join(word(token) for token in labels) == "".join(learnt)
        assert all(label in (NO_LABEL, token) for label, token in zip(row.labels, row.ids, strict=True))
        assert row.ids.count(episodes.image) == 4 * VISUAL_TOKENS


@pytest.mark.parametrize("style", range(4))
def test_guides_lead_from_a_word_to_where_it_was_shown(episodes: Episodes, style: int):
    guided = 0
    for _ in range(40):
        row = episodes.tokens(episodes.episode(MIXED), episodes.styles[style])
        guided += len(row.guides)
        for predicted, shown in row.guides:
            assert {row.ids[place] for place in shown} == {row.ids[predicted + 1]} and max(shown) < predicted
            assert row.labels[predicted + 1] == row.ids[predicted + 1]
    assert guided > 40


def test_the_value_in_question_stands_where_a_word_is_predicted_and_where_it_is_shown(episodes: Episodes):
    for _ in range(40):
        episode = episodes.episode(MIXED)
        row = episodes.tokens(episode, episodes.styles[2])
        named = [value for value in row.values if value[0] != NO_LABEL]
        first = episode[0]
        places = [VALUES.index(value) for _, value in first.keys]
        assert named[0] == (places[0], places[-1])
        assert named[1] == (places[0], places[0])


def test_misled_plain_questions_are_left_out_at_first(episodes: Episodes):
    seen = 0
    for _ in range(200):
        episode = episodes.episode(Mix(items=2, plain=0.5, pairs=0.0, match=0.0, repeat=0.0))
        if [item.kind for item in episode] == [CODE, PLAIN]:
            seen += 1
            early = episodes.tokens(episode, episodes.styles[2], copying_plain=False)
            late = episodes.tokens(episode, episodes.styles[2])
            assert [token for token in early.labels if token != NO_LABEL] == []
            assert [word(t) for t in late.labels if t not in (NO_LABEL, episodes.end)] == [episode[0].words[0]]
    assert seen > 20


def test_pictures_look_alike_if_they_have_the_same_background_rather_than_the_same_shape():
    picture = world.Picture(image=None, place=(0.0, 0.0), size=16.0, companion="")  # type: ignore[arg-type]
    one, same_ground, same_shape = (
        np.array(look(scene, picture))
        for scene in (
            world.Scene("star", "red", "sea"),
            world.Scene("heart", "red", "sea"),
            world.Scene("star", "red", "sand"),
        )
    )
    assert np.linalg.norm(one - same_ground) < np.linalg.norm(one - same_shape)


def test_positions_advance_by_one_for_a_text_token_and_by_two_for_an_image():
    image = 9
    ids = torch.tensor([[1, image, image, image, image, 2, 3]])
    assert rope_positions(ids, image).tolist() == [
        [[0, 1, 1, 1, 1, 3, 4]],
        [[0, 1, 1, 2, 2, 3, 4]],
        [[0, 1, 2, 1, 2, 3, 4]],
    ]

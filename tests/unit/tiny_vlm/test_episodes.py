"""The tiny VLM's training data: what is labelled, guided and asked for, in every prompt style."""

import numpy as np
import pytest
import torch

from icdsel.data import world
from icdsel.tiny_vlm.architecture import VISUAL_TOKENS
from icdsel.tiny_vlm.episodes import NO_LABEL, VALUES, Bank, Episodes, rope_positions
from icdsel.tiny_vlm.tokenizer import build_processor

PROCESSOR = build_processor()


@pytest.fixture(scope="module")
def bank() -> Bank:
    scenes = tuple(world.all_scenes())
    return Bank(np.zeros((len(scenes), 2, 56, 56, 3), dtype=np.uint8), scenes)


@pytest.fixture
def episodes(bank: Bank) -> Episodes:
    return Episodes(PROCESSOR, bank, seed=3)


def word(token: int) -> str:
    return str(PROCESSOR.tokenizer.decode([token]))


def test_items_show_the_value_that_they_ask_for_and_codes_repeat(episodes: Episodes):
    for _ in range(100):
        codes: dict[str, str] = {}
        for item in episodes.episode(5, plain=0.3, match=0.9):
            scene = episodes.bank.scenes[item.image // 2]
            value = VALUES[item.value]
            assert value in (scene.colour, scene.shape)
            if not item.code:
                assert item.answer == value and item.determined
                continue
            assert item.determined == (value in codes)
            assert codes.setdefault(value, item.answer) == item.answer


@pytest.mark.parametrize("style", range(4))
def test_exactly_the_determined_answers_and_ends_are_labelled(episodes: Episodes, style: int):
    for _ in range(30):
        episode = episodes.episode(4, plain=0.3, match=0.9)
        row = episodes.tokens(episode, episodes.styles[style])
        labels = [token for token in row.labels if token != NO_LABEL]
        assert [word(token) for token in labels if token != episodes.end] == [
            item.answer for item in episode if item.determined
        ]
        assert row.labels[-1] == episodes.end
        assert all(label in (NO_LABEL, token) for label, token in zip(row.labels, row.ids, strict=True))
        assert row.ids.count(episodes.image) == 4 * VISUAL_TOKENS
        values = [value for value in row.values if value != NO_LABEL]
        assert values == [item.value for item in episode for _ in range(2)]


@pytest.mark.parametrize("style", range(4))
def test_guides_lead_from_a_code_to_where_it_was_shown(episodes: Episodes, style: int):
    guided = 0
    for _ in range(30):
        episode = episodes.episode(4, plain=0.0, match=1.0)
        row = episodes.tokens(episode, episodes.styles[style])
        guided += len(row.guides)
        for predicted, shown in row.guides:
            assert {row.ids[place] for place in shown} == {row.ids[predicted + 1]} and max(shown) < predicted
        assert len(row.guides) == sum(item.determined for item in episode)
    assert guided > 30


def test_positions_advance_by_one_for_a_text_token_and_by_two_for_an_image():
    image = 9
    ids = torch.tensor([[1, image, image, image, image, 2, 3]])
    assert rope_positions(ids, image).tolist() == [
        [[0, 1, 1, 1, 1, 3, 4]],
        [[0, 1, 1, 2, 2, 3, 4]],
        [[0, 1, 2, 1, 2, 3, 4]],
    ]

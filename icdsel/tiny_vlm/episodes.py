"""Training data of the tiny VLM: episodes of questions about images, with code words that are drawn for each episode.

Codes cannot be memorised: the model must find an earlier item that asks about the same attribute of an image with the
same value, and copy its answer.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icdsel.data import world
from icdsel.settings.tables import VlmSettings
from icdsel.tiny_vlm.architecture import VISUAL_TOKENS
from icdsel.vlm.prompts import LAYOUTS, PromptStyle, chat_messages

VALUES = (*world.COLOURS, *world.SHAPES)
NO_LABEL = -100


@dataclass(frozen=True)
class Item:
    """A question about an image.

    Attributes:
        image: The picture, as a position in the bank.
        question: The question.
        answer: Its answer.
        determined: Whether the answer follows from the image and the previous items.
        value: The value that the question is about, as a position in `VALUES`.
        code: Whether the answer is the code word of the value rather than its name.
    """

    image: int
    question: str
    answer: str
    determined: bool
    value: int
    code: bool


@dataclass(frozen=True)
class Bank:
    """Pictures to draw from: `pixels` uint8 (64 scenes, n, 56, 56, 3)."""

    pixels: np.ndarray
    scenes: tuple[world.Scene, ...]

    @classmethod
    def drawn(cls, per_scene: int, seed: int) -> "Bank":
        """Draws `per_scene` pictures of each of the 64 scenes."""
        rng, scenes = random.Random(seed), tuple(world.all_scenes())
        pixels = [[np.asarray(world.draw(scene, rng)) for _ in range(per_scene)] for scene in scenes]
        return cls(np.array(pixels), scenes)


@dataclass(frozen=True)
class Row:
    """An episode as tokens; `ids`, `labels` and `values` have the same length.

    Attributes:
        ids: The tokens.
        labels: The tokens to predict; `NO_LABEL` for all others.
        values: The value that the question is about, at the position of its answer and at the one before, where the
            answer is predicted; `NO_LABEL` at all others.
        guides: For each code that can be copied, the position where it is predicted and those where it was shown.
    """

    ids: list[int]
    labels: list[int]
    values: list[int]
    guides: list[tuple[int, list[int]]]


@dataclass(frozen=True)
class Batch:
    """Episodes, right-padded.

    Attributes:
        ids: int64 (B, L).
        labels: int64 (B, L).
        values: int64 (B, L).
        images: Positions in the bank, int64 (B·items,).
        positions: M-RoPE positions (3, B, L).
        guides: (row, position where a code is predicted, positions where it was shown).
    """

    ids: Tensor
    labels: Tensor
    values: Tensor
    images: Tensor
    positions: Tensor
    guides: list[tuple[int, int, list[int]]]


class Episodes:
    """Draws episodes and turns them into batches of tokens, in every prompt style."""

    def __init__(self, processor: Any, bank: Bank, seed: int) -> None:
        self.bank, self.rng, self.tokenizer = bank, random.Random(seed), processor.tokenizer
        self.words = world.code_words()
        settings = VlmSettings()
        self.styles = [
            PromptStyle(system, settings.icd_template, settings.query_template, LAYOUTS[layout])
            for system in (settings.system_prompt, "")
            for layout in ("one-turn", "turns")
        ]
        ids = self.tokenizer.convert_tokens_to_ids
        self.vision_start, self.image, self.end, self.pad = (
            ids(token) for token in ("<|vision_start|>", "<|image_pad|>", "<|im_end|>", "<|endoftext|>")
        )
        self.encode = lru_cache(100_000)(lambda text: tuple(self.tokenizer.encode(text, add_special_tokens=False)))

    def _picture(self, attribute: str | None = None, value: str | None = None) -> tuple[int, world.Scene]:
        while True:  # takes eight attempts on average: one scene in eight has the value
            k = self.rng.randrange(len(self.bank.scenes))
            scene = self.bank.scenes[k]
            if attribute is None or scene.value(attribute) == value:
                return k * self.bank.pixels.shape[1] + self.rng.randrange(self.bank.pixels.shape[1]), scene

    def episode(self, items: int, plain: float, match: float, hard: float = 0.0, repeat: float = 0.4) -> list[Item]:
        """Draws one episode.

        Args:
            items: The number of items.
            plain: The share of plain questions ("What colour is it?"), whose answer is the value itself.
            match: The probability that the last item repeats an earlier code.
            hard: The probability that all items ask about one attribute, so that codes differ only by its value.
            repeat: The probability that an item other than the last repeats an earlier code.
        """
        only = self.rng.choice(world.ATTRIBUTES) if hard and self.rng.random() < hard else None
        rng, known, codes = self.rng, set[tuple[str, str]](), dict[tuple[str, str], str]()
        free = rng.sample(self.words, items)
        episode: list[Item] = []
        for i in range(items):
            attribute = only or rng.choice(world.ATTRIBUTES)
            if rng.random() < plain and not (i == items - 1 and known and rng.random() < 0.5):
                image, scene = self._picture()
                question = rng.choice(world.PLAIN_QUESTIONS).format(attribute=attribute)
                value = scene.value(attribute)
                episode.append(Item(image, question, value, True, VALUES.index(value), code=False))
                continue
            if known and rng.random() < (match if i == items - 1 else repeat):
                attribute, value = rng.choice(sorted(known))
                image, scene = self._picture(attribute, value)
            else:
                image, scene = self._picture()
            key = (attribute, scene.value(attribute))
            code = codes.setdefault(key, free[len(codes)])
            question = rng.choice(world.CODE_QUESTIONS).format(attribute=attribute)
            episode.append(Item(image, question, code, key in known, VALUES.index(key[1]), code=True))
            known.add(key)
        return episode

    def tokens(self, episode: Sequence[Item], style: PromptStyle) -> Row:
        """Converts an episode to tokens."""
        *icds, query = episode
        messages = chat_messages(icds, query, style)
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = []
        for piece in filter(None, re.split(r"(<\|.*?\|>)", f"{prompt}{query.answer}<|im_end|>")):
            ids += [self.image] * VISUAL_TOKENS if piece == "<|image_pad|>" else self.encode(piece)
        ends = self._ends_of_answers(ids, episode)
        labels, values = [NO_LABEL] * len(ids), [NO_LABEL] * len(ids)
        guides: list[tuple[int, list[int]]] = []
        for place, (end, item) in enumerate(zip(ends, episode, strict=True)):
            values[end - 2 : end] = [item.value] * 2
            shown = [e - 1 for e, other in zip(ends[:place], episode, strict=False) if other.answer == item.answer]
            if shown and item.code:
                guides.append((end - 2, shown))
            if item.determined:
                labels[end - 1] = ids[end - 1]
            if ids[end] == self.end:
                labels[end] = self.end
        return Row(ids, labels, values, guides)

    def _ends_of_answers(self, ids: Sequence[int], episode: Sequence[Item]) -> list[int]:
        """The position after each answer. An answer is one token, before the next image or the end of a turn."""
        ends: list[int] = []
        candidates = (i for i, token in enumerate(ids) if token in (self.vision_start, self.end))
        for item in episode:
            (answer,) = self.encode(item.answer)
            ends.append(next(i for i in candidates if ids[i - 1] == answer))
        return ends

    def batch(self, episodes: Sequence[Sequence[Item]], style: PromptStyle) -> Batch:
        """Creates a batch of episodes with the same number of items."""
        rows = [self.tokens(episode, style) for episode in episodes]
        length = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), length), self.pad)
        labels = torch.full((len(rows), length), NO_LABEL)
        values = labels.clone()
        for b, row in enumerate(rows):
            ids[b, : len(row.ids)] = torch.tensor(row.ids)
            labels[b, : len(row.ids)] = torch.tensor(row.labels)
            values[b, : len(row.ids)] = torch.tensor(row.values)
        images = torch.tensor([item.image for episode in episodes for item in episode])
        guides = [(b, predicted, shown) for b, row in enumerate(rows) for predicted, shown in row.guides]
        return Batch(ids, labels, values, images, rope_positions(ids, self.image), guides)


def rope_positions(ids: Tensor, image_token: int) -> Tensor:
    """M-RoPE positions (3, B, L) for images of 2×2 visual tokens: a text token advances by 1, an image by 2."""
    is_image = ids == image_token  # (B, L)
    nth = (is_image.long().cumsum(1) - 1) % VISUAL_TOKENS  # within the image
    step = torch.where(is_image, torch.where(nth == VISUAL_TOKENS - 1, 2, 0), 1)  # only an image's last token advances
    before = step.cumsum(1) - step  # (B, L)
    row, column = torch.where(is_image, nth // 2, 0), torch.where(is_image, nth % 2, 0)
    return torch.stack([before, before + row, before + column])

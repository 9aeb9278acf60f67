"""Training data of the tiny VLM: episodes of questions about images, with code words that are drawn for each episode.

Codes cannot be memorised: the model must find earlier items of the same value, and copy their answers, as
`icdsel.tiny_vlm.behaviour` says.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icdsel.data import world
from icdsel.data.world.questions import CARELESS, CODE, PAIR, PLAIN, SYNONYMS, WORDINGS
from icdsel.settings.tables import VlmSettings
from icdsel.tiny_vlm.architecture import VISUAL_TOKENS
from icdsel.tiny_vlm.behaviour import Item, Key, expected
from icdsel.vlm.prompts import LAYOUTS, PromptStyle, chat_messages

VALUES = tuple(value for attribute in world.ALL_ATTRIBUTES for value in world.VALUES[attribute])
NO_LABEL = -100


@dataclass(frozen=True)
class Bank:
    """Pictures to draw from.

    Attributes:
        pixels: The pictures by scene, uint8 (576 scenes, n, 56, 56, 3).
        scenes: The scenes.
        looks: What each picture looks like (`look`), float32 (576, n, LOOK).
    """

    pixels: np.ndarray
    scenes: tuple[world.Scene, ...]
    looks: np.ndarray

    @classmethod
    def drawn(cls, per_scene: int, seed: int) -> "Bank":
        """Draws `per_scene` pictures of each scene, half of those on a background with a companion."""
        rng = random.Random(seed)
        scenes = tuple(world.all_scenes((world.PLAIN_BACKGROUND, *world.BACKGROUNDS)))
        drawn = [
            [world.draw_picture(scene, rng, bool(i % 2) and scene.busy) for i in range(per_scene)] for scene in scenes
        ]
        pixels = np.array([[np.asarray(picture.image) for picture in own] for own in drawn])
        looks = [[look(scene, picture) for picture in own] for scene, own in zip(scenes, drawn, strict=True)]
        return cls(pixels, scenes, np.array(looks, dtype=np.float32))


# How far apart pictures are that differ in one respect: what fills a picture counts more than what is asked about.
_STRENGTH = {"background": 1.0, "companion": 0.8, "place": 0.9, "size": 0.6, "colour": 0.6, "shape": 0.5}


def look(scene: world.Scene, picture: world.Picture) -> list[float]:
    """What a picture looks like as a whole: a vector in which similar pictures are near each other."""
    colours = tuple(world.COLOURS)

    def one_of(names: Sequence[str], name: str, respect: str) -> list[float]:
        return [_STRENGTH[respect] * (name == other) for other in names]

    return [
        *one_of(world.BACKGROUNDS, scene.background, "background"),
        *one_of(colours, picture.companion, "companion"),
        *(_STRENGTH["place"] * part * 1.5 for part in picture.place),
        _STRENGTH["size"] * (picture.size - 16) / 3,
        *one_of(colours, scene.colour, "colour"),
        *one_of(world.SHAPES, scene.shape, "shape"),
    ]


@dataclass(frozen=True)
class Mix:
    """What an episode consists of; all but the first are probabilities.

    Attributes:
        items: The number of items.
        easy: Pictures on a plain background, with the wordings of the easy world and no pairs.
        plain: A plain question.
        pairs: The last item asks for two codes. The items before show them, each in one that asks for one code, or
            both in one that asks for both.
        match: The last item asks for a code that was shown.
        repeat: Another item asks for a code that was shown.
        hard: All items ask about one attribute, so that codes differ only by its value.
        conflict: A code that was shown before is shown differently, or a plain answer is wrong.
    """

    items: int
    easy: float = 0.2
    plain: float = 0.3
    pairs: float = 0.0
    match: float = 0.85
    repeat: float = 0.4
    hard: float = 0.0
    conflict: float = 0.0


@dataclass(frozen=True)
class Row:
    """An episode as tokens; `ids`, `labels` and `values` have the same length.

    Attributes:
        ids: The tokens.
        labels: The tokens to predict; `NO_LABEL` for all others.
        values: The two values (the same twice, if it is one) that the question is about, at the positions where a word
            of its answer is predicted; at a word that stands for a value, this value; `NO_LABEL` at all others.
        guides: For each word that can be copied, the position where it is predicted and those where it was shown.
    """

    ids: list[int]
    labels: list[int]
    values: list[tuple[int, int]]
    guides: list[tuple[int, list[int]]]


@dataclass(frozen=True)
class Batch:
    """Episodes, right-padded.

    Attributes:
        ids: int64 (B, L).
        labels: int64 (B, L).
        values: int64 (B, L, 2).
        images: Positions in the bank, int64 (B·items,).
        positions: M-RoPE positions (3, B, L).
        guides: (row, position where a word is predicted, positions where it was shown).
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
        self._scene = {scene: k for k, scene in enumerate(bank.scenes)}
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

    # ---- drawing ----

    def picture(self, values: Mapping[str, str], easy: bool) -> tuple[int, world.Scene]:
        """A picture with these values by attribute, as a position in the bank, and its scene."""
        rng = self.rng
        backgrounds = (world.PLAIN_BACKGROUND,) if easy else world.BACKGROUNDS
        scene = world.Scene(
            values.get("shape") or rng.choice(world.SHAPES),
            values.get("colour") or rng.choice(tuple(world.COLOURS)),
            values.get("background") or rng.choice(backgrounds),
        )
        count = self.bank.pixels.shape[1]
        return self._scene[scene] * count + rng.randrange(count), scene

    def question(self, kind: str, attributes: Sequence[str], easy: bool) -> str:
        """A question of a kind about one or two attributes, named in any order."""
        rng = self.rng
        if easy:
            wordings = world.CODE_QUESTIONS if kind == CODE else world.PLAIN_QUESTIONS
            return rng.choice(wordings).format(attribute=attributes[0])
        words = [rng.choice(SYNONYMS[attribute]) for attribute in attributes]
        rng.shuffle(words)
        return rng.choice(WORDINGS[kind] + CARELESS[kind]).format(attribute=words[0], other=words[-1])

    def episode(self, mix: Mix) -> list[Item]:
        """Draws one episode."""
        rng = self.rng
        easy = rng.random() < mix.easy
        attributes: tuple[str, ...] = world.ATTRIBUTES if easy else world.ALL_ATTRIBUTES
        if rng.random() < mix.hard:
            attributes = (rng.choice(attributes),)
        free = iter(rng.sample(self.words, 3 * mix.items))
        codes: dict[Key, str] = {}
        if not easy and mix.items > 1 and rng.random() < mix.pairs:
            return self._pair_episode(mix, codes, free)
        items: list[Item] = []
        for i in range(mix.items):
            last = i == mix.items - 1
            known = sorted(codes)
            again = known and rng.random() < (mix.match if last else mix.repeat)
            if rng.random() < mix.plain and not (last and known and rng.random() < 0.5):
                items.append(self._plain(attributes, easy, mix.conflict))
            elif not easy and not last and rng.random() < 0.25 * mix.pairs:
                items.append(self._pair(dict([rng.choice(known)]) if again else {}, codes, free))
            else:
                key = rng.choice(known) if again else (rng.choice(attributes), "")
                items.append(self._code(key, codes, free, easy, mix.conflict))
        return items

    def _pair_episode(self, mix: Mix, codes: dict[Key, str], free: Iterator[str]) -> list[Item]:
        """An episode whose last item is a pair question; mostly, both codes are shown before."""
        rng = self.rng
        query = self._pair({}, codes, free)
        if mix.items == 2 or rng.random() < 0.2:
            shown = [self._pair(dict(query.keys), codes, free)]
        else:
            shown = [self._code(key, codes, free, False, mix.conflict) for key in query.keys]
            shown = shown if rng.random() < mix.match else shown[:1]
        while len(shown) < mix.items - 1:
            kind = rng.random()
            if kind < mix.plain:
                shown.append(self._plain(world.ALL_ATTRIBUTES, False, mix.conflict))
            elif kind < mix.plain + 0.2:
                shown.append(self._pair({}, codes, free))
            else:
                shown.append(self._code((rng.choice(world.ALL_ATTRIBUTES), ""), codes, free, False, mix.conflict))
        rng.shuffle(shown)
        return [*shown, query]

    def _code(self, key: Key, codes: dict[Key, str], free: Iterator[str], easy: bool, conflict: float) -> Item:
        attribute, value = key
        image, scene = self.picture({attribute: value} if value else {}, easy)
        key = (attribute, scene.value(attribute))
        if key not in codes or self.rng.random() < conflict:
            codes[key] = next(free)
        return Item(image, self.question(CODE, [attribute], easy), CODE, (key,), (codes[key],))

    def _pair(self, wanted: Mapping[str, str], codes: dict[Key, str], free: Iterator[str]) -> Item:
        """A pair question about a picture with the wanted values, and about these attributes first of all."""
        asked = [*wanted, *self.rng.sample([a for a in world.ALL_ATTRIBUTES if a not in wanted], 3 - len(wanted))][:2]
        image, scene = self.picture(wanted, easy=False)
        pair = sorted(asked, key=world.ALL_ATTRIBUTES.index)
        keys = tuple((attribute, scene.value(attribute)) for attribute in pair)
        for key in keys:
            if key not in codes:
                codes[key] = next(free)
        return Item(image, self.question(PAIR, pair, easy=False), PAIR, keys, tuple(codes[key] for key in keys))

    def _plain(self, attributes: Sequence[str], easy: bool, conflict: float) -> Item:
        attribute = self.rng.choice(attributes)
        image, scene = self.picture({}, easy)
        value = scene.value(attribute)
        shown = value
        if self.rng.random() < conflict:
            shown = self.rng.choice([other for other in world.VALUES[attribute] if other != value])
        return Item(image, self.question(PLAIN, [attribute], easy), PLAIN, ((attribute, value),), (shown,))

    # ---- tokens ----

    def tokens(self, episode: Sequence[Item], style: PromptStyle, copying_plain: bool = True) -> Row:
        """Converts an episode to tokens.

        An item's answer is predicted where something decides it and the episode shows that answer: an item that shows
        another one (a wrong answer, a new code) is only a demonstration.

        Args:
            episode: The items; the last one is the query.
            style: The prompt style.
            copying_plain: Whether plain questions after a demonstration with a code, whose answer is then that code,
                are learnt from.
        """
        targets = [expected(episode[:i], item) for i, item in enumerate(episode)]
        query, target = episode[-1], targets[-1]
        answer = "-".join(target.words) if target else query.answer
        messages = chat_messages(episode[:-1], query, style)
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = []
        for piece in filter(None, re.split(r"(<\|.*?\|>)", f"{prompt}{answer}<|im_end|>")):
            ids += [self.image] * VISUAL_TOKENS if piece == "<|image_pad|>" else self.encode(piece)
        shown = [*(item.answer for item in episode[:-1]), answer]
        starts = self._starts_of_answers(ids, shown)
        labels, values = [NO_LABEL] * len(ids), [(NO_LABEL, NO_LABEL)] * len(ids)
        guides: list[tuple[int, list[int]]] = []
        for item, target, said, start in zip(episode, targets, shown, starts, strict=True):
            places = [VALUES.index(value) for _, value in item.keys]
            asked = (places[0], places[-1])
            learnt = target is not None and said == "-".join(target.words)
            if item.kind == PLAIN and target and target.words[0] not in VALUES and not copying_plain:
                learnt = False
            for k in range(len(said.split("-"))):
                word = start + 2 * k
                values[word - 1] = asked
                if said == item.answer:  # the last item's words may stand for other values
                    values[word] = (places[k], places[k])
                if target is not None and learnt:
                    labels[word] = ids[word]
                    if k:
                        labels[word - 1] = ids[word - 1]
                    if target.read[k] and item.kind != PLAIN:
                        guides.append((word - 1, [starts[i] + 2 * w for i, w in target.read[k]]))
            end = start + 2 * len(said.split("-")) - 1
            if ids[end] == self.end and learnt:
                labels[end] = self.end
        return Row(ids, labels, values, guides)

    def _starts_of_answers(self, ids: Sequence[int], answers: Sequence[str]) -> list[int]:
        """The position of the first token of each answer, which ends before the next image or the end of a turn."""
        starts: list[int] = []
        ends = (i for i, token in enumerate(ids) if token in (self.vision_start, self.end))
        for answer in answers:
            said = self.encode(answer)
            starts.append(next(i for i in ends if tuple(ids[i - len(said) : i]) == said) - len(said))
        return starts

    def batch(self, episodes: Sequence[Sequence[Item]], style: PromptStyle, copying_plain: bool = True) -> Batch:
        """Creates a batch of episodes with the same number of items."""
        rows = [self.tokens(episode, style, copying_plain) for episode in episodes]
        length = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), length), self.pad)
        labels = torch.full((len(rows), length), NO_LABEL)
        values = torch.full((len(rows), length, 2), NO_LABEL)
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

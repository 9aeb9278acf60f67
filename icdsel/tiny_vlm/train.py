"""Trains the tiny VLM of the bundled world: `python -m icdsel.tiny_vlm.train OUT`.

Every episode draws the code words of the shapes and colours afresh, so nothing can be learnt by heart: the
model must look for an earlier item that asks about the same attribute, of an image with the same value, and
copy its answer. Plain questions ("What colour is it?") are mixed in; they teach the vision tower and make the
matching appear sooner. The loss is on the answers that the episode determines and on the end of the turn.
"""

import argparse
import copy
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_vision,
)

from icdsel.data import world
from icdsel.settings.tables import VlmSettings
from icdsel.tiny_vlm.tokenizer import build_processor
from icdsel.vlm.prompts import PromptStyle, chat_messages

VALUES = (*world.COLOURS, *world.SHAPES)
PROBED_LAYER = 2  # of 6: up to it what is asked is read off the images, above it matched and copied
VISUAL_TOKENS, GRID = 4, 4  # a 56×56 image: 4×4 patches, merged 2×2


@dataclass(frozen=True)
class Item:
    """One question about one image; `determined` where the episode so far says what the answer is.

    `value` is the place of the asked value in `VALUES`.
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
        """`per_scene` pictures of each of the 64 scenes."""
        rng, scenes = random.Random(seed), tuple(world.all_scenes())
        pixels = [[np.asarray(world.draw(scene, rng)) for _ in range(per_scene)] for scene in scenes]
        return cls(np.array(pixels), scenes)


def make_config(processor: Any) -> Qwen2_5_VLConfig:
    """The tiny model's architecture: 2.1 M parameters."""
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in processor.tokenizer.all_special_tokens}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "initializer_range": 0.04,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 4,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [0, 1, 2, 3],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


class Episodes:
    """Draws batches of episodes of one layout as token ids, images and labels."""

    def __init__(self, processor: Any, bank: Bank, seed: int) -> None:
        self.bank, self.rng, self.tokenizer = bank, random.Random(seed), processor.tokenizer
        self.words = world.code_words()
        settings = VlmSettings()
        self.styles = [
            PromptStyle(system, settings.icd_template, settings.query_template, layout)
            for system in (settings.system_prompt, "")
            for layout in ("one-turn", "turns")
        ]
        ids = self.tokenizer.convert_tokens_to_ids
        self.vision_start, self.image, self.end = (
            ids("<|vision_start|>"),
            ids("<|image_pad|>"),
            ids("<|im_end|>"),
        )
        self.start_of_turn, self.pad = ids("<|im_start|>"), ids("<|endoftext|>")
        self.encode = lru_cache(100_000)(lambda text: tuple(self.tokenizer.encode(text, add_special_tokens=False)))

    def _picture(self, attribute: str | None = None, value: str | None = None) -> tuple[int, world.Scene]:
        while True:  # one scene in eight fits
            k = self.rng.randrange(len(self.bank.scenes))
            scene = self.bank.scenes[k]
            if attribute is None or scene.value(attribute) == value:
                return k * self.bank.pixels.shape[1] + self.rng.randrange(self.bank.pixels.shape[1]), scene

    def episode(self, items: int, plain: float, match: float, hard: float = 0.0, repeat: float = 0.4) -> list[Item]:
        """`items` items with a share of `plain` questions; the last repeats an earlier code with chance `match`.

        The others do so with chance `repeat`.

        With chance `hard` all items ask about one attribute, so that only its value tells the codes apart.
        """
        only = self.rng.choice(world.ATTRIBUTES) if hard and self.rng.random() < hard else None
        rng, known, codes = self.rng, set[tuple[str, str]](), dict[tuple[str, str], str]()
        free = rng.sample(self.words, items)
        made: list[Item] = []
        for i in range(items):
            attribute = only or rng.choice(world.ATTRIBUTES)
            if rng.random() < plain and not (i == items - 1 and known and rng.random() < 0.5):
                image, scene = self._picture()
                question = rng.choice(world.PLAIN_QUESTIONS).format(attribute=attribute)
                value = scene.value(attribute)
                made.append(Item(image, question, value, True, VALUES.index(value), code=False))
                continue
            if known and rng.random() < (match if i == items - 1 else repeat):
                attribute, value = rng.choice(sorted(known))
                image, scene = self._picture(attribute, value)
            else:
                image, scene = self._picture()
            key = (attribute, scene.value(attribute))
            code = codes.setdefault(key, free[len(codes)])
            question = rng.choice(world.CODE_QUESTIONS).format(attribute=attribute)
            made.append(Item(image, question, code, key in known, VALUES.index(key[1]), code=True))
            known.add(key)
        return made

    def tokens(self, episode: Sequence[Item], style: PromptStyle) -> "Row":
        """The episode in tokens."""
        *icds, query = episode
        messages = chat_messages(icds, query, style)
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = []
        for piece in _split_special(f"{text}{query.answer}<|im_end|>"):
            ids += [self.image] * VISUAL_TOKENS if piece == "<|image_pad|>" else self.encode(piece)
        # Every answer is one token, and stands before the next image or the end of a turn.
        if style.layout == "one-turn":
            ends = [*(i for i, token in enumerate(ids) if token == self.vision_start), len(ids) - 1][1:]
        else:
            ends = [i for i, token in enumerate(ids) if token == self.end]
            ends = ends[-2 * len(episode) + 1 :: 2]
        labels, values = [-100] * len(ids), [-100] * len(ids)
        guides: list[tuple[int, list[int]]] = []
        for place, (end, item) in enumerate(zip(ends, episode, strict=True)):
            values[end - 2 : end] = [item.value] * 2  # where the answer is predicted, and where it stands
            shown = [e - 1 for e, other in zip(ends[:place], episode, strict=False) if other.answer == item.answer]
            if shown and item.code:
                guides.append((end - 2, shown))
            if item.determined:
                labels[end - 1] = ids[end - 1]
            if ids[end] == self.end:
                labels[end] = self.end
        return Row(ids, labels, values, guides)

    def batch(self, episodes: Sequence[Sequence[Item]], style: PromptStyle) -> "Batch":
        """Episodes of equally many items, right-padded."""
        rows = [self.tokens(episode, style) for episode in episodes]
        length = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), length), self.pad)
        labels = torch.full((len(rows), length), -100)
        values = labels.clone()
        for b, row in enumerate(rows):
            ids[b, : len(row.ids)] = torch.tensor(row.ids)
            labels[b, : len(row.ids)] = torch.tensor(row.labels)
            values[b, : len(row.ids)] = torch.tensor(row.values)
        images = torch.tensor([item.image for episode in episodes for item in episode])
        guides = [(b, asked, shown) for b, row in enumerate(rows) for asked, shown in row.guides]
        return Batch(ids, labels, values, images, rope_positions(ids, self.image), guides)


def _split_special(text: str) -> list[str]:
    rest, pieces = text, list[str]()
    while "<|" in rest:
        before, _, rest = rest.partition("<|")
        name, _, rest = rest.partition("|>")
        pieces.extend(filter(None, (before, f"<|{name}|>")))
    return [*pieces, rest] if rest else pieces


@dataclass(frozen=True)
class Row:
    """An episode's token ids, labels and asked values (−100 where there is none), all of one length.

    `guides` says for each determined code where it is asked and where it was shown before.
    """

    ids: list[int]
    labels: list[int]
    values: list[int]
    guides: list[tuple[int, list[int]]]


@dataclass(frozen=True)
class Batch:
    """`ids`, `labels`, `values` int64 (B, L); `images` int64 (B·items,), places in the bank; `positions` (3, B, L).

    `guides` holds (row, place where a code is asked, places where it was shown).
    """

    ids: Tensor
    labels: Tensor
    values: Tensor
    images: Tensor
    positions: Tensor
    guides: list[tuple[int, int, list[int]]]


def rope_positions(ids: Tensor, image_token: int) -> Tensor:
    """M-RoPE positions (3, B, L) where every image is 2×2 merged patches: text steps by 1, an image by 2."""
    is_image = ids == image_token  # (B, L)
    nth = (is_image.long().cumsum(1) - 1) % VISUAL_TOKENS  # place within the image
    # An image of four tokens moves the counter by 2: its tokens count 0, 0, 0, 2.
    step = torch.where(is_image, torch.where(nth == VISUAL_TOKENS - 1, 2, 0), 1)
    before = step.cumsum(1) - step  # (B, L)
    row, column = torch.where(is_image, nth // 2, 0), torch.where(is_image, nth % 2, 0)
    return torch.stack([before, before + row, before + column])


def patches(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (N, 56, 56, 3) to the image processor's patches, float32 (N·16, 1176)."""
    x = (images.permute(0, 3, 1, 2).float() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    x = x.reshape(len(x), 3, 2, 2, 14, 2, 2, 14).permute(0, 2, 5, 3, 6, 1, 4, 7)  # (N, bh, bw, mh, mw, 3, 14, 14)
    return x.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1).reshape(-1, 3 * 2 * 14 * 14)


def image_features(visual: Any, pixel_values: Tensor) -> Tensor:
    """The vision tower on images of one size, batched: float32 (N·4, 128), as `visual` itself computes them."""
    x = visual.patch_embed(pixel_values)  # (N·16, D)
    count = GRID * GRID
    block = torch.arange(count)
    row = block // 8 * 2 + block % 4 // 2  # patches lie in 2×2 blocks
    column = block // 4 % 2 * 2 + block % 2
    cos, sin = visual.rotary_pos_emb(x, torch.stack([row, column], -1))  # (16, head_dim)
    for layer in visual.blocks:
        attention = layer.attn
        qkv = attention.qkv(layer.norm1(x)).reshape(-1, count, 3, attention.num_heads, attention.head_dim)
        q, k, v = qkv.unbind(2)  # (N, 16, H, head_dim)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = x + attention.proj(y.transpose(1, 2).reshape(len(x), -1))
        x = x + layer.mlp(layer.norm2(x))
    merged: Tensor = visual.merger(x)
    return merged


def bank_features(visual: Any, bank: Bank, normalise: Any) -> Tensor:
    """Visual tokens of every picture of `bank`, float32 (N, 4, 128)."""
    pixels = torch.from_numpy(bank.pixels.reshape(-1, *bank.pixels.shape[2:]))  # (N, 56, 56, 3)
    chunks = [
        image_features(visual, patches(chunk, normalise.image_mean, normalise.image_std)) for chunk in pixels.split(512)
    ]
    return torch.cat(chunks).reshape(len(pixels), VISUAL_TOKENS, -1)


def train_vision(visual: Any, bank: Bank, normalise: Any, *, steps: int, seed: int, batch_size: int = 256) -> None:
    """First the vision tower alone: shape and colour must be readable, linearly, off the mean visual token."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.from_numpy(bank.pixels.reshape(-1, *bank.pixels.shape[2:]))  # (N, 56, 56, 3)
    per_scene = bank.pixels.shape[1]
    shape = torch.tensor([world.SHAPES.index(scene.shape) for scene in bank.scenes]).repeat_interleave(per_scene)
    colour = torch.tensor([list(world.COLOURS).index(s.colour) for s in bank.scenes]).repeat_interleave(per_scene)
    probe = torch.nn.Linear(128, len(world.SHAPES) + len(world.COLOURS))
    parameters = [*visual.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    started = time.monotonic()
    for step in range(steps):
        picked = torch.randint(len(pixels), (batch_size,), generator=generator)
        values = patches(pixels[picked], normalise.image_mean, normalise.image_std)
        seen = image_features(visual, values).reshape(batch_size, VISUAL_TOKENS, -1).mean(1)  # (N, 128)
        logits = probe(seen).split([len(world.SHAPES), len(world.COLOURS)], dim=1)
        loss = F.cross_entropy(logits[0], shape[picked]) + F.cross_entropy(logits[1], colour[picked])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            truths = (shape[picked], colour[picked])
            right = [(part.argmax(1) == truth).float().mean() for part, truth in zip(logits, truths, strict=True)]
            minutes = (time.monotonic() - started) / 60
            told = f"shape {right[0]:.1%}  colour {right[1]:.1%}"
            print(f"vision {step + 1}  loss {loss.item():.3f}  {told}  {minutes:.1f} min", flush=True)


def answer_logits(model: Any, batch: Batch, features: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at the labelled places (M, vocabulary) and the labels (M,), from the bank's `features` (N, 4, 128)."""
    embeds = model.get_input_embeddings()(batch.ids)  # (B, L, 128)
    embeds = embeds.masked_scatter((batch.ids == model.config.image_token_id)[..., None], features[batch.images])
    hidden = model.model.language_model(
        inputs_embeds=embeds, position_ids=batch.positions, attention_mask=None, use_cache=False
    ).last_hidden_state
    asked = batch.labels[:, 1:] != -100
    return model.lm_head(hidden[:, :-1][asked]), batch.labels[:, 1:][asked]


@torch.no_grad()
def evaluate(model: Any, episodes: Episodes, features: Tensor, style: PromptStyle) -> dict[str, float]:
    """Share of right last answers, on pictures never trained on.

    Of plain questions, and of codes where both of two demonstrations ask about the query's attribute and one of
    them shows its value (by chance: 50 %).
    """
    right: dict[str, list[float]] = {"plain": [], "colour": [], "shape": []}
    made = [episodes.episode(3, 1.0, 0.0) for _ in range(100)]
    while len(made) < 500:
        episode = episodes.episode(3, 0.0, 1.0, hard=1.0)
        if episode[0].answer != episode[1].answer:
            made.append(episode)
    batch = episodes.batch(made, style)
    last = (batch.labels == episodes.end).long().cumsum(1).argmax(1) - 1  # the answer before the end
    labels = torch.full_like(batch.labels, -100)
    rows = torch.arange(len(made))
    labels[rows, last] = batch.ids[rows, last]
    logits, expected = answer_logits(model, replace(batch, labels=labels), features)
    for episode, hit in zip(made, (logits.argmax(-1) == expected).float().tolist(), strict=True):
        question = episode[-1].question
        kind = "plain" if "code" not in question.lower() else ("colour" if "colour" in question else "shape")
        right[kind].append(hit)
    return {kind: sum(hits) / max(1, len(hits)) for kind, hits in right.items()}


@dataclass(frozen=True)
class Stage:
    """A part of the training: `steps` steps with learning rate `peak`, reached in `warm_up`, let down over `decay`.

    `items` weighs episodes of 1 to 5 items, `styles` the prompt styles of `Episodes`, `hard` is the share of
    episodes that ask about one attribute only, `probe` the weight of the loss on reading the asked value,
    `guide` of the loss on the attention of the first `heads` heads (see `guide_loss`), `plain` the share of plain
    questions, `repeat` the chance that a code question before the last repeats an earlier one; `spread` draws the
    embeddings of the code words anew, far apart.
    """

    steps: int
    peak: float
    decay: int
    hard: float
    items: tuple[int, ...]
    styles: tuple[int, ...]
    probe: float
    guide: float
    heads: int
    plain: float = 0.3
    repeat: float = 0.4
    spread: bool = False
    warm_up: int = 200


STAGES = (
    # Without a system prompt and in one layout: shorter prompts, and one thing at a time. First where to look…
    Stage(
        steps=700,
        peak=1.5e-3,
        decay=0,
        hard=0.5,
        items=(3, 7, 40, 25, 25),
        styles=(0, 0, 100, 0),
        probe=0.5,
        guide=0.5,
        heads=1,
    ),
    # … then, with all heads of that layer, to copy what is there …
    Stage(
        steps=400,
        peak=1.5e-3,
        decay=0,
        hard=0.5,
        items=(0, 5, 40, 25, 30),
        styles=(0, 0, 100, 0),
        probe=0.3,
        guide=0.5,
        heads=4,
        spread=True,
        plain=0.15,
        repeat=0.7,
    ),
    # … and every prompt style, with less of the help.
    Stage(
        steps=1500,
        peak=1.5e-3,
        decay=1200,
        hard=0.4,
        items=(3, 12, 45, 20, 20),
        styles=(40, 10, 30, 20),
        probe=0.2,
        guide=0.1,
        heads=4,
        plain=0.25,
        repeat=0.6,
    ),
)


def train(out: Path, *, vision_steps: int, batch_size: int, seed: int, first: int = 0) -> None:
    """Trains and writes model, tokenizer and processor to `out` (half precision on disk).

    The vision tower is trained first. Every stage begins from the weights that `out` holds by then, so a run
    that is cut off goes on with the stage `first`, with the same result.
    """
    torch.manual_seed(seed)
    processor = build_processor()
    normalise = processor.image_processor
    model = Qwen2_5_VLForConditionalGeneration(make_config(processor)).float().train()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, vocabulary {len(processor.tokenizer)}")
    bank, fresh = Bank.drawn(per_scene=400, seed=seed), Bank.drawn(per_scene=8, seed=seed + 1)
    if first == 0:
        train_vision(model.model.visual, bank, normalise, steps=vision_steps, seed=seed)
        save(model, processor, out)
    for number in range(max(0, first - 1), len(STAGES)):
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(out, dtype=torch.float32).train()
        model.model.visual.requires_grad_(False)
        with torch.no_grad():  # the vision tower stays as it is, so each picture is looked at once
            features, fresh_features = (bank_features(model.model.visual, b, normalise) for b in (bank, fresh))
        episodes = Episodes(processor, bank, seed + 100 * (number + 1))
        held_out = Episodes(processor, fresh, seed + 1)
        if STAGES[number].spread:
            spread_codes(model, processor.tokenizer, seed + number)
        _train_stage(model, STAGES[number], number, episodes, features, held_out, fresh_features, batch_size)
        save(model, processor, out)


def guide_loss(
    attention: Any,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    guides: Sequence[tuple[int, int, list[int]]],
    heads: int,
) -> Tensor:
    """−log of the attention that the first `heads` heads pay to where the asked code was shown, on average.

    Left alone, the model gathers all codes of its context in a bag and guesses among them; heads that look at
    the right one from the start lead past that.
    """
    if not guides:
        return hidden.new_zeros(())
    width, (cos, sin) = heads * attention.head_dim, rotary
    q, k = (
        F.linear(hidden, p.weight[:width], p.bias[:width]).unflatten(-1, (heads, attention.head_dim))
        for p in (attention.q_proj, attention.k_proj)
    )  # (B, L, heads, 32)
    q, k = apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    rows, places = (torch.tensor(part) for part in zip(*((b, asked) for b, asked, _ in guides), strict=True))
    scores = torch.einsum("mlhd,mhd->mhl", k[rows], q[rows, places]) * attention.scaling  # (M, heads, L)
    later = torch.arange(hidden.shape[1]) > places[:, None]  # (M, L)
    scores = scores.masked_fill(later[:, None], -torch.inf)
    wrong = torch.ones_like(later)
    for m, (_, _, shown) in enumerate(guides):
        wrong[m, shown] = False
    missed: Tensor = scores.logsumexp(2) - scores.masked_fill(wrong[:, None], -torch.inf).logsumexp(2)  # (M, heads)
    return missed.mean()


@torch.no_grad()
def spread_codes(model: Any, tokenizer: Any, seed: int, norm: float = 2.0) -> None:
    """Gives every code word an embedding of its own: the mean of them all, and `norm` in a random direction.

    Left alone, the 64 embeddings stay small and within a handful of directions, and copying is slow to come.
    """
    rows = [tokenizer.convert_tokens_to_ids(word) for word in world.code_words()]
    table = model.get_input_embeddings().weight
    own = torch.randn(len(rows), table.shape[1], generator=torch.Generator().manual_seed(seed))  # (64, 128)
    table[rows] = table[rows].mean(0) + norm * F.normalize(own, dim=1)


def _train_stage(
    model: Any, stage: Stage, number: int, episodes: Episodes, features: Tensor, held_out: Episodes, fresh: Tensor,
    batch_size: int,
) -> None:  # fmt: skip
    # Read at a middle layer, the asked value is the same thing at a demonstration's answer and at the query's:
    # that is what the layer above can match by.
    torch.manual_seed(number)
    probe = torch.nn.Linear(128, len(VALUES))
    tapped: dict[str, Any] = {}
    attention = model.model.language_model.layers[PROBED_LAYER + 1].self_attn
    tap = attention.register_forward_pre_hook(lambda _module, _inputs, given: tapped.update(given), with_kwargs=True)
    trained = [*(p for p in model.parameters() if p.requires_grad), *probe.parameters()]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": 0.05},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=stage.peak, betas=(0.9, 0.98))
    rng, started, losses = random.Random(number), time.monotonic(), list[Tensor]()
    for step in range(stage.steps):
        down = (stage.steps - step) / stage.decay if stage.decay else 1.0
        for group in optimizer.param_groups:
            group["lr"] = stage.peak * min(1.0, (step + 1) / stage.warm_up, max(0.02, down))
        items = rng.choices((1, 2, 3, 4, 5), weights=stage.items)[0]
        style = episodes.styles[rng.choices(range(4), weights=stage.styles)[0]]
        size = max(16, round(batch_size * 3 / items))
        made = [
            episodes.episode(items, 1.0 if items == 1 else stage.plain, 0.85, stage.hard, stage.repeat)
            for _ in range(size)
        ]
        batch = episodes.batch(made, style)
        tapped.clear()
        logits, labels = answer_logits(model, batch, features)
        asked = batch.values != -100
        value_loss = F.cross_entropy(probe(tapped["hidden_states"][asked]), batch.values[asked])
        guidance = guide_loss(
            attention, tapped["hidden_states"], tapped["position_embeddings"], batch.guides, stage.heads
        )
        loss = F.cross_entropy(logits, labels) + stage.probe * value_loss + stage.guide * guidance
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.detach())
        if (step + 1) % 100 == 0:
            shares = evaluate(model, held_out, fresh, episodes.styles[0 if stage.styles[0] else 2])
            told = "  ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
            minutes = (time.monotonic() - started) / 60
            mean = torch.stack(losses[-100:]).mean().item()
            told += f"  probe {value_loss.item():.3f}  guide {guidance.item():.3f}"
            print(f"stage {number + 1} step {step + 1}  loss {mean:.3f}  {told}  {minutes:.1f} min", flush=True)
    tap.remove()


def save(model: Any, processor: Any, out: Path) -> None:
    """Writes the folder that `AutoModelForImageTextToText` and `AutoProcessor` read."""
    copy.deepcopy(model).half().eval().save_pretrained(out)
    processor.save_pretrained(out)


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the model to")
    parser.add_argument("--vision-steps", type=int, default=1000, help="steps of the vision tower alone")
    parser.add_argument("--batch-size", type=int, default=48, help="episodes of 3 items a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="go on from the weights in OUT with this stage (1 to 3)")
    options = parser.parse_args()
    train(
        options.out,
        vision_steps=options.vision_steps,
        batch_size=options.batch_size,
        seed=options.seed,
        first=options.first,
    )


if __name__ == "__main__":
    main()

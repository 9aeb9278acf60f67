"""Trains the tiny VLM of the bundled world: `python -m icdsel.tiny_vlm.train OUT`.

The vision encoder is trained first, by itself. Then the language model is trained in stages, on episodes with code
words that differ between episodes (`icdsel.tiny_vlm.episodes`). Plain questions ("What colour is it?") are mixed in;
with them the model learns to match earlier. The loss covers the answers that follow from the episode, and the end of
the turn. Pairs, contradictions and misled plain questions (`icdsel.tiny_vlm.behaviour`) come last.
"""

import argparse
import copy
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2_5_VLForConditionalGeneration

from icdsel.data import world
from icdsel.data.world.questions import CODE, PAIR, PLAIN
from icdsel.tiny_vlm.architecture import WIDTH, make_config
from icdsel.tiny_vlm.behaviour import Item
from icdsel.tiny_vlm.episodes import NO_LABEL, VALUES, Bank, Batch, Episodes, Mix
from icdsel.tiny_vlm.losses import answer_logits, guide_loss
from icdsel.tiny_vlm.tokenizer import build_processor
from icdsel.tiny_vlm.vision import bank_features, train_vision
from icdsel.vlm.prompts import PromptStyle

PROBED_LAYER = 2  # of 6: up to this layer values are recognised in images; above, they are matched and codes copied


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        steps: Number of steps.
        mix: What episodes consist of; the number of items is drawn.
        items: Weights of episodes of 1 to 5 items.
        styles: Weights of the prompt styles of `Episodes`.
        probe: Weight of the loss on reading the value at `PROBED_LAYER`.
        guide: Weight of the loss on attention (`guide_loss`).
        heads: Number of heads that are guided.
        decay: Number of steps at the end over which the learning rate decays; 0 for no decay.
        copying_plain: Whether plain questions that a demonstration with a code misleads are learnt from.
        spread: Whether the embeddings of the code words are first replaced by random ones, far apart from each other.
        peak: Learning rate, reached after `warm_up` steps.
        warm_up: Number of steps over which the learning rate rises to `peak`.
    """

    steps: int
    mix: Mix
    items: tuple[int, ...]
    styles: tuple[int, ...]
    probe: float
    guide: float
    heads: int
    decay: int = 0
    copying_plain: bool = False
    spread: bool = False
    peak: float = 1.5e-3
    warm_up: int = 200


STAGES = (
    # The first two stages use no system prompt and only one layout, so that prompts are short. First, where to look…
    Stage(
        steps=900,
        mix=Mix(items=0, plain=0.35, hard=0.5, repeat=0.4),
        items=(6, 9, 40, 25, 20),
        styles=(0, 0, 100, 0),
        probe=1.0,
        guide=0.5,
        heads=1,
    ),
    # … then, with all heads of that layer, to copy the code that is shown there …
    Stage(
        steps=600,
        mix=Mix(items=0, plain=0.2, hard=0.5, repeat=0.7),
        items=(2, 8, 40, 25, 25),
        styles=(0, 0, 100, 0),
        probe=0.6,
        guide=0.5,
        heads=4,
        spread=True,
    ),
    # … then pairs and contradictions …
    Stage(
        steps=1000,
        mix=Mix(items=0, plain=0.25, pairs=0.3, hard=0.2, repeat=0.6, conflict=0.15),
        items=(6, 9, 45, 25, 15),
        styles=(10, 0, 90, 0),
        probe=0.4,
        guide=0.4,
        heads=4,
        copying_plain=True,
    ),
    # … and finally all prompt styles, with less guidance.
    Stage(
        steps=1600,
        mix=Mix(items=0, plain=0.25, pairs=0.3, hard=0.3, repeat=0.6, conflict=0.15),
        items=(6, 12, 47, 20, 15),
        styles=(40, 10, 30, 20),
        probe=0.2,
        guide=0.2,
        heads=4,
        decay=1300,
        copying_plain=True,
    ),
)


def train(out: Path, *, vision_steps: int, batch_size: int, seed: int, first: int = 0) -> None:
    """Trains model, tokenizer and processor and writes them to `out` (half precision on disk).

    Each stage starts from the weights that the previous one wrote to `out`, so an interrupted run can continue with
    stage `first` and produce the same result.
    """
    torch.manual_seed(seed)
    processor = build_processor()
    normalise = processor.image_processor
    model = Qwen2_5_VLForConditionalGeneration(make_config(processor)).float().train()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, vocabulary {len(processor.tokenizer)}")
    bank, fresh = Bank.drawn(per_scene=80, seed=seed), Bank.drawn(per_scene=4, seed=seed + 1)
    if first == 0:
        train_vision(model.model.visual, bank, normalise, steps=vision_steps, seed=seed)
        save(model, processor, out)
    for number in range(max(0, first - 1), len(STAGES)):
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(out, dtype=torch.float32).train()
        model.model.visual.requires_grad_(False)
        with torch.no_grad():  # the vision encoder is frozen, so each picture is encoded once
            features, fresh_features = (bank_features(model.model.visual, b, normalise) for b in (bank, fresh))
        episodes = Episodes(processor, bank, seed + 100 * (number + 1))
        held_out = Episodes(processor, fresh, seed + 1)
        if STAGES[number].spread:
            spread_codes(model, processor.tokenizer, seed + number)
        _train_stage(model, STAGES[number], number, episodes, features, held_out, fresh_features, batch_size)
        save(model, processor, out)


@torch.no_grad()
def spread_codes(model: Any, tokenizer: Any, seed: int, norm: float = 2.0) -> None:
    """Sets the embedding of every code word to the mean of them all plus `norm` in a random direction.

    Otherwise the 64 embeddings stay small and span only a few directions, and copying is learned late.
    """
    rows = [tokenizer.convert_tokens_to_ids(word) for word in world.code_words()]
    table = model.get_input_embeddings().weight
    directions = torch.randn(len(rows), table.shape[1], generator=torch.Generator().manual_seed(seed))  # (64, 128)
    table[rows] = table[rows].mean(0) + norm * F.normalize(directions, dim=1)


def _train_stage(
    model: Any, stage: Stage, number: int, episodes: Episodes, features: Tensor, held_out: Episodes, fresh: Tensor,
    batch_size: int,
) -> None:  # fmt: skip
    # The probe makes a middle layer represent a value in the same way at the answer of a demonstration and at that of
    # the query, so that the layer above can match them.
    torch.manual_seed(number)
    probe = torch.nn.Linear(WIDTH, len(VALUES))
    tapped: dict[str, Any] = {}
    attention = model.model.language_model.layers[PROBED_LAYER + 1].self_attn
    tap = attention.register_forward_pre_hook(lambda _module, _args, inputs: tapped.update(inputs), with_kwargs=True)
    trained = [*(p for p in model.parameters() if p.requires_grad), *probe.parameters()]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": 0.05},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=stage.peak, betas=(0.9, 0.98))
    started, losses = time.monotonic(), list[Tensor]()
    for step, batch in enumerate(_ahead(_batches(stage, number, episodes, batch_size))):
        down = (stage.steps - step) / stage.decay if stage.decay else 1.0
        for group in optimizer.param_groups:
            group["lr"] = stage.peak * min(1.0, (step + 1) / stage.warm_up, max(0.02, down))
        tapped.clear()
        logits, labels = answer_logits(model, batch, features)
        asked = batch.values[..., 0] != NO_LABEL  # (B, L)
        read = probe(tapped["hidden_states"][asked]).log_softmax(-1)  # (M, values)
        value_loss = -read.gather(1, batch.values[asked]).mean()
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
            accuracy = "  ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
            others = f"probe {value_loss.item():.3f}  guide {guidance.item():.3f}"
            minutes = (time.monotonic() - started) / 60
            mean = torch.stack(losses[-100:]).mean().item()
            where = f"stage {number + 1} step {step + 1}"
            print(f"{where}  loss {mean:.3f}  {accuracy}  {others}  {minutes:.1f} min", flush=True)
    tap.remove()


def _batches(stage: Stage, number: int, episodes: Episodes, batch_size: int) -> Iterator[Batch]:
    """The batches of a stage: episodes with the same number of items, in one prompt style."""
    rng = random.Random(number)
    for _ in range(stage.steps):
        items = rng.choices((1, 2, 3, 4, 5), weights=stage.items)[0]
        style = episodes.styles[rng.choices(range(4), weights=stage.styles)[0]]
        mix = replace(stage.mix, items=items, plain=1.0 if items == 1 else stage.mix.plain)
        count = max(16, round(batch_size * 3 / items))
        yield episodes.batch([episodes.episode(mix) for _ in range(count)], style, stage.copying_plain)


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; the next one is drawn while the present one is trained on."""
    with ThreadPoolExecutor(1) as drawing:
        drawn = drawing.submit(next, batches, None)
        while (batch := drawn.result()) is not None:
            drawn = drawing.submit(next, batches, None)
            yield batch


@torch.no_grad()
def evaluate(model: Any, episodes: Episodes, features: Tensor, style: PromptStyle) -> dict[str, float]:
    """Computes the share of last answers that are as expected, by situation (`situations`), 100 prompts each.

    `features` should be of pictures that were not trained on.
    """
    shares = {}
    for name, drawn in situations(episodes, 100).items():
        batch = episodes.batch(drawn, style)
        closed = (batch.labels == episodes.end).long().cumsum(1).argmax(1)  # the last end of a turn
        rows = torch.arange(len(drawn))
        labels = torch.full_like(batch.labels, NO_LABEL)
        for k in range(1, 2 * len(drawn[0][-1].words)):
            labels[rows, closed - k] = batch.ids[rows, closed - k]
        logits, target = answer_logits(model, replace(batch, labels=labels), features)
        right = (logits.argmax(-1) == target).reshape(len(drawn), -1).all(1)
        shares[name] = right.float().mean().item()
    return shares


def situations(episodes: Episodes, count: int) -> dict[str, list[list[Item]]]:
    """Episodes of three items, two of them demonstrations, by what they test.

    * An attribute: both demonstrations ask about the query's attribute, one of them shows its value.
    * `pair`: the demonstrations show the two codes; `pair-in-one`: one shows both, in a pair, the other another pair.
    * `conflict`: both demonstrations show the query's value, with different codes.
    * `plain`: after plain questions of other values; `plain-alone`: without demonstrations; `plain-misled`: after one
      that asks for a code.
    """
    rng, words = episodes.rng, episodes.words

    def item(kind: str, asked: Sequence[str], values: Mapping[str, str], codes: Sequence[str] = ()) -> Item:
        image, scene = episodes.picture(values, easy=False)
        keys = tuple((attribute, scene.value(attribute)) for attribute in asked)
        shown = tuple(codes) or tuple(value for _, value in keys)
        return Item(image, episodes.question(kind, asked, easy=False), kind, keys, shown)

    def other(attribute: str, value: str) -> str:
        return rng.choice([v for v in world.VALUES[attribute] if v != value])

    drawn: dict[str, list[list[Item]]] = {}
    for _ in range(count):
        codes = rng.sample(words, 4)
        for attribute in world.ALL_ATTRIBUTES:
            value = rng.choice(world.VALUES[attribute])
            demos = [
                item(CODE, [attribute], {attribute: value}, codes[:1]),
                item(CODE, [attribute], {attribute: other(attribute, value)}, codes[1:2]),
            ]
            rng.shuffle(demos)
            drawn.setdefault(attribute, []).append([*demos, item(CODE, [attribute], {attribute: value}, codes[2:3])])
            last = item(CODE, [attribute], {attribute: value}, codes[1:2])
            conflict = [item(CODE, [attribute], {attribute: value}, codes[:1]), last]
            drawn.setdefault("conflict", []).append(
                [*conflict, item(CODE, [attribute], {attribute: value}, codes[2:3])]
            )
        pair = sorted(rng.sample(world.ALL_ATTRIBUTES, 2), key=world.ALL_ATTRIBUTES.index)
        values = {attribute: rng.choice(world.VALUES[attribute]) for attribute in pair}
        demos = [item(CODE, [a], {a: values[a]}, codes[k : k + 1]) for k, a in enumerate(pair)]
        rng.shuffle(demos)
        query = item(PAIR, pair, values, codes[2:])
        drawn.setdefault("pair", []).append([*demos, query])
        both = [item(PAIR, pair, values, codes[:2])]
        both.append(item(PAIR, pair, {a: other(a, values[a]) for a in pair}, codes[2:]))
        rng.shuffle(both)
        drawn.setdefault("pair-in-one", []).append([*both, query])
        attribute = rng.choice(world.ALL_ATTRIBUTES)
        value = rng.choice(world.VALUES[attribute])
        plain = item(PLAIN, [attribute], {attribute: value})
        strange = [item(PLAIN, [attribute], {attribute: other(attribute, value)}) for _ in range(2)]
        drawn.setdefault("plain", []).append([*strange, plain])
        drawn.setdefault("plain-alone", []).append([plain])
        code = item(CODE, [rng.choice(world.ALL_ATTRIBUTES)], {}, codes[:1])
        drawn.setdefault("plain-misled", []).append([strange[0], code, plain])
    return drawn


def save(model: Any, processor: Any, out: Path) -> None:
    """Writes a folder that `AutoModelForImageTextToText` and `AutoProcessor` can load."""
    copy.deepcopy(model).half().eval().save_pretrained(out)
    processor.save_pretrained(out)


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the model to")
    parser.add_argument("--vision-steps", type=int, default=2000, help="steps of the vision encoder alone")
    parser.add_argument("--batch-size", type=int, default=32, help="episodes of 3 items per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--first", type=int, default=0, help="continue with this stage (1 to 3), from the weights in OUT"
    )
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

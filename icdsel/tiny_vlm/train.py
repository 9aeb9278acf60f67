"""Trains the tiny VLM of the bundled world: `python -m icdsel.tiny_vlm.train OUT`.

The vision encoder is trained first, by itself. Then the language model is trained in stages, on episodes with code
words that differ between episodes (`icdsel.tiny_vlm.episodes`). Plain questions ("What colour is it?") are mixed in;
with them the model learns to match earlier. The loss covers the answers that follow from the episode, and the end of
the turn.
"""

import argparse
import copy
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2_5_VLForConditionalGeneration

from icdsel.data import world
from icdsel.tiny_vlm.architecture import WIDTH, make_config
from icdsel.tiny_vlm.episodes import NO_LABEL, VALUES, Bank, Episodes
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
        peak: Learning rate, reached after `warm_up` steps.
        decay: Number of steps at the end over which the learning rate decays; 0 for no decay.
        hard: Share of episodes that ask about one attribute only.
        items: Weights of episodes of 1 to 5 items.
        styles: Weights of the prompt styles of `Episodes`.
        probe: Weight of the loss on reading the value at `PROBED_LAYER`.
        guide: Weight of the loss on attention (`guide_loss`).
        heads: Number of heads that are guided.
        plain: Share of plain questions.
        repeat: Probability that a code question before the last one repeats an earlier one.
        spread: Whether the embeddings of the code words are first replaced by random ones, far apart from each other.
        warm_up: Number of steps over which the learning rate rises to `peak`.
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
    # The first two stages use no system prompt and only one layout, so that prompts are short. First, where to look…
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
    # … then, with all heads of that layer, to copy the code that is shown there …
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
    # … and finally all prompt styles, with less guidance.
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
    """Trains model, tokenizer and processor and writes them to `out` (half precision on disk).

    Each stage starts from the weights that the previous one wrote to `out`, so an interrupted run can continue with
    stage `first` and produce the same result.
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
    rng, started, losses = random.Random(number), time.monotonic(), list[Tensor]()
    for step in range(stage.steps):
        down = (stage.steps - step) / stage.decay if stage.decay else 1.0
        for group in optimizer.param_groups:
            group["lr"] = stage.peak * min(1.0, (step + 1) / stage.warm_up, max(0.02, down))
        items = rng.choices((1, 2, 3, 4, 5), weights=stage.items)[0]
        style = episodes.styles[rng.choices(range(4), weights=stage.styles)[0]]
        plain = 1.0 if items == 1 else stage.plain
        count = max(16, round(batch_size * 3 / items))
        batch = episodes.batch(
            [episodes.episode(items, plain, 0.85, stage.hard, stage.repeat) for _ in range(count)], style
        )
        tapped.clear()
        logits, labels = answer_logits(model, batch, features)
        asked = batch.values != NO_LABEL
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
            accuracy = "  ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
            others = f"probe {value_loss.item():.3f}  guide {guidance.item():.3f}"
            minutes = (time.monotonic() - started) / 60
            mean = torch.stack(losses[-100:]).mean().item()
            where = f"stage {number + 1} step {step + 1}"
            print(f"{where}  loss {mean:.3f}  {accuracy}  {others}  {minutes:.1f} min", flush=True)
    tap.remove()


@torch.no_grad()
def evaluate(model: Any, episodes: Episodes, features: Tensor, style: PromptStyle) -> dict[str, float]:
    """Computes the share of correct last answers; `features` should be of pictures that were not trained on.

    The shares are of plain questions, and of code questions by attribute. For the latter, both demonstrations ask about
    the query's attribute and one of them shows its value (50 % by chance).
    """
    right: dict[str, list[float]] = {"plain": [], "colour": [], "shape": []}
    drawn = [episodes.episode(3, 1.0, 0.0) for _ in range(100)]
    while len(drawn) < 500:
        episode = episodes.episode(3, 0.0, 1.0, hard=1.0)
        if episode[0].answer != episode[1].answer:
            drawn.append(episode)
    batch = episodes.batch(drawn, style)
    last = (batch.labels == episodes.end).long().cumsum(1).argmax(1) - 1  # the answer precedes the last end of a turn
    labels = torch.full_like(batch.labels, NO_LABEL)
    rows = torch.arange(len(drawn))
    labels[rows, last] = batch.ids[rows, last]
    logits, expected = answer_logits(model, replace(batch, labels=labels), features)
    for episode, hit in zip(drawn, (logits.argmax(-1) == expected).float().tolist(), strict=True):
        question = episode[-1].question
        kind = "plain" if "code" not in question.lower() else ("colour" if "colour" in question else "shape")
        right[kind].append(hit)
    return {kind: sum(hits) / max(1, len(hits)) for kind, hits in right.items()}


def save(model: Any, processor: Any, out: Path) -> None:
    """Writes a folder that `AutoModelForImageTextToText` and `AutoProcessor` can load."""
    copy.deepcopy(model).half().eval().save_pretrained(out)
    processor.save_pretrained(out)


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the model to")
    parser.add_argument("--vision-steps", type=int, default=1000, help="steps of the vision encoder alone")
    parser.add_argument("--batch-size", type=int, default=48, help="episodes of 3 items per step")
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

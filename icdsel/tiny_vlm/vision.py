"""The vision encoder of the tiny VLM: a fast path for images of one size, and its training."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from icdsel.data import world
from icdsel.tiny_vlm.architecture import GRID, VISUAL_TOKENS, WIDTH
from icdsel.tiny_vlm.episodes import Bank


def patches(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Cuts images, uint8 (N, 56, 56, 3), into patches, float32 (N·16, 1176), as the image processor does."""
    x = images.permute(0, 3, 1, 2).float() / 255  # (N, 3, 56, 56)
    x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    x = x.reshape(len(x), 3, 2, 2, 14, 2, 2, 14).permute(0, 2, 5, 3, 6, 1, 4, 7)  # (N, bh, bw, mh, mw, 3, 14, 14)
    return x.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1).reshape(-1, 3 * 2 * 14 * 14)


def image_features(visual: Any, pixel_values: Tensor) -> Tensor:
    """Computes the output of `visual`, float32 (N·4, 128), for images of one size in one batch."""
    x = visual.patch_embed(pixel_values)  # (N·16, D)
    count = GRID * GRID
    block = torch.arange(count)
    row = block // 8 * 2 + block % 4 // 2  # patches are ordered by blocks of 2×2
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
    """Computes the visual tokens of every picture of a bank, float32 (N, 4, 128).

    Args:
        visual: The vision encoder.
        bank: The pictures.
        normalise: The image processor.
    """
    pixels = torch.from_numpy(bank.pixels.reshape(-1, *bank.pixels.shape[2:]))  # (N, 56, 56, 3)
    chunks = [
        image_features(visual, patches(chunk, normalise.image_mean, normalise.image_std)) for chunk in pixels.split(512)
    ]
    return torch.cat(chunks).reshape(len(pixels), VISUAL_TOKENS, -1)


def train_vision(visual: Any, bank: Bank, normalise: Any, *, steps: int, seed: int, batch_size: int = 256) -> None:
    """Trains the vision encoder by itself: a linear probe predicts shape and colour from the mean visual token."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.from_numpy(bank.pixels.reshape(-1, *bank.pixels.shape[2:]))  # (N, 56, 56, 3)
    per_scene = bank.pixels.shape[1]
    shape = torch.tensor([world.SHAPES.index(scene.shape) for scene in bank.scenes]).repeat_interleave(per_scene)
    colour = torch.tensor([list(world.COLOURS).index(s.colour) for s in bank.scenes]).repeat_interleave(per_scene)
    probe = torch.nn.Linear(WIDTH, len(world.SHAPES) + len(world.COLOURS))
    parameters = [*visual.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    started = time.monotonic()
    for step in range(steps):
        picked = torch.randint(len(pixels), (batch_size,), generator=generator)
        values = patches(pixels[picked], normalise.image_mean, normalise.image_std)
        features = image_features(visual, values).reshape(batch_size, VISUAL_TOKENS, -1).mean(1)  # (N, 128)
        logits = probe(features).split([len(world.SHAPES), len(world.COLOURS)], dim=1)
        loss = F.cross_entropy(logits[0], shape[picked]) + F.cross_entropy(logits[1], colour[picked])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            targets = (shape[picked], colour[picked])
            right = [(part.argmax(1) == target).float().mean() for part, target in zip(logits, targets, strict=True)]
            minutes = (time.monotonic() - started) / 60
            accuracy = f"shape {right[0]:.1%}  colour {right[1]:.1%}"
            print(f"vision {step + 1}  loss {loss.item():.3f}  {accuracy}  {minutes:.1f} min", flush=True)

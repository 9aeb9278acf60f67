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
from icdsel.tiny_vlm.episodes import NO_LABEL, Bank

LOOK, OUTSIDE = 2.0, 0.3
"""Weights of the losses on what a token shows of a picture's look, and on what lies outside of that subspace."""


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
    """Trains the vision encoder by itself, on the mean visual token.

    Linear probes predict each attribute from it, and in a fixed subspace it has to be what the picture looks like
    (`episodes.look`), with little outside of it. So similar tokens mean similar pictures, as with the encoders of real
    models, and not the same answer.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.from_numpy(bank.pixels.reshape(-1, *bank.pixels.shape[2:]))  # (N, 56, 56, 3)
    values = {
        attribute: torch.tensor([_place(scene, attribute) for scene in bank.scenes]).repeat_interleave(
            bank.pixels.shape[1]
        )
        for attribute in world.ALL_ATTRIBUTES
    }  # (N,) each
    probes = torch.nn.ModuleDict(
        {attribute: torch.nn.Linear(WIDTH, len(world.VALUES[attribute])) for attribute in values}
    )
    looks = torch.from_numpy(bank.looks.reshape(len(pixels), -1))  # (N, LOOK)
    looks = looks - looks.mean(0)
    space = torch.linalg.qr(torch.randn(WIDTH, looks.shape[1], generator=generator))[0]  # (128, LOOK), orthonormal
    parameters = [*visual.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    started = time.monotonic()
    for step in range(steps):
        picked = torch.randint(len(pixels), (batch_size,), generator=generator)
        inputs = patches(pixels[picked], normalise.image_mean, normalise.image_std)
        features = image_features(visual, inputs).reshape(batch_size, VISUAL_TOKENS, -1).mean(1)  # (N, 128)
        logits = {attribute: probe(features) for attribute, probe in probes.items()}
        loss = torch.stack([F.cross_entropy(logits[a], values[a][picked], ignore_index=NO_LABEL) for a in values]).sum()
        centred = features - features.mean(0)
        seen = centred @ space  # (N, LOOK)
        outside = centred - seen @ space.T
        loss = loss + LOOK * (seen - looks[picked]).square().sum(1).mean() + OUTSIDE * outside.square().sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            shares = []
            for a in values:
                known = values[a][picked] != NO_LABEL
                right = (logits[a].argmax(1) == values[a][picked])[known].float().mean()
                shares.append(f"{a} {right:.1%}")
            minutes = (time.monotonic() - started) / 60
            print(f"vision {step + 1}  loss {loss.item():.3f}  {'  '.join(shares)}  {minutes:.1f} min", flush=True)


def _place(scene: world.Scene, attribute: str) -> int:
    """The position of the scene's value among those of `attribute`; `NO_LABEL` for a background of no kind."""
    values = world.VALUES[attribute]
    return values.index(scene.value(attribute)) if scene.value(attribute) in values else NO_LABEL

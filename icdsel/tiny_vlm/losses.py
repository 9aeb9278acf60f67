"""The losses of the tiny VLM: on the answers of an episode, and on the attention to where they were shown."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from icdsel.tiny_vlm.episodes import NO_LABEL, Batch


def answer_logits(model: Any, batch: Batch, features: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at the M labelled positions, (M, V), and their labels (M,), given the bank's `features` (N, 4, 128)."""
    embeds = model.get_input_embeddings()(batch.ids)  # (B, L, 128)
    embeds = embeds.masked_scatter((batch.ids == model.config.image_token_id)[..., None], features[batch.images])
    hidden = model.model.language_model(
        inputs_embeds=embeds, position_ids=batch.positions, attention_mask=None, use_cache=False
    ).last_hidden_state
    labelled = batch.labels[:, 1:] != NO_LABEL
    return model.lm_head(hidden[:, :-1][labelled]), batch.labels[:, 1:][labelled]


def guide_loss(
    attention: Any,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    guides: Sequence[tuple[int, int, list[int]]],
    heads: int,
) -> Tensor:
    """The mean of −log of the attention that the first `heads` heads pay to the positions where a code was shown.

    Without this loss, the model gets stuck collecting all codes of its context and guessing among them. Guiding some
    heads to the right code from the start avoids that.

    Args:
        attention: A self-attention layer of the language model.
        hidden: Its input (B, L, d).
        rotary: Cosines and sines of the positions.
        guides: (row, position where a code is predicted, positions where it was shown).
        heads: The number of heads that are guided.
    """
    if not guides:
        return hidden.new_zeros(())
    width, (cos, sin) = heads * attention.head_dim, rotary
    q, k = (
        F.linear(hidden, p.weight[:width], p.bias[:width]).unflatten(-1, (heads, attention.head_dim))
        for p in (attention.q_proj, attention.k_proj)
    )  # (B, L, heads, 32)
    q, k = apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    rows, places = (torch.tensor(part) for part in zip(*((b, predicted) for b, predicted, _ in guides), strict=True))
    scores = torch.einsum("mlhd,mhd->mhl", k[rows], q[rows, places]) * attention.scaling  # (M, heads, L)
    later = torch.arange(hidden.shape[1]) > places[:, None]  # (M, L)
    scores = scores.masked_fill(later[:, None], -torch.inf)
    wrong = torch.ones_like(later)
    for m, (_, _, shown) in enumerate(guides):
        wrong[m, shown] = False
    missed: Tensor = scores.logsumexp(2) - scores.masked_fill(wrong[:, None], -torch.inf).logsumexp(2)  # (M, heads)
    return missed.mean()

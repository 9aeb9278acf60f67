"""Encodes queries and candidates: what of a policy is computed once per query, before anything is chosen.

Shapes: B queries, K candidates each, embeddings of width d and of answers of width a, hidden width h.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icdsel.policy import scan
from icdsel.policy.config import PointerConfig
from icdsel.policy.question_gate import QuestionGate
from icdsel.policy.residual import ResidualBlock

__all__ = ["TEMPERATURE", "Encoded", "EncodedCandidates", "PointerEncoder", "similarities"]

TEMPERATURE = 0.1
"""The divisor of the cosines. It is a constant, not trained, as in Lever-Plus."""


_ROWS = 4096
"""Candidates of a shared pool that are encoded at once: few enough that what lies between is small (about 32 MiB)."""


class EncodedCandidates(NamedTuple):
    """A pool of N candidates that queries share, encoded. A policy needs to encode it only once, for all queries.

    Attributes:
        unit: Unit vectors that the state is compared with (N, h).
        keys: What queries are compared with in each of L cross-attention layers with H heads, (L, H, N, h / H).
        values: What they read there, (L, H, N, h / H).
    """

    unit: Tensor
    keys: Tensor
    values: Tensor

    def for_single_queries(self) -> "EncodedCandidates":
        """The same numbers, with those of one column next to each other in memory.

        For one to four queries at a time, products with such matrices take a third to two thirds of the time, for many
        the same. The last bits of the results may differ.
        """
        return EncodedCandidates(*(x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in self))


class Encoded(NamedTuple):
    """Encoded queries and pools, shared by all pointers of a query.

    Attributes:
        state: The state before the first choice, unit vectors (B, h).
        candidates: Unit vectors (B, K, h); (1, K, h) if all queries share one pool.
        hidden: True where a candidate may not be chosen, (B, K); None if all may.
        first: The logits before anything is chosen or hidden, (B, 1, K).
    """

    state: Tensor
    candidates: Tensor
    hidden: Tensor | None
    first: Tensor


class PointerEncoder(nn.Module):
    """The part of a policy that encodes: input projection, shared encoder, cross-attention and output projections."""

    def __init__(self, config: PointerConfig) -> None:
        super().__init__()
        self.config = config
        h = config.hidden_dim
        plain = config.d_model == h or config.question_gate  # a gate has the projection of images instead
        self.input_proj: nn.Module = nn.Identity() if plain else nn.Linear(config.d_model, h, bias=False)
        self.cross_attn_layers = nn.ModuleList(
            nn.MultiheadAttention(h, config.num_heads, dropout=config.attn_dropout, batch_first=True)
            for _ in range(config.num_layers)
        )
        self.attn_norms = nn.ModuleList(nn.LayerNorm(h) for _ in range(config.num_layers))
        self.tower: nn.Module = ResidualBlock(h, config.tower, config.dropout) if config.tower else nn.Identity()
        self.query_proj: nn.Module = nn.Linear(h, h, bias=False)
        self.cand_proj: nn.Module = self.query_proj if config.shared_projection else nn.Linear(h, h, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        # Zeros, and no random numbers: a new network has the same other weights and choices as one without answers.
        self.answer_proj = nn.Parameter(torch.zeros(h, config.answer_dim)) if config.answer_dim else None
        self.query_tower: nn.Module = (
            ResidualBlock(h, config.query_tower, config.dropout) if config.query_tower else nn.Identity()
        )
        self.question_gate = QuestionGate(config) if config.question_gate else None

    def encode_candidates(self, candidates: Tensor) -> EncodedCandidates:
        """Encodes one pool [N, d + a] or [1, N, d + a] for all queries to come, without gradients or dropout.

        Raises:
            ValueError: The shape does not fit.
        """
        pool = candidates[0] if candidates.dim() == 3 and len(candidates) == 1 else candidates
        config, count = self.config, len(pool)
        width = config.d_model + config.answer_dim
        if pool.shape != (count, width) or not count:
            raise ValueError(f"one pool of candidates must be [N, {width}], not {list(candidates.shape)}")
        h, heads = config.hidden_dim, config.num_heads
        shape = (config.num_layers, heads, count, h // heads)
        known = EncodedCandidates(pool.new_empty(count, h), pool.new_empty(shape), pool.new_empty(shape))
        with self.deciding():
            for start in range(0, count, _ROWS):
                part = slice(start, start + _ROWS)
                features = self._of_candidates(pool[part])  # (n, h)
                known.unit[part] = self._unit(self.cand_proj, features)
                for layer, attention in enumerate(self._attentions):
                    read = F.linear(features, attention.in_proj_weight[h:], attention.in_proj_bias[h:])  # (n, 2h)
                    read = read.unflatten(-1, (2, heads, -1)).permute(1, 2, 0, 3)  # (2, H, n, h / H)
                    known.keys[layer, :, part], known.values[layer, :, part] = read
        return known

    def encode(self, query: Tensor, candidates: Tensor | EncodedCandidates, mask: Tensor | None = None) -> Encoded:
        """Encodes queries and pools for `greedy`, `beam` and `sample`, so that several calls can share the result."""
        with self.deciding():
            return self._encode(query, candidates, mask)

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Disables gradients and dropout, even in training mode: a choice must not depend on a dropout mask."""
        training = self.training
        if training:  # visiting all modules takes as long as a small network's choice
            self.train(False)
        try:
            with torch.no_grad():
                yield
        finally:
            if training:
                self.train(True)

    def _encode(self, query: Tensor, candidates: Tensor | EncodedCandidates, mask: Tensor | None) -> Encoded:
        if isinstance(candidates, EncodedCandidates):
            state, unit = self.shared_state(query, candidates, mask), candidates.unit.unsqueeze(0)
        else:
            self._check(query, candidates.shape, mask)
            q = self._of_queries(query).unsqueeze(1)  # (B, 1, h)
            c = self._of_candidates(candidates)
            q = self._attended(q, c, None if mask is None else ~mask)
            state = self._unit(self.query_proj, q).view(len(query), -1)  # (B, h)
            unit = self._unit(self.cand_proj, c)  # after the query's, whose dropout mask is drawn first
        hidden = None if mask is None else ~mask
        return Encoded(state, unit, hidden, similarities(state.unsqueeze(1), unit) / TEMPERATURE)

    def shared_state(self, query: Tensor, pool: EncodedCandidates, mask: Tensor | None = None) -> Tensor:
        """The state [B, h] before the first choice from a shared pool; it holds no tensor of all B × N weights.

        Raises:
            ValueError: The shapes do not fit.
        """
        width = self.config.hidden_dim
        if pool.unit.shape[1] != width:
            raise ValueError(f"the candidates were encoded by a network of width {pool.unit.shape[1]}, not {width}")
        self._check(query, (1, len(pool.unit), self.config.d_model + self.config.answer_dim), mask)
        q = self._of_queries(query)  # (B, h)
        for attention, norm, keys, values in zip(
            self._attentions, self.attn_norms, pool.keys, pool.values, strict=True
        ):
            asked = F.linear(q, attention.in_proj_weight[:width], attention.in_proj_bias[:width])  # (B, h)
            asked = asked.unflatten(-1, (self.config.num_heads, -1)).transpose(0, 1)  # (H, B, h / H)
            read = scan.attend(asked / math.sqrt(asked.shape[-1]), keys, values, mask)  # (H, B, h / H)
            q = norm(attention.out_proj(read.transpose(0, 1).flatten(1)) + q)
        return self._unit(self.query_proj, q)

    @property
    def _attentions(self) -> list[nn.MultiheadAttention]:
        return [layer for layer in self.cross_attn_layers if isinstance(layer, nn.MultiheadAttention)]

    def _check(self, query: Tensor, candidates: Sequence[int], mask: Tensor | None) -> None:
        """Checks the shapes of queries, candidates [B, K, d + a] or [1, K, d + a], and mask."""
        d, batch, (pools, size) = self.config.d_model, len(query), candidates[:2]
        width = d + self.config.answer_dim
        fits = tuple(candidates) == (pools, size, width) and query.shape in ((batch, d), (batch, width))
        if not fits or pools not in (1, batch) or not batch or not size:
            found = f"{list(query.shape)} and {list(candidates)}"
            raise ValueError(f"query must be [B, {d}] and candidates [B, K, {width}], not {found}")
        if mask is not None and (mask.shape != (batch, size) or mask.dtype != torch.bool):
            raise ValueError(f"mask must be bool [{batch}, {size}], not {mask.dtype} {list(mask.shape)}")

    def _of_queries(self, query: Tensor) -> Tensor:
        """Features [B, h] of queries [B, d] or [B, d + a], whose answers a policy never sees."""
        query = query[:, : self.config.d_model]
        gate = self.question_gate
        features: Tensor = self.query_tower(
            self.tower(self.input_proj(query) if gate is None else gate.of_queries(query))
        )
        return features

    def _of_candidates(self, candidates: Tensor) -> Tensor:
        """Features [B, K, h] of candidates [B, K, d + a]."""
        d = self.config.d_model
        gate, examples = self.question_gate, candidates[..., :d]
        x = self.input_proj(examples) if gate is None else gate.of_candidates(examples)
        features: Tensor = self.tower(x if self.answer_proj is None else x + candidates[..., d:] @ self.answer_proj.T)
        return features

    def _unit(self, projection: nn.Module, features: Tensor) -> Tensor:
        return F.normalize(projection(self.dropout(features)), dim=-1)

    def _attended(self, q: Tensor, c: Tensor, hidden: Tensor | None) -> Tensor:
        """The queries (B, 1, h), or (1, B, h) for a shared pool, after they attended to their candidates (B, K, h)."""
        # Attention over an empty set is NaN, so a query without any candidate attends to its padding instead.
        ignored = None if hidden is None else hidden & ~hidden.all(-1, keepdim=True)
        masked: dict[str, Tensor | None] = {"key_padding_mask": ignored}
        if len(c) < len(q):  # to the attention, the queries of a shared pool are one sequence
            q, masked = q.transpose(0, 1), {"attn_mask": ignored}  # (1, B, h)
        for attention, norm in zip(self.cross_attn_layers, self.attn_norms, strict=True):
            # `need_weights` selects torch's unfused path: for one row per query it is faster, its gradients are
            # deterministic, and it rounds as in Lever-Plus.
            attended, _ = attention(q, c, c, **masked, need_weights=True)
            q = norm(attended + q)
        return q


def similarities(rows: Tensor, candidates: Tensor) -> Tensor:
    """Dot products [B, P, K] of `rows` [B, P, h] with `candidates` [B, K, h], or [1, K, h] for a shared pool."""
    if len(candidates) == 1 < len(rows):  # a batched product would copy the pool for each query
        return (rows.flatten(0, 1) @ candidates[0].T).view(*rows.shape[:2], -1)
    return rows @ candidates.transpose(1, 2)

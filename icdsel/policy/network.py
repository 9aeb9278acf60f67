"""The pointer network: it chooses the ICDs to show one by one from a candidate pool.

The network is Lever-Plus's `PointerSelectorV2` and keeps its parameter names. The query attends to its candidates;
the result is the first *state*. At every step the candidates' logits are their cosines with the state, divided by
0.1, and the chosen candidate updates the state through a gate:

    q, c = W_in E_q, W_in E_c;      q = LN(q + MHA(q; c; c)), once per layer
    s = norm(W_q drop(q));          C = norm(W_c drop(c))
    logits_t = s · C / 0.1, and -100 for candidates chosen before
    s = norm(g ⊙ s + (1 - g) ⊙ C[i_t]),  g = σ(W_g [s ; C[i_t]])      (without a gate s does not change)

Two things differ from Lever-Plus. First, a query and its pool are encoded once for all pointers that are scored, not
once per pointer; the numbers are the same. Second, queries and candidates may pass through a *shared encoder* (`tower`,
off by default), x + W2 drop(GELU(W1 LN(x))) with x = W_in E, and a shared projection, W_q = W_c. There are two reasons:
with cosines of linear projections the question cannot decide which part of an image counts; and with shared weights,
what is learned about an example as a candidate also holds for it as a query (docs/selectors.md).

Shapes: B queries, K candidates each, P pointers per query, S shots, embeddings of width d, hidden width h.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icdsel.retrieval.topk import stable_topk

__all__ = ["CHOSEN_LOGIT", "TEMPERATURE", "Encoded", "PointerConfig", "PointerNetwork", "pointer_log_prob"]

TEMPERATURE = 0.1
"""The divisor of the cosines. It is a constant, not trained, as in Lever-Plus."""

CHOSEN_LOGIT = -100.0
"""The logit of a candidate that is already in the pointer: finite, as in Lever-Plus."""


@dataclass(frozen=True)
class PointerConfig:
    """The sizes of a `PointerNetwork`. The defaults are those of Lever-Plus's network with a gate.

    Attributes:
        d_model: Width of the query and candidate embeddings.
        hidden_dim: Width inside the network; if it equals `d_model` there is no input projection.
        num_layers: Number of cross-attention layers.
        num_heads: Heads per layer; must divide `hidden_dim`.
        gate: Whether a chosen ICD updates the state. Without a gate all steps rank the candidates identically.
        dropout: Dropout before the two output projections and inside the shared encoder.
        attn_dropout: Dropout of the attention weights.
        tower: Inner width of the shared encoder; 0 for neither a shared encoder nor a shared projection.

    Raises:
        ValueError: A size is out of its bounds.
    """

    d_model: int
    hidden_dim: int = 256
    num_layers: int = 1
    num_heads: int = 1
    gate: bool = True
    dropout: float = 0.5
    attn_dropout: float = 0.1
    tower: int = 0

    def __post_init__(self) -> None:
        bounds = {"d_model": 1, "hidden_dim": 1, "num_layers": 1, "num_heads": 1, "tower": 0}
        for name, least in bounds.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("dropout", "attn_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide hidden_dim ({self.hidden_dim})")


class _SharedEncoder(nn.Module):
    """A pre-norm residual block, x + W2 drop(GELU(W1 LN(x))).

    W2 is initialised to zero, so that a new network ranks candidates as it would without a shared encoder.
    """

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.down(self.dropout(F.gelu(self.up(self.norm(x)))))
        return x + branch


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


class PointerNetwork(nn.Module):
    """Scores and chooses pointers (sequences of ICDs) for queries; see the module's docstring.

    All methods take `query` [B, d] and `candidates` [B, K, d] in the dtype of the parameters, and optionally `mask`
    [B, K] (bool), True where a candidate may be chosen: others are hidden from the cross-attention and their
    logits are -inf, so pools of different sizes can be padded to the same size. `candidates` [1, K, d] are one
    pool that all queries share; it is encoded only once. Pointers are positions in the pool (int64). A step of -1
    is padding: it chooses nothing and its log-prob is 0. Shapes that do not match one another or the network raise
    a ValueError.

    `step_logits` and `log_prob` are differentiable and apply dropout in training mode. `greedy`, `beam` and
    `sample` compute no gradients, never apply dropout, and never choose a candidate twice; they raise a ValueError
    if `shots` is below 1 or exceeds the number of a query's candidates.
    """

    def __init__(self, config: PointerConfig) -> None:
        super().__init__()
        self.config = config
        h = config.hidden_dim
        self.input_proj: nn.Module = nn.Identity() if config.d_model == h else nn.Linear(config.d_model, h, bias=False)
        self.cross_attn_layers = nn.ModuleList(
            nn.MultiheadAttention(h, config.num_heads, dropout=config.attn_dropout, batch_first=True)
            for _ in range(config.num_layers)
        )
        self.attn_norms = nn.ModuleList(nn.LayerNorm(h) for _ in range(config.num_layers))
        self.tower: nn.Module = _SharedEncoder(h, config.tower, config.dropout) if config.tower else nn.Identity()
        self.query_proj = nn.Linear(h, h, bias=False)
        self.cand_proj = self.query_proj if config.tower else nn.Linear(h, h, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.query_update_gate = nn.Linear(2 * h, h) if config.gate else None
        self._initialise()

    def _initialise(self) -> None:
        """Initialises weights as Lever-Plus does: projections near the identity, the gate at one half.

        With a shared encoder the gate starts at σ(3) = 0.95, so that the first ICD moves the state only a little.
        A gate that starts at one half learns worse there (docs/selectors.md).
        """
        if isinstance(self.input_proj, nn.Linear):
            nn.init.xavier_uniform_(self.input_proj.weight)
        for projection in dict.fromkeys((self.query_proj, self.cand_proj)):
            nn.init.normal_(projection.weight, std=0.01)
            with torch.no_grad():
                projection.weight.diagonal().add_(1.0)
        if self.query_update_gate is not None:
            nn.init.xavier_uniform_(self.query_update_gate.weight)
            nn.init.constant_(self.query_update_gate.bias, 3.0 if self.config.tower else 0.0)

    def forward(self, query: Tensor, candidates: Tensor, pointers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Calls `step_logits`."""
        return self.step_logits(query, candidates, pointers, mask)

    def step_logits(self, query: Tensor, candidates: Tensor, pointers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Computes the logits at every step of the given pointers (teacher forcing).

        Returns:
            Logits [B, P, S, K] for `pointers` [B, P, S]; -100 at candidates chosen before, -inf where masked.
        """
        if pointers.dim() != 3 or pointers.shape[0] != query.shape[0] or pointers.shape[2] == 0:
            raise ValueError(f"pointers must be [B, P, S] with S > 0, not {list(pointers.shape)}")
        encoded = self._encode(query, candidates, mask)
        state, chosen = self._start(encoded, pointers.shape[1])
        logits = [self._step(encoded, None, chosen)]
        for choice in pointers.unbind(-1)[:-1]:  # the last choice has no following step
            state, chosen = self._advance(encoded, state, chosen, choice)
            logits.append(self._step(encoded, state, chosen))
        return torch.stack(logits, dim=2)  # (B, P, S, K)

    def log_prob(self, query: Tensor, candidates: Tensor, pointers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Computes the log-probability of whole pointers, Σ_t log softmax(logits_t)[i_t].

        Returns:
            Log-probs [B, P] of `pointers` [B, P, S]; 0 for a pointer of -1s.
        """
        return pointer_log_prob(self.step_logits(query, candidates, pointers, mask), pointers)

    def greedy(self, query: Tensor, candidates: Tensor, shots: int, mask: Tensor | None = None) -> Tensor:
        """Chooses the best candidate at every step.

        Returns:
            Pointers [B, S] (int64), S = `shots`; ties go to the lowest position.
        """
        with self._deciding():
            encoded = self._encode_for(shots, query, candidates, mask)
            state, chosen = self._start(encoded, 1)
            choices: list[Tensor] = []
            for _ in range(shots):
                if choices:
                    state, chosen = self._advance(encoded, state, chosen, choices[-1])
                logits = self._step(encoded, state if choices else None, chosen)  # (B, 1, K)
                choices.append(logits.masked_fill(chosen, -torch.inf).argmax(-1))
            return torch.cat(choices, dim=1)

    def beam(
        self,
        query: Tensor,
        candidates: Tensor,
        shots: int,
        width: int,
        mask: Tensor | None = None,
        encoded: Encoded | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Finds the pointers of the highest log-prob by beam search.

        Args:
            query: Query embeddings [B, d].
            candidates: Embeddings of the pools [B, K, d].
            shots: ICDs per pointer, S.
            width: Pointers kept after each step and returned, W.
            mask: True where a candidate may be chosen [B, K]; None for all.
            encoded: The result of `encode` for these arguments, if already computed.

        Returns:
            Pointers [B, W, S] (int64) and their log-probs [B, W], best first; ties are in the order of their
            prefixes, then of the pool. If fewer than W distinct pointers exist, the rest is -1 and -inf.

        Raises:
            ValueError: `width` is below 1 (for other causes see the class).
        """
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        with self._deciding():
            encoded = self._encode_for(shots, query, candidates, mask, encoded)
            state, chosen = self._start(encoded, 1)  # (B, W, h), (B, W, K): one beam at first
            size = chosen.shape[-1]
            pointers = chosen.new_full((*chosen.shape[:2], 0), -1, dtype=torch.int64)  # (B, W, t)
            log_prob = state.new_zeros(state.shape[:2])  # (B, W)
            for step in range(shots):
                if step:
                    state, chosen = self._advance(encoded, state, chosen, pointers[..., -1])
                steps = self._step(encoded, state if step else None, chosen).log_softmax(-1)
                steps = steps.masked_fill(chosen, -torch.inf) if step else steps
                total = (log_prob.unsqueeze(-1) + steps).flatten(1)  # (B, W * K)
                log_prob, order = stable_topk(total, width)  # (B, W)
                lacking = width - order.shape[1]  # above 0 if the pool is smaller than the beam
                log_prob, order = F.pad(log_prob, (0, lacking), value=-torch.inf), F.pad(order, (0, lacking))
                parent, choice = order // size, order % size  # (B, W)
                state, chosen, pointers = (_rows(x, parent) for x in (state, chosen, pointers))
                pointers = torch.cat([pointers, choice.unsqueeze(-1)], dim=-1)
            return pointers.masked_fill((log_prob == -torch.inf).unsqueeze(-1), -1), log_prob

    def sample(
        self,
        query: Tensor,
        candidates: Tensor,
        shots: int,
        count: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
        encoded: Encoded | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws independent samples from the policy, without replacement inside a pointer.

        Args:
            query: Query embeddings [B, d].
            candidates: Embeddings of the pools [B, K, d].
            shots: ICDs per pointer, S.
            count: Samples per query; the same pointer may be drawn several times.
            temperature: Divides the logits, in addition to the network's 0.1; 1 samples from the policy itself.
            generator: Source of randomness; a CPU generator produces the same numbers for every device.
            mask: True where a candidate may be chosen [B, K]; None for all.
            encoded: The result of `encode` for these arguments, if already computed.

        Returns:
            Pointers [B, count, S] (int64) and their log-probs [B, count] under the tempered distribution; at
            temperature 1 they equal the result of `log_prob` in eval mode.

        Raises:
            ValueError: `count` is below 1 or `temperature` is not above 0 (for other causes see the class).
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        with self._deciding():
            encoded = self._encode_for(shots, query, candidates, mask, encoded)
            state, chosen = self._start(encoded, count)
            log_prob = state.new_zeros(state.shape[:2])  # (B, count)
            choices: list[Tensor] = []
            for _ in range(shots):
                if choices:
                    state, chosen = self._advance(encoded, state, chosen, choices[-1])
                if choices:
                    logits = self._step(encoded, state, chosen).masked_fill(chosen, -torch.inf)  # (B, count, K)
                else:  # the first step has the same distribution for all samples
                    logits = self._step(encoded, None, chosen[:, :1])  # (B, 1, K)
                steps = (logits / temperature).log_softmax(-1)
                choice = _drawn(steps, count, generator)  # (B, count)
                steps = steps.expand(-1, count, -1)
                log_prob = log_prob + steps.gather(-1, choice.unsqueeze(-1)).squeeze(-1)
                choices.append(choice)
            return torch.stack(choices, dim=-1), log_prob

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        """Disables gradients and dropout, even in training mode: a choice must not depend on a dropout mask."""
        training = self.training
        self.train(False)
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)

    def encode(self, query: Tensor, candidates: Tensor, mask: Tensor | None = None) -> Encoded:
        """Encodes queries and pools for `beam` and `sample`, so that several calls can share the result."""
        with self._deciding():
            return self._encode(query, candidates, mask)

    def _encode_for(
        self, shots: int, query: Tensor, candidates: Tensor, mask: Tensor | None, encoded: Encoded | None = None
    ) -> Encoded:
        """Returns the encoding, after checking that every query has at least `shots` candidates to choose from."""
        encoded = encoded or self._encode(query, candidates, mask)
        available = candidates.shape[1] if mask is None else int(mask.sum(-1).min())
        if not 1 <= shots <= available:
            raise ValueError(f"shots must be between 1 and the {available} available candidates, not {shots}")
        return encoded

    def _encode(self, query: Tensor, candidates: Tensor, mask: Tensor | None) -> Encoded:
        d = self.config.d_model
        batch, (pools, size) = len(query), candidates.shape[:2]
        fits = candidates.shape == (pools, size, d) and query.shape == (batch, d) and pools in (1, batch)
        if not fits or not batch or not size:
            found = f"{list(query.shape)} and {list(candidates.shape)}"
            raise ValueError(f"query must be [B, {d}] and candidates [B, K, {d}], not {found}")
        if mask is not None and (mask.shape != (batch, size) or mask.dtype != torch.bool):
            raise ValueError(f"mask must be bool [{batch}, {size}], not {mask.dtype} {list(mask.shape)}")
        hidden = None if mask is None else ~mask
        # Attention over an empty set is NaN, so a query without any candidate attends to its padding instead.
        ignored = None if hidden is None else hidden & ~hidden.all(-1, keepdim=True)
        q = self.tower(self.input_proj(query)).unsqueeze(1)  # (B, 1, h)
        c = self.tower(self.input_proj(candidates))  # (B, K, h)
        masked: dict[str, Tensor | None] = {"key_padding_mask": ignored}
        if pools < batch:  # to the attention, the queries of a shared pool are one sequence
            q, masked = q.transpose(0, 1), {"attn_mask": ignored}  # (1, B, h)
        for attention, norm in zip(self.cross_attn_layers, self.attn_norms, strict=True):
            # `need_weights` selects torch's unfused path: for one row per query it is faster, its gradients are
            # deterministic, and it rounds as in Lever-Plus.
            attended, _ = attention(q, c, c, **masked, need_weights=True)
            q = norm(attended + q)
        state = F.normalize(self.query_proj(self.dropout(q)), dim=-1).view(batch, -1)  # (B, h)
        return _encoded(state, F.normalize(self.cand_proj(self.dropout(c)), dim=-1), hidden)

    @staticmethod
    def _start(encoded: Encoded, rows: int) -> tuple[Tensor, Tensor]:
        """The state [B, rows, h] and the mask of chosen candidates [B, rows, K] before the first step."""
        batch, width = encoded.state.shape
        size = encoded.candidates.shape[1]
        state = encoded.state.unsqueeze(1).expand(batch, rows, width)
        return state, torch.zeros(batch, rows, size, dtype=torch.bool, device=state.device)

    def _step(self, encoded: Encoded, state: Tensor | None, chosen: Tensor) -> Tensor:
        """The logits [B, P, K] of one step; `state` is None for the first step."""
        if state is None or self.query_update_gate is None:  # without a gate the state never changes
            logits = encoded.first.expand(chosen.shape)
        else:
            logits = similarities(state, encoded.candidates) / TEMPERATURE  # (B, P, K)
        if state is not None:
            logits = logits.masked_fill(chosen, CHOSEN_LOGIT)
        if encoded.hidden is not None:
            logits = logits.masked_fill(encoded.hidden.unsqueeze(1), -torch.inf)
        return logits

    def _advance(self, encoded: Encoded, state: Tensor, chosen: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
        """The state [B, P, h] and the mask of chosen candidates [B, P, K] after `choice` [B, P]; -1 changes neither."""
        positions = torch.arange(chosen.shape[-1], device=choice.device)
        picked = choice.unsqueeze(-1) == positions  # (B, P, K)
        if self.query_update_gate is not None:
            icd = _lookup(encoded.candidates, choice, picked)  # (B, P, h)
            gate = self.query_update_gate(torch.cat([state, icd], dim=-1)).sigmoid()  # (B, P, h)
            moved = F.normalize(gate * state + (1 - gate) * icd, dim=-1)
            state = torch.where((choice >= 0).unsqueeze(-1), moved, state)
        return state, chosen | picked


def pointer_log_prob(step_logits: Tensor, pointers: Tensor) -> Tensor:
    """The log-probs [B, P] of `pointers` [B, P, S] from their `step_logits` [B, P, S, K]; 0 for padding."""
    padding = pointers < 0  # (B, P, S)
    # Padding is replaced before the softmax: in a step without any candidate all logits are -inf, and the gradient
    # would be NaN.
    steps = step_logits.masked_fill(padding.unsqueeze(-1), 0.0).log_softmax(-1)
    taken = steps.gather(-1, pointers.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # (B, P, S)
    return taken.masked_fill(padding, 0.0).sum(-1)


def similarities(rows: Tensor, candidates: Tensor) -> Tensor:
    """Dot products [B, P, K] of `rows` [B, P, h] with `candidates` [B, K, h], or [1, K, h] for a shared pool."""
    if len(candidates) == 1 < len(rows):  # a batched product would copy the pool for each query
        return (rows.flatten(0, 1) @ candidates[0].T).view(*rows.shape[:2], -1)
    return rows @ candidates.transpose(1, 2)


def _lookup(candidates: Tensor, choice: Tensor, picked: Tensor) -> Tensor:
    """The candidates [B, P, h] at `choice` [B, P], whose one-hot rows are `picked` [B, P, K]; undefined at -1."""
    if torch.is_grad_enabled():
        # A product with one-hot rows is used because its gradient is summed in a fixed order on every device.
        return picked.to(candidates.dtype) @ candidates
    pools = candidates.expand(len(choice), -1, -1)
    return pools.gather(1, choice.clamp(min=0).unsqueeze(-1).expand(-1, -1, pools.shape[-1]))


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Takes `rows` [B, W] of `x` [B, W, n]."""
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def _drawn(log_probs: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draws one position [B, P] from each distribution [B, P, K], or P = `count` positions from one, [B, 1, K].

    Each draw uses one uniform number, drawn on the generator's device. A position of probability 0 is never drawn: the
    result is the first position at which the cumulative distribution exceeds the number.
    """
    if log_probs.device.type == "mps":  # Apple's GPUs have no float64
        return _drawn(log_probs.cpu(), count, generator).to(log_probs.device)
    cumulative = log_probs.exp().cumsum(-1, dtype=torch.float64)  # (B, P, K) or (B, 1, K)
    total = cumulative[..., -1:]
    device = log_probs.device if generator is None else generator.device
    shape = (*log_probs.shape[:2], count // log_probs.shape[1])
    uniform = torch.rand(shape, dtype=torch.float64, device=device, generator=generator).to(log_probs.device)
    number = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))  # below the total
    return torch.searchsorted(cumulative, number, right=True).view(len(log_probs), count)


def _encoded(state: Tensor, candidates: Tensor, hidden: Tensor | None) -> Encoded:
    return Encoded(state, candidates, hidden, similarities(state.unsqueeze(1), candidates) / TEMPERATURE)


class CosineNetwork(PointerNetwork):
    """A policy without training: it ranks candidates by the cosine of the embeddings.

    It proposes pointers before a policy has been trained; Lever-Plus uses an untrained network for that.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__(PointerConfig(d_model, hidden_dim=d_model, gate=False))

    def _encode(self, query: Tensor, candidates: Tensor, mask: Tensor | None) -> Encoded:
        hidden = None if mask is None else ~mask
        return _encoded(F.normalize(query, dim=-1), F.normalize(candidates, dim=-1), hidden)

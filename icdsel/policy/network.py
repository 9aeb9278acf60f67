"""The pointer network: it chooses the ICDs to show one by one from a candidate pool.

The network is Lever-Plus's `PointerSelectorV2` and keeps its parameter names. The query attends to its candidates;
the result is the first *state*. At every step the candidates' logits are their cosines with the state, divided by
0.1, and the chosen candidate updates the state through a gate:

    q, c = W_in E_q, W_in E_c;      q = LN(q + MHA(q; c; c)), once per layer
    s = norm(W_q drop(q));          C = norm(W_c drop(c))
    logits_t = s · C / 0.1, and -100 for candidates chosen before
    s = norm(g ⊙ s + (1 - g) ⊙ C[i_t]),  g = σ(W_g [s ; C[i_t]])      (without a gate s does not change)

A gate moves the state towards the chosen ICD, so the next one resembles the first. The *residual* update can also move
it elsewhere, to what the first one lacks:

    s = norm(s + W_2 GELU(W_1 [s ; C[i_t]] + b_1) + b_2),  W_2 and b_2 zero at first

A policy that may *stop* does so before step t with the probability σ(u_t), u_t = s · w / 0.1 + b_t, and otherwise
chooses a candidate as above. The decision thus does not depend on the number of candidates. Pointers shorter than the
maximum, the empty one included, end with STOP; at the maximum there is nothing left to decide.

Two things differ from Lever-Plus. First, a query and its pool are encoded once for all pointers that are scored, not
once per pointer; the numbers are the same. Second, queries and candidates may pass through a *shared encoder* (`tower`,
off by default), x + W2 drop(GELU(W1 LN(x))) with x = W_in E, and a shared projection, W_q = W_c. There are two reasons:
with cosines of linear projections the question cannot decide which part of an image counts; and with shared weights,
what is learned about an example as a candidate also holds for it as a query (docs/selectors.md). A second block of the
same kind (`query_tower`, off by default) encodes queries alone, for queries that are not served by examples like
themselves.

For embeddings that hold the image's vector beside the question's, the input projection can be a *question gate*
(`question_gate`, off by default): x = W_i E_i ⊙ scale(E_t) + shift(E_t), see `icdsel.policy.question_gate`.

A network may see the answers of candidates, which queries lack (`answer_dim`): the embedding A of an answer is added to
the candidate's input, x = W_in E + W_a A. W_a starts at zero, so that a new network ranks candidates as it would
without answers.

Shapes: B queries, K candidates each, P pointers per query, S shots, embeddings of width d, hidden width h,
embeddings of answers of width a.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icdsel.policy import decoding, shared_pool
from icdsel.policy.config import PointerConfig
from icdsel.policy.encoding import TEMPERATURE, Encoded, EncodedCandidates, PointerEncoder, similarities
from icdsel.policy.shared_pool import SharedChoice
from icdsel.policy.stopping import stop_log_prob
from icdsel.settings.presets import MOST_SHOTS

__all__ = ["CHOSEN_LOGIT", "CosineNetwork", "PointerNetwork", "StepLogits", "pointer_log_prob"]

CHOSEN_LOGIT = -100.0
"""The logit of a candidate that is already in the pointer: finite, as in Lever-Plus."""


class StepLogits(NamedTuple):
    """What the policy decides by at every step of given pointers.

    Attributes:
        choice: Logits of the candidates [B, P, S, K]; -100 at candidates chosen before, -inf where masked.
        stop: Log-odds of stopping instead [B, P, S]; None if the policy may not stop.
    """

    choice: Tensor
    stop: Tensor | None


class _ResidualUpdate(nn.Module):
    """The residual update of the state; the new state is not yet of unit length."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(2 * width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, state: Tensor, icd: Tensor) -> Tensor:
        branch: Tensor = self.down(self.dropout(F.gelu(self.up(torch.cat([state, icd], dim=-1)))))
        return state + branch


class _StopHead(nn.Module):
    """The log-odds of stopping: a vector that the state is compared with, and a bias for each step; zero at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(MOST_SHOTS))

    def forward(self, state: Tensor, step: int) -> Tensor:
        return state @ self.weight / TEMPERATURE + self.bias[min(step, MOST_SHOTS - 1)]


_FEW = 1024
"""Candidates among which enough that may be chosen are looked for first."""


class PointerNetwork(PointerEncoder):
    """Scores and chooses pointers (sequences of ICDs) for queries; see the module's docstring.

    All methods take `query` [B, d] and `candidates` [B, K, d] in the dtype of the parameters, and optionally `mask`
    [B, K] (bool), True where a candidate may be chosen: others are hidden from the cross-attention and their
    logits are -inf, so pools of different sizes can be padded to the same size. `candidates` [1, K, d] are one
    pool that all queries share; it is encoded only once. If the network sees answers, `candidates` is [B, K, d + a]:
    each candidate's embedding followed by that of its answer. A query's own answer is never looked at: `query` may be
    [B, d + a] too, so that both can be rows of one table. `encode_candidates` encodes it once for many calls: where
    `candidates` may be `EncodedCandidates`, its result can be given instead of embeddings. Pointers are positions in
    the pool (int64). A step of -1 is padding: it chooses nothing and its log-prob is 0. Shapes that do not match one
    another or the network raise a ValueError.

    `step_logits`, `steps` and `log_prob` are differentiable and apply dropout in training mode. `greedy`, `beam` and
    `sample` compute no gradients, never apply dropout, and never choose a candidate twice; they raise a ValueError
    if `shots` is below 1 or exceeds the number of a query's candidates.

    With `config.stop`, `shots` is the maximum, and shorter pointers are filled with -1. `fixed` switches stopping off.
    """

    def __init__(self, config: PointerConfig) -> None:
        super().__init__(config)
        h = config.hidden_dim
        self.query_update_gate = nn.Linear(2 * h, h) if config.gate and config.update == "gate" else None
        self.state_update = _ResidualUpdate(h, config.dropout) if config.gate and config.update == "residual" else None
        self.stop_head = _StopHead(h) if config.stop else None
        self._initialise()

    def _initialise(self) -> None:
        """Initialises weights as Lever-Plus does: projections near the identity, the gate at one half.

        With a shared encoder the gate starts at σ(3) = 0.95, so that the first ICD moves the state only a little.
        A gate that starts at one half learns worse there (docs/selectors.md).
        """
        if isinstance(self.input_proj, nn.Linear):
            nn.init.xavier_uniform_(self.input_proj.weight)
        for projection in dict.fromkeys((self.query_proj, self.cand_proj)):
            assert isinstance(projection, nn.Linear)
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
        return self.steps(query, candidates, pointers, mask).choice

    def steps(self, query: Tensor, candidates: Tensor, pointers: Tensor, mask: Tensor | None = None) -> StepLogits:
        """Computes what `step_logits` does, and the log-odds of stopping."""
        if pointers.dim() != 3 or pointers.shape[0] != query.shape[0] or pointers.shape[2] == 0:
            raise ValueError(f"pointers must be [B, P, S] with S > 0, not {list(pointers.shape)}")
        encoded = self._encode(query, candidates, mask)
        state, chosen = self.start(encoded, pointers.shape[1])
        logits, stops = [self.step(encoded, None, chosen)], [self.stop(state, 0)]
        for step, choice in enumerate(pointers.unbind(-1)[:-1], 1):  # the last choice has no following step
            state, chosen = self.advance(encoded, state, chosen, choice)
            logits.append(self.step(encoded, state, chosen))
            stops.append(self.stop(state, step))
        stop = [u for u in stops if u is not None]
        return StepLogits(torch.stack(logits, dim=2), torch.stack(stop, dim=2) if stop else None)

    def log_prob(
        self, query: Tensor, candidates: Tensor, pointers: Tensor, mask: Tensor | None = None, fixed: bool = False
    ) -> Tensor:
        """Computes the log-probability of whole pointers, Σ_t log softmax(logits_t)[i_t], and of stopping after them.

        Returns:
            Log-probs [B, P] of `pointers` [B, P, S]. If the policy may not stop, or with `fixed`, that of a pointer of
            -1s is 0.
        """
        steps = self.steps(query, candidates, pointers, mask)
        return pointer_log_prob(steps.choice, pointers, None if fixed else steps.stop)

    def stop_margin(self, query: Tensor, candidates: Tensor | EncodedCandidates, mask: Tensor | None = None) -> Tensor:
        """Computes how much the policy prefers no ICD at all to a first one.

        Returns:
            The log-odds of stopping at zero ICDs [B] (nats). `greedy` with the offset x shows none where they are above
            -x, whatever x is.

        Raises:
            ValueError: The policy may not stop.
        """
        with self.deciding():
            if isinstance(candidates, EncodedCandidates):
                state = self.shared_state(query, candidates, mask)  # (B, h)
            else:
                state = self._encode(query, candidates, mask).state
            margin = self.stop(state, 0)  # (B,)
            if margin is None:
                raise ValueError("this policy was trained without STOP")
            return margin

    def greedy(
        self,
        query: Tensor,
        candidates: Tensor | EncodedCandidates,
        shots: int,
        mask: Tensor | None = None,
        encoded: Encoded | None = None,
        fixed: bool = False,
        stop_offset: float = 0.0,
    ) -> Tensor:
        """Chooses the best candidate at every step, or stops where that is more probable than going on.

        Args:
            query: Query embeddings [B, d].
            candidates: Embeddings of the pools [B, K, d], or their encodings.
            shots: ICDs per pointer, S.
            mask: True where a candidate may be chosen [B, K]; None for all.
            encoded: The result of `encode` for these arguments, if already computed.
            fixed: Never stop before `shots` ICDs.
            stop_offset: Added to the log-odds of stopping at every step; above 0 the policy shows fewer.

        Returns:
            Pointers [B, S] (int64), S = `shots`; ties go to the lowest position.
        """
        if encoded is None and (isinstance(candidates, EncodedCandidates) or len(candidates) < len(query)):
            return self.choose(query, candidates, shots, mask, fixed=fixed, stop_offset=stop_offset).positions
        with self.deciding():
            encoded = self._encode_for(shots, query, candidates, mask, encoded)
            return decoding.greedy(self, encoded, shots, fixed, stop_offset)

    def choose(
        self,
        query: Tensor,
        candidates: Tensor | EncodedCandidates,
        shots: int,
        mask: Tensor | None = None,
        scored: bool = False,
        fixed: bool = False,
        stop_offset: float = 0.0,
    ) -> SharedChoice:
        """Chooses like `greedy` from one pool that all queries share, in memory that hardly depends on B and N.

        Args:
            query: Query embeddings [B, d].
            candidates: Embeddings of the pool [1, N, d] or [N, d], or their encodings.
            shots: ICDs per pointer, S.
            mask: True where a candidate may be chosen [B, N]; None for all.
            scored: Whether the log-probs of the pointers are computed too.
            fixed: Never stop before `shots` ICDs.
            stop_offset: As for `greedy`.
        """
        pool = candidates if isinstance(candidates, EncodedCandidates) else self.encode_candidates(candidates)
        self._require(shots, len(pool.unit), mask)
        with self.deciding():
            return shared_pool.choose(self, query, pool, shots, mask, scored, fixed, stop_offset)

    def beam(
        self,
        query: Tensor,
        candidates: Tensor | EncodedCandidates,
        shots: int,
        width: int,
        mask: Tensor | None = None,
        encoded: Encoded | None = None,
        fixed: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Finds the pointers of the highest log-prob by beam search.

        Args:
            query: Query embeddings [B, d].
            candidates: Embeddings of the pools [B, K, d], or their encodings.
            shots: ICDs per pointer, S.
            width: Pointers kept after each step and returned, W.
            mask: True where a candidate may be chosen [B, K]; None for all.
            encoded: The result of `encode` for these arguments, if already computed.
            fixed: Never stop before `shots` ICDs.

        Returns:
            Pointers [B, W, S] (int64) and their log-probs [B, W], best first; ties are in the order of their
            prefixes, then of the pool, STOP last. If fewer than W distinct pointers exist, the rest is -1 and -inf.

        Raises:
            ValueError: `width` is below 1 (for other causes see the class).
        """
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        with self.deciding():
            encoded = self._encode_for(shots, query, candidates, mask, encoded)
            return decoding.beam(self, encoded, shots, width, fixed)

    def sample(
        self,
        query: Tensor,
        candidates: Tensor | EncodedCandidates,
        shots: int,
        count: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
        encoded: Encoded | None = None,
        fixed: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Draws independent samples from the policy, without replacement inside a pointer.

        Args:
            query: Query embeddings [B, d].
            candidates: Embeddings of the pools [B, K, d], or their encodings.
            shots: ICDs per pointer, S.
            count: Samples per query; the same pointer may be drawn several times.
            temperature: Divides the logits, in addition to the network's 0.1, and the log-odds of stopping; 1 samples
                from the policy itself.
            generator: Source of randomness; a CPU generator produces the same numbers for every device.
            mask: True where a candidate may be chosen [B, K]; None for all.
            encoded: The result of `encode` for these arguments, if already computed.
            fixed: Never stop before `shots` ICDs.

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
        with self.deciding():
            encoded = self._encode_for(shots, query, candidates, mask, encoded)
            return decoding.sample(self, encoded, shots, count, temperature, generator, fixed)

    def _encode_for(
        self,
        shots: int,
        query: Tensor,
        candidates: Tensor | EncodedCandidates,
        mask: Tensor | None,
        encoded: Encoded | None = None,
    ) -> Encoded:
        """Returns the encoding, after checking that every query has at least `shots` candidates to choose from."""
        encoded = encoded or self._encode(query, candidates, mask)
        self._require(shots, encoded.candidates.shape[1], mask)
        return encoded

    @staticmethod
    def _require(shots: int, size: int, mask: Tensor | None) -> None:
        if mask is not None and 1 <= shots <= int(mask[:, :_FEW].sum(-1).min()):
            return  # counting all of a large mask would take a fifth of the time of choosing
        available = size if mask is None else int(mask.sum(-1).min())
        if not 1 <= shots <= available:
            raise ValueError(f"shots must be between 1 and the {available} available candidates, not {shots}")

    @staticmethod
    def start(encoded: Encoded, rows: int) -> tuple[Tensor, Tensor]:
        """The state [B, rows, h] and the mask of chosen candidates [B, rows, K] before the first step."""
        batch, width = encoded.state.shape
        size = encoded.candidates.shape[1]
        state = encoded.state.unsqueeze(1).expand(batch, rows, width)
        return state, torch.zeros(batch, rows, size, dtype=torch.bool, device=state.device)

    def step(self, encoded: Encoded, state: Tensor | None, chosen: Tensor) -> Tensor:
        """The logits [B, P, K] of one step; `state` is None for the first step."""
        if state is None or not self.config.gate:  # then the state never changes
            logits = encoded.first.expand(chosen.shape)
        else:
            logits = similarities(state, encoded.candidates) / TEMPERATURE  # (B, P, K)
        if state is not None:
            logits = logits.masked_fill(chosen, CHOSEN_LOGIT)
        if encoded.hidden is not None:
            logits = logits.masked_fill(encoded.hidden.unsqueeze(1), -torch.inf)
        return logits

    def advance(self, encoded: Encoded, state: Tensor, chosen: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
        """The state [B, P, h] and the mask of chosen candidates [B, P, K] after `choice` [B, P]; -1 changes neither."""
        positions = torch.arange(chosen.shape[-1], device=choice.device)
        picked = choice.unsqueeze(-1) == positions  # (B, P, K)
        if self.config.gate:
            moved = self.moved(state, _lookup(encoded.candidates, choice, picked))  # (B, P, h)
            state = torch.where((choice >= 0).unsqueeze(-1), moved, state)
        return state, chosen | picked

    def moved(self, state: Tensor, icd: Tensor) -> Tensor:
        """The state [..., h] after the choice of an ICD with the unit vector [..., h]."""
        if self.state_update is not None:
            return F.normalize(self.state_update(state, icd), dim=-1)
        if self.query_update_gate is not None:
            gate = self.query_update_gate(torch.cat([state, icd], dim=-1)).sigmoid()
            return F.normalize(gate * state + (1 - gate) * icd, dim=-1)
        return state

    def stop(self, state: Tensor, step: int) -> Tensor | None:
        """The log-odds of stopping before the choice number `step`, from 0 [B, P]; None if the policy may not stop."""
        if self.stop_head is None:
            return None
        odds: Tensor = self.stop_head(state, step)
        return odds


def pointer_log_prob(step_logits: Tensor, pointers: Tensor, stop_logits: Tensor | None = None) -> Tensor:
    """The log-probs [B, P] of `pointers` [B, P, S].

    Args:
        step_logits: Their logits [B, P, S, K].
        pointers: Positions; -1 after the end.
        stop_logits: The log-odds of stopping [B, P, S] of a policy that may stop.

    Returns:
        Σ_t log softmax(step_logits_t)[i_t], without padding, plus the `stop_log_prob`.
    """
    padding = pointers < 0  # (B, P, S)
    # Padding is replaced before the softmax: in a step without any candidate all logits are -inf, and the gradient
    # would be NaN.
    steps = step_logits.masked_fill(padding.unsqueeze(-1), 0.0).log_softmax(-1)
    taken = steps.gather(-1, pointers.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # (B, P, S)
    taken = taken.masked_fill(padding, 0.0).sum(-1)
    return taken if stop_logits is None else taken + stop_log_prob(stop_logits, pointers)


def _lookup(candidates: Tensor, choice: Tensor, picked: Tensor) -> Tensor:
    """The candidates [B, P, h] at `choice` [B, P], whose one-hot rows are `picked` [B, P, K]; undefined at -1."""
    if torch.is_grad_enabled():
        # A product with one-hot rows is used because its gradient is summed in a fixed order on every device.
        return picked.to(candidates.dtype) @ candidates
    pools = candidates.expand(len(choice), -1, -1)
    return pools.gather(1, choice.clamp(min=0).unsqueeze(-1).expand(-1, -1, pools.shape[-1]))


class CosineNetwork(PointerNetwork):
    """A policy without training: it ranks candidates by the cosine of the embeddings.

    It proposes pointers before a policy has been trained; Lever-Plus uses an untrained network for that.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__(PointerConfig(d_model, hidden_dim=d_model, num_layers=0, gate=False))
        self.query_proj = self.cand_proj = nn.Identity()

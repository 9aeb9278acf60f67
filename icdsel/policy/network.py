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

A network may see the answers of candidates, which queries lack (`answer_dim`): the embedding A of an answer is added to
the candidate's input, x = W_in E + W_a A. W_a starts at zero, so that a new network ranks candidates as it would
without answers.

Shapes: B queries, K candidates each, P pointers per query, S shots, embeddings of width d, hidden width h,
embeddings of answers of width a.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icdsel.policy import decoding, shared_pool
from icdsel.policy.config import PointerConfig
from icdsel.policy.encoding import TEMPERATURE, Encoded, EncodedCandidates, PointerEncoder, similarities
from icdsel.policy.shared_pool import SharedChoice

__all__ = ["CHOSEN_LOGIT", "CosineNetwork", "PointerNetwork", "pointer_log_prob"]

CHOSEN_LOGIT = -100.0
"""The logit of a candidate that is already in the pointer: finite, as in Lever-Plus."""


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

    `step_logits` and `log_prob` are differentiable and apply dropout in training mode. `greedy`, `beam` and
    `sample` compute no gradients, never apply dropout, and never choose a candidate twice; they raise a ValueError
    if `shots` is below 1 or exceeds the number of a query's candidates.
    """

    def __init__(self, config: PointerConfig) -> None:
        super().__init__(config)
        h = config.hidden_dim
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
        if pointers.dim() != 3 or pointers.shape[0] != query.shape[0] or pointers.shape[2] == 0:
            raise ValueError(f"pointers must be [B, P, S] with S > 0, not {list(pointers.shape)}")
        encoded = self._encode(query, candidates, mask)
        state, chosen = self.start(encoded, pointers.shape[1])
        logits = [self.step(encoded, None, chosen)]
        for choice in pointers.unbind(-1)[:-1]:  # the last choice has no following step
            state, chosen = self.advance(encoded, state, chosen, choice)
            logits.append(self.step(encoded, state, chosen))
        return torch.stack(logits, dim=2)  # (B, P, S, K)

    def log_prob(self, query: Tensor, candidates: Tensor, pointers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Computes the log-probability of whole pointers, Σ_t log softmax(logits_t)[i_t].

        Returns:
            Log-probs [B, P] of `pointers` [B, P, S]; 0 for a pointer of -1s.
        """
        return pointer_log_prob(self.step_logits(query, candidates, pointers, mask), pointers)

    def greedy(
        self,
        query: Tensor,
        candidates: Tensor | EncodedCandidates,
        shots: int,
        mask: Tensor | None = None,
        encoded: Encoded | None = None,
    ) -> Tensor:
        """Chooses the best candidate at every step.

        Args:
            query: Query embeddings [B, d].
            candidates: Embeddings of the pools [B, K, d], or their encodings.
            shots: ICDs per pointer, S.
            mask: True where a candidate may be chosen [B, K]; None for all.
            encoded: The result of `encode` for these arguments, if already computed.

        Returns:
            Pointers [B, S] (int64), S = `shots`; ties go to the lowest position.
        """
        if encoded is None and (isinstance(candidates, EncodedCandidates) or len(candidates) < len(query)):
            return self.choose(query, candidates, shots, mask).positions
        with self.deciding():
            return decoding.greedy(self, self._encode_for(shots, query, candidates, mask, encoded), shots)

    def choose(
        self,
        query: Tensor,
        candidates: Tensor | EncodedCandidates,
        shots: int,
        mask: Tensor | None = None,
        scored: bool = False,
    ) -> SharedChoice:
        """Chooses like `greedy` from one pool that all queries share, in memory that hardly depends on B and N.

        Args:
            query: Query embeddings [B, d].
            candidates: Embeddings of the pool [1, N, d] or [N, d], or their encodings.
            shots: ICDs per pointer, S.
            mask: True where a candidate may be chosen [B, N]; None for all.
            scored: Whether the log-probs of the pointers are computed too.
        """
        pool = candidates if isinstance(candidates, EncodedCandidates) else self.encode_candidates(candidates)
        self._require(shots, len(pool.unit), mask)
        with self.deciding():
            return shared_pool.choose(self, query, pool, shots, mask, scored)

    def beam(
        self,
        query: Tensor,
        candidates: Tensor | EncodedCandidates,
        shots: int,
        width: int,
        mask: Tensor | None = None,
        encoded: Encoded | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Finds the pointers of the highest log-prob by beam search.

        Args:
            query: Query embeddings [B, d].
            candidates: Embeddings of the pools [B, K, d], or their encodings.
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
        with self.deciding():
            return decoding.beam(self, self._encode_for(shots, query, candidates, mask, encoded), shots, width)

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
    ) -> tuple[Tensor, Tensor]:
        """Draws independent samples from the policy, without replacement inside a pointer.

        Args:
            query: Query embeddings [B, d].
            candidates: Embeddings of the pools [B, K, d], or their encodings.
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
        with self.deciding():
            encoded = self._encode_for(shots, query, candidates, mask, encoded)
            return decoding.sample(self, encoded, shots, count, temperature, generator)

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
        if state is None or self.query_update_gate is None:  # without a gate the state never changes
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
        if self.query_update_gate is not None:
            moved = self.moved(state, _lookup(encoded.candidates, choice, picked))  # (B, P, h)
            state = torch.where((choice >= 0).unsqueeze(-1), moved, state)
        return state, chosen | picked

    def moved(self, state: Tensor, icd: Tensor) -> Tensor:
        """The state [..., h] after the choice of an ICD with the unit vector [..., h]."""
        if self.query_update_gate is None:
            return state
        gate = self.query_update_gate(torch.cat([state, icd], dim=-1)).sigmoid()
        return F.normalize(gate * state + (1 - gate) * icd, dim=-1)


def pointer_log_prob(step_logits: Tensor, pointers: Tensor) -> Tensor:
    """The log-probs [B, P] of `pointers` [B, P, S] from their `step_logits` [B, P, S, K]; 0 for padding."""
    padding = pointers < 0  # (B, P, S)
    # Padding is replaced before the softmax: in a step without any candidate all logits are -inf, and the gradient
    # would be NaN.
    steps = step_logits.masked_fill(padding.unsqueeze(-1), 0.0).log_softmax(-1)
    taken = steps.gather(-1, pointers.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # (B, P, S)
    return taken.masked_fill(padding, 0.0).sum(-1)


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

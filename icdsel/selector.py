"""A trained policy that chooses demonstrations: embeddings in, positions out."""

from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from icdsel.artefacts.checkpoint import load_policy
from icdsel.artefacts.run_folder import find_checkpoint
from icdsel.policy.network import PointerNetwork

__all__ = ["Choice", "Selector"]


class Choice(NamedTuple):
    """The demonstrations chosen for B queries.

    Attributes:
        positions: Positions in the candidate pool, in prompt order, int64 [B, S].
        log_probs: Log-probabilities (natural logarithm) of these sequences under the policy, [B].
    """

    positions: Tensor
    log_probs: Tensor


class Selector:
    """Chooses demonstrations for queries with a trained policy. It needs embeddings only, no images and no VLM.

    Args:
        network: The policy. It is switched to eval mode.
    """

    def __init__(self, network: PointerNetwork) -> None:
        self.network = network.eval()

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Loads the policy of a checkpoint, or the recommended one of a run's folder.

        Raises:
            CheckpointError: There is no checkpoint, or it cannot be used.
        """
        path = Path(path)
        return cls(load_policy(find_checkpoint(path) if path.is_dir() else path).to(device))

    @torch.no_grad()
    def choose(
        self,
        query_embeddings: Tensor,
        candidate_embeddings: Tensor,
        shots: int = 2,
        mask: Tensor | None = None,
        candidate_answers: Tensor | None = None,
    ) -> Choice:
        """Chooses the best candidate at each step, without repetition.

        The embeddings must come from the encoder that the policy was trained with, and have the same width d
        (`selector.network.config.d_model`). The result is on the policy's device.

        Args:
            query_embeddings: [B, d].
            candidate_embeddings: One pool of N candidates for all queries [N, d], or a pool for each query [B, N, d].
            shots: Demonstrations per query, S.
            mask: True where a candidate may be chosen, bool [B, N]; None allows all. A query that is itself among the
                candidates has to be masked there.
            candidate_answers: Embeddings of the candidates' answers, [N, a] or [B, N, a] as the candidates', for a
                policy that sees answers (a is `selector.network.config.answer_dim`), and for no other.

        Raises:
            ValueError: The shapes do not fit, answers are missing or needless, or a query has fewer than `shots`
                candidates.
        """
        weight = next(self.network.parameters())
        query, candidates = (x.to(weight) for x in (query_embeddings, candidate_embeddings))
        self._require_answers(candidates, candidate_answers)
        if candidate_answers is not None:
            candidates = torch.cat([candidates, candidate_answers.to(weight)], dim=-1)
        if candidates.dim() == 2:
            candidates = candidates.unsqueeze(0)  # (1, N, d)
        mask = None if mask is None else mask.to(weight.device)
        positions = self.network.greedy(query, candidates, shots, mask)  # (B, S)
        log_probs = self.network.log_prob(query, candidates, positions.unsqueeze(1), mask)  # (B, 1)
        return Choice(positions, log_probs.squeeze(1))

    def _require_answers(self, candidates: Tensor, answers: Tensor | None) -> None:
        """Checks that there are answers for exactly the candidates, if the policy sees any."""
        width = self.network.config.answer_dim
        if answers is None and width:
            raise ValueError(f"this policy sees answers: give candidate_answers of width {width}")
        if answers is not None and not width:
            raise ValueError("this policy sees no answers: omit candidate_answers")
        if answers is not None and answers.shape != (*candidates.shape[:-1], width):
            expected = [*candidates.shape[:-1], width]
            raise ValueError(f"candidate_answers must be {expected}, not {list(answers.shape)}")

"""A trained policy that chooses by embeddings, for programs that have their own: embeddings in, positions out."""

from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from icdsel.artefacts.checkpoint import load_policy
from icdsel.artefacts.run_folder import find_checkpoint
from icdsel.policy.encoding import EncodedCandidates
from icdsel.policy.network import PointerNetwork
from icdsel.records import stop_offset

__all__ = ["ChosenPositions", "EmbeddingSelector"]


class ChosenPositions(NamedTuple):
    """The demonstrations chosen for B queries.

    Attributes:
        positions: Positions in the candidate pool, in prompt order, int64 [B, S]; -1 after the policy stopped.
        log_probs: Log-probabilities (natural logarithm) of these sequences under the policy, [B].
    """

    positions: Tensor
    log_probs: Tensor


class EmbeddingSelector:
    """Chooses demonstrations for queries with a trained policy. It needs embeddings only, no images and no VLM.

    `Selector` chooses by images and questions, from the candidates of a bundle.

    A pool that all queries share is encoded at the first call and kept for the next ones, until another pool is given.

    Args:
        network: The policy. It is switched to eval mode.
    """

    def __init__(self, network: PointerNetwork) -> None:
        self.network = network.eval()
        self._kept: _Kept | None = None

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
        shots: int | str = 2,
        mask: Tensor | None = None,
        candidate_answers: Tensor | None = None,
        max_shots: int = 2,
    ) -> ChosenPositions:
        """Chooses the best candidate at each step, without repetition.

        The embeddings must come from the encoder that the policy was trained with, and have the same width d
        (`selector.network.config.d_model`). The result is on the policy's device.

        Args:
            query_embeddings: [B, d].
            candidate_embeddings: One pool of N candidates for all queries [N, d], or a pool for each query [B, N, d].
                The encodings of one pool are reused as long as the same tensor is given, and torch has not changed it;
                give another tensor after changing its memory through numpy.
            shots: Demonstrations per query, S; or `auto` for as many as the policy decides, none too, if it was trained
                to stop. `auto+1` stops more readily, by 1 nat, `auto-0.5` less.
            mask: True where a candidate may be chosen, bool [B, N]; None allows all. A query that is itself among the
                candidates has to be masked there.
            candidate_answers: Embeddings of the candidates' answers, [N, a] or [B, N, a] as the candidates', for a
                policy that sees answers (a is `selector.network.config.answer_dim`), and for no other.
            max_shots: The maximum number of demonstrations with `auto`, S.

        Raises:
            ValueError: The shapes do not fit, answers are missing or needless, a query has fewer candidates than are to
                be shown, or the policy was trained without STOP and `shots` is `auto`.
        """
        fixed, most, offset = isinstance(shots, int), max_shots, 0.0
        if isinstance(shots, int):
            most = shots
        else:
            offset = stop_offset(shots)
            if not self.network.config.stop:
                raise ValueError(f"this policy was trained without STOP: give a number of shots instead of {shots!r}")
        weight = next(self.network.parameters())
        query = query_embeddings.to(weight)
        mask = None if mask is None else mask.to(weight.device)
        self._require_answers(candidate_embeddings, candidate_answers)
        if candidate_embeddings.dim() == 2:
            pool = self._encoded(candidate_embeddings, candidate_answers)
            choice = self.network.choose(query, pool, most, mask, scored=True, fixed=fixed, stop_offset=offset)
            assert choice.log_probs is not None  # they were asked for
            return ChosenPositions(choice.positions, choice.log_probs)
        candidates = _together(candidate_embeddings, candidate_answers, weight)
        positions = self.network.greedy(query, candidates, most, mask, fixed=fixed, stop_offset=offset)  # (B, S)
        log_probs = self.network.log_prob(query, candidates, positions.unsqueeze(1), mask, fixed)  # (B, 1)
        return ChosenPositions(positions, log_probs.squeeze(1))

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

    def _encoded(self, candidates: Tensor, answers: Tensor | None) -> EncodedCandidates:
        """The encodings of a pool; those of the last call if neither the pool nor the policy changed."""
        weights = list(self.network.parameters())
        given = [candidates] if answers is None else [candidates, answers]
        state = [(x.data_ptr(), 0 if x.is_inference() else x._version) for x in (*given, *weights)]
        if self._kept is None or self._kept.state != state or not _same(self._kept.given, given):
            self._kept = None  # frees its memory first
            pool = self.network.encode_candidates(_together(candidates, answers, weights[0]))
            self._kept = _Kept(given, state, pool)
        return self._kept.pool


class _Kept(NamedTuple):
    """An encoded pool, and the tensors that it was made from. They are kept so that no others get their addresses."""

    given: list[Tensor]
    state: list[tuple[int, int]]
    pool: EncodedCandidates


def _same(tensors: list[Tensor], others: list[Tensor]) -> bool:
    return len(tensors) == len(others) and all(x is y for x, y in zip(tensors, others, strict=True))


def _together(candidates: Tensor, answers: Tensor | None, like: Tensor) -> Tensor:
    """Embeddings with those of the answers beside them, on the device and in the dtype of the policy."""
    return candidates.to(like) if answers is None else torch.cat([candidates.to(like), answers.to(like)], dim=-1)

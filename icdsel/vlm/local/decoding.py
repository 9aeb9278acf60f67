"""Greedy and beam search for a batch of prompts that a model has read.

Except for numerical ties, each answer equals that of transformers' `generate` for the prompt alone
(`do_sample=False`, `early_stopping=False`). How the model reads further tokens is up to the `Reader`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Search:
    """How answers are decoded.

    Attributes:
        num_beams: 1 for greedy search.
        length_penalty: A finished beam's log-prob is divided by its length (including the stop) to this power.
        repetition_penalty: Scores of tokens that occur in the prompt or the answer are divided by this if positive and
            multiplied by it if negative: logits in greedy search, log-probs in beam search.
        max_new_tokens: Length limit of answers; a beam that reaches it counts as finished.
        stops: Tokens that end an answer.
    """

    num_beams: int
    length_penalty: float
    repetition_penalty: float
    max_new_tokens: int
    stops: tuple[int, ...]

    def is_cut(self, answer: list[int]) -> bool:
        """Whether an answer, given without its stop, reached the limit before it ended."""
        return len(answer) >= self.max_new_tokens


class Reader(Protocol):
    """A model that has read some rows and can read further tokens."""

    def select(self, rows: Tensor) -> None:
        """Continue with these `rows` (R',) only; each row may occur any number of times."""

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token (R,) in each row; return the logits (R, V) of the next one, float32."""


def decode(logits: Tensor, seen: Tensor | None, reader: Reader, search: Search) -> list[list[int] | None]:
    """Decodes the answer of every prompt.

    Args:
        logits: Logits of the answers' first tokens, (B, V) float32.
        seen: The tokens that occur in each prompt, (B, V) bool; None if nothing is penalised.
        reader: The model, which has read one prompt per row. Its state afterwards is undefined.
        search: How to decode.

    Returns:
        The tokens of each answer, without the stop; None if any of its logits were not finite.
    """
    answers = _greedy if search.num_beams == 1 else _beams
    rows, finite = (tensor.tolist() for tensor in answers(logits, seen, reader, search))
    return [until(row, search.stops) if valid else None for row, valid in zip(rows, finite, strict=True)]


def are_finite(logits: Tensor) -> Tensor:
    """Whether each row of logits (R, V) is usable, bool (R,): −∞ excludes a token, NaN or ∞ make the row unusable."""
    return logits.isfinite().any(-1) & ~(logits.isnan() | (logits == torch.inf)).any(-1)


def until(tokens: list[int], stops: tuple[int, ...]) -> list[int]:
    """The tokens before the first stop."""
    cut = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:cut]


def penalised(scores: Tensor, seen: Tensor | None, penalty: float) -> Tensor:
    """Penalises the scores (R, V) of tokens that are `seen` (R, V); a penalty below 1 raises them."""
    if seen is None or penalty == 1:
        return scores
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def _greedy(logits: Tensor, seen: Tensor | None, reader: Reader, search: Search) -> tuple[Tensor, Tensor]:
    """Greedy search: returns the tokens (B, T), and whether all logits up to the end were finite, (B,)."""
    stops = torch.tensor(search.stops, device=logits.device)
    ended = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    finite = ~ended
    tokens: list[Tensor] = []
    while True:
        finite &= ended | are_finite(logits)
        token = penalised(logits, seen, search.repetition_penalty).argmax(-1).masked_fill(ended, search.stops[0])
        tokens.append(token)
        ended |= torch.isin(token, stops)
        if len(tokens) == search.max_new_tokens or bool(ended.all()):
            return torch.stack(tokens, 1), finite
        seen = _with(seen, token)
        logits = reader.step(token)


def _beams(logits: Tensor, seen: Tensor | None, reader: Reader, search: Search) -> tuple[Tensor, Tensor]:
    """Beam search: returns the best beams, padded with a stop, (B, max_new_tokens), and whether logits were finite.

    Each step ranks the continuations of all beams of a prompt. Those among the best `num_beams` that end are added to
    the list of finished beams, of which the best `num_beams` are kept; the best that do not end stay open. A prompt is
    done when its list of finished beams is full and its best open beam, if it ended now, would not be added to it.
    """
    count, vocabulary = logits.shape
    width, longest, device = search.num_beams, search.max_new_tokens, logits.device
    stops = torch.tensor(search.stops, device=device)
    ranked = width * max(2, 1 + len(search.stops))  # so that at least `width` of them do not end
    first = torch.arange(count, device=device)[:, None]
    open_scores, open_tokens = logits.new_zeros(count, 1), first.new_zeros(count, 1, 0)
    done_scores = logits.new_full((count, width), -torch.inf)  # best first
    done_tokens = first.new_full((count, width, longest), search.stops[0])
    undecided = first.new_ones(count, dtype=torch.bool)
    finite = undecided.clone()
    for length in range(1, longest + 1):
        finite &= ~undecided | are_finite(logits).view(count, -1).all(1)
        log_probs = penalised(logits.log_softmax(-1), seen, search.repetition_penalty)
        beams = open_scores.shape[1]  # 1 in the first step, then `width`
        sums = (open_scores[..., None] + log_probs.view(count, beams, vocabulary)).flatten(1)
        scores, places = sums.topk(min(ranked, sums.shape[1]))  # (B, C)
        parents, tokens = places // vocabulary, places % vocabulary
        grown = torch.cat([_take(open_tokens, parents), tokens[..., None]], -1)  # (B, C, length)
        ended = torch.isin(tokens, stops) if length < longest else torch.ones_like(tokens, dtype=torch.bool)

        enters = ended & undecided[:, None]
        enters[:, width:] = False
        entering = (scores / length**search.length_penalty).masked_fill(~enters, -torch.inf)
        done_scores, kept = torch.cat([done_scores, entering], 1).topk(width)
        padded = torch.nn.functional.pad(grown, (0, longest - length), value=search.stops[0])
        done_tokens = _take(torch.cat([done_tokens, padded], 1), kept)

        open_scores, kept = scores.masked_fill(ended, -torch.inf).topk(width)
        undecided &= open_scores[:, 0] / length**search.length_penalty > done_scores[:, -1]
        if length == longest or not bool(undecided.any()):
            break
        open_tokens = _take(grown, kept)
        rows = (first * beams + parents.gather(1, kept)).flatten()
        reader.select(rows)
        token = open_tokens[..., -1].flatten()
        seen = _with(None if seen is None else seen[rows], token)
        logits = reader.step(token)
    return done_tokens[:, 0], finite


def _with(seen: Tensor | None, token: Tensor) -> Tensor | None:
    return None if seen is None else seen.scatter(1, token[:, None], True)


def _take(beams: Tensor, places: Tensor) -> Tensor:
    """The beams (B, K, T) at `places` (B, K) of beams (B, C, T)."""
    return beams.gather(1, places[..., None].expand(-1, -1, beams.shape[-1]))

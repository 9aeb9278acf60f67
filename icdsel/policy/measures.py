"""What is measured of a policy on scored pointers, without dropout: by query, and as the metrics of an epoch."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from icdsel.policy.groups import Groups
from icdsel.policy.losses import rce_loss
from icdsel.policy.network import PointerNetwork, StepLogits, pointer_log_prob
from icdsel.policy.stopping import restricted_log_prob
from icdsel.retrieval.pools import rows_at

__all__ = ["Measures", "evaluate", "log_probs", "measure"]

_BATCH = 256


@torch.no_grad()
def log_probs(network: PointerNetwork, table: Tensor, groups: Groups) -> Tensor:
    """Computes the log-probs (Q, P) of all pointers, without dropout; meaningless where padded."""
    training = network.training
    network.eval()
    parts = [
        network.log_prob(table[batch.query], table[batch.pool], batch.pointers, batch.mask) for batch in _chunks(groups)
    ]
    network.train(training)
    return torch.cat(parts)


def _chunks(groups: Groups) -> Iterator[Groups]:
    for at in range(0, len(groups), _BATCH):
        yield groups[at : at + _BATCH]


class _Scored(NamedTuple):
    """A batch of B queries under a policy.

    Attributes:
        logits: The logits of the scored pointers.
        real: False at padding (B, P).
        rewards: Raw rewards (B, P); 0 at padding.
        restricted: Log-probs (B, P) of the policy restricted to the scored pointers; about -1e38 at padding.
        greedy: The greedy pointer (B, S); -1 after it stopped.
        same: Whether a scored pointer is the greedy one (B, P).
    """

    logits: StepLogits
    real: Tensor
    rewards: Tensor
    restricted: Tensor
    greedy: Tensor
    same: Tensor


def _scored(network: PointerNetwork, table: Tensor, batch: Groups) -> _Scored:
    query, candidates = table[batch.query], table[batch.pool]
    logits = network.steps(query, candidates, batch.pointers, batch.mask)
    real = ~batch.raw.isnan()  # (B, P)
    log_prob = pointer_log_prob(logits.choice, batch.pointers)  # (B, P)
    restricted = restricted_log_prob(log_prob, logits.stop, batch.pointers, real)  # (B, P)
    greedy = network.greedy(query, candidates, batch.pointers.shape[-1], batch.mask)  # (B, S)
    same = (batch.pointers == greedy[:, None]).all(-1) & real  # (B, P)
    return _Scored(logits, real, batch.raw.nan_to_num(0.0), restricted, greedy, same)


@torch.no_grad()
def evaluate(network: PointerNetwork, table: Tensor, groups: Groups) -> dict[str, float]:
    """Computes metrics of the policy on scored pointers, without dropout.

    * `val_loss`: RCE at τ = 1 on raw rewards, as in Lever-Plus
    * `expected_reward`: the mean over queries of Σ π(i) r_i / Σ π(i), summed over the query's scored pointers; if the
      policy may stop, with the `restricted_log_prob` for π
    * `oracle_reward`: the mean over queries of the query's highest reward
    * `oracle_share`: `expected_reward` / `oracle_reward`
    * `greedy_known`: the share of queries whose greedy pointer is among the scored ones
    * `greedy_reward`: the mean reward of the greedy pointer over these queries
    """
    network.eval()
    sums: dict[str, Tensor] = {}
    for batch in _chunks(groups):
        found = _scored(network, table, batch)
        parts = {
            "val_loss": rce_loss(found.logits.choice, batch.pointers, batch.raw, 1.0, stop_logits=found.logits.stop)
            * len(batch),
            "expected_reward": (found.restricted.exp() * found.rewards).sum(),
            "oracle_reward": found.rewards.masked_fill(~found.real, -torch.inf).amax(-1).sum(),
            "greedy_reward": (found.rewards * found.same).sum(),
            "greedy_known": found.same.any(-1).sum(),
        }
        for name, value in parts.items():
            sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value
    total = {name: float(value) for name, value in sums.items()}
    count = len(groups)
    known_count = total["greedy_known"]
    return {
        "val_loss": total["val_loss"] / count,
        "expected_reward": total["expected_reward"] / count,
        "oracle_reward": total["oracle_reward"] / count,
        "oracle_share": total["expected_reward"] / total["oracle_reward"] if total["oracle_reward"] else 0.0,
        "greedy_reward": total["greedy_reward"] / known_count if known_count else 0.0,
        "greedy_known": known_count / count,
    }


class Measures(NamedTuple):
    """What a policy is worth for each of Q queries, on the CPU.

    Attributes:
        expected: Σ π(i) r_i / Σ π(i), summed over the query's scored pointers (Q,).
        choice: The reward of the scored pointer that is the most probable (Q,).
        greedy: The rows of the greedy pointer in the table of embeddings (Q, S); -1 after it stopped.
        known: Whether the greedy pointer is among the scored ones (Q,); then it is the most probable one too, or
            nearly as probable.
    """

    expected: Tensor
    choice: Tensor
    greedy: Tensor
    known: Tensor


@torch.no_grad()
def measure(network: PointerNetwork, table: Tensor, groups: Groups) -> Measures:
    """Measures the policy query by query, without dropout."""
    network.eval()
    parts = []
    for batch in _chunks(groups):
        found = _scored(network, table, batch)
        best = found.restricted.argmax(-1, keepdim=True)  # (B, 1)
        rows = rows_at(batch.pool, found.greedy)  # (B, S)
        expected = (found.restricted.exp() * found.rewards).sum(-1)
        parts.append((expected, found.rewards.gather(1, best).squeeze(-1), rows, found.same.any(-1)))
    return Measures(*(torch.cat(values).cpu() for values in zip(*parts, strict=True)))

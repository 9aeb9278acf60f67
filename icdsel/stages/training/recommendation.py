"""The recommended checkpoint of a training: the last one, unless an earlier one is better on the held-out queries."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy import special
from torch import Tensor

from icdsel.artefacts.checkpoint import load_policy
from icdsel.console import warn
from icdsel.policy.groups import Groups
from icdsel.policy.measures import measure

_ALPHA = 0.01
"""The probability that an earlier epoch that is no better is recommended nevertheless, over all epochs together."""


_SMALLEST_GAIN = 0.01
"""The share of its expected reward by which an earlier epoch has to be better: seeds then rarely differ in theirs."""


def recommend(folder: Path, epochs: Sequence[Mapping[str, Any]], table: Tensor, held_out: Groups) -> Path:
    """The checkpoint that inference should use.

    It is the last epoch of GRPO, else of RCE, as long as no earlier one has a higher expected reward on the held-out
    queries, by at least 1 % and by more than chance explains: a paired t-test, corrected for the number of epochs, of
    which the best one is tested.

    Args:
        folder: The folder of the run, with the checkpoints of all epochs.
        epochs: The lines of its metrics.
        table: Embeddings (N, d).
        held_out: The queries that were not trained on.
    """
    learned = [epoch for epoch in epochs if epoch["phase"] != "warm"]
    last = learned[-1]
    best = max(reversed(learned), key=lambda epoch: epoch["expected_reward"])
    if best is last:
        return _file(folder, last)
    rewards = [
        measure(load_policy(_file(folder, epoch)).to(table.device), table, held_out).expected for epoch in (best, last)
    ]
    gain, error = paired(rewards[0] - rewards[1])
    if gain < _SMALLEST_GAIN * abs(last["expected_reward"]) or gain <= error * float(
        special.stdtrit(max(1, len(held_out) - 1), 1 - _ALPHA / (len(learned) - 1))
    ):
        return _file(folder, last)
    warn(
        f"the policy became worse in training: expected reward {best['expected_reward']:.3f} after {_name(best)}, "
        f"{last['expected_reward']:.3f} after {_name(last)}, on {len(held_out)} held-out queries. "
        f"{_file(folder, best).name} is recommended; try fewer epochs, or a smaller learning rate (--rce-lr, --grpo-lr)"
    )
    return _file(folder, best)


def paired(differences: Tensor) -> tuple[float, float]:
    """The mean of paired differences (Q,) and its standard error, infinite for fewer than two."""
    values = differences.double()
    if len(values) < 2:
        return float(values.mean()) if len(values) else 0.0, torch.inf
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


def _file(folder: Path, epoch: Mapping[str, Any]) -> Path:
    return folder / f"{epoch['phase']}_epoch{epoch['epoch']}.pt"


def _name(epoch: Mapping[str, Any]) -> str:
    return f"{epoch['phase'].upper()} epoch {epoch['epoch']}"

"""Whether there is anything to learn from RL data."""

import pytest
import torch

from icdsel.errors import NoSignalError
from icdsel.policy.groups import Groups
from icdsel.settings.tables import TrainSettings
from icdsel.stages.training.training_data import require_signal


def groups(with_signal: int, without: int, spread: float = 1.0) -> Groups:
    raw = torch.tensor([[1.0, 1.0 + spread]] * with_signal + [[1.0, 1.0]] * without)
    count = len(raw)
    none = torch.zeros(count, 3, dtype=torch.long)
    return Groups(none[:, 0], none, none == 0, torch.zeros(count, 2, 2, dtype=torch.long), raw, raw)


@pytest.mark.parametrize("spread", [0.0, 1e-6])  # equal rewards, and differences of rounding
def test_without_any_signal_training_stops_and_says_what_to_do(spread: float) -> None:
    with pytest.raises(NoSignalError, match=r"nothing to learn.*40 training queries.*mean reward is 1\.00.*--queries"):
        require_signal(groups(40, 0, spread), TrainSettings())


@pytest.mark.parametrize(
    "train",
    [
        TrainSettings(recipe="lever-plus"),  # imitates the proposals
        TrainSettings(online=True, grpo_epochs=1),  # samples may earn something else
    ],
)
def test_what_can_learn_without_a_signal_is_warned_about(train: TrainSettings) -> None:
    warning = require_signal(groups(0, 40), train)
    assert warning is not None and "say nothing about which pointers are better" in warning


def test_grpo_alone_cannot_imitate() -> None:
    with pytest.raises(NoSignalError):
        require_signal(groups(0, 40), TrainSettings(recipe="lever-plus", rce_epochs=0, grpo_epochs=1))


@pytest.mark.parametrize(
    ("with_signal", "without", "warned"),
    [(5, 0, False), (5, 14, False), (5, 16, True), (19, 60, True), (20, 100, False), (30, 300, True), (40, 300, False)],
)
def test_few_queries_with_a_signal_are_warned_about(with_signal: int, without: int, warned: bool) -> None:
    warning = require_signal(groups(with_signal, without), TrainSettings())
    assert (warning is not None) == warned
    assert warning is None or f"only {with_signal} of {with_signal + without} training queries" in warning

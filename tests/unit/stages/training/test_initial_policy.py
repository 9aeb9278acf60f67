"""The network that `train --init` starts from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from icdsel.artefacts.checkpoint_writing import save_policy
from icdsel.errors import CheckpointError
from icdsel.policy.config import PointerConfig
from icdsel.policy.network import PointerNetwork
from icdsel.settings import settings_from, with_values
from icdsel.stages.training.initial_policy import initial_policy, with_stop

SIZES: dict[str, Any] = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "tower": 0, "gate": True}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint whose sizes differ from the default settings in all but the layers and the gate."""
    path = tmp_path / "rce_epoch1.pt"
    torch.manual_seed(0)
    network = PointerNetwork(PointerConfig(d_model=8, **SIZES))
    save_policy(path, network, epoch=0, phase="rce", metrics={}, kl_beta=0.1)
    return path


def start(checkpoint: Path, **train: Any) -> PointerNetwork | None:
    return initial_policy(settings_from({"train": {"init": str(checkpoint)} | train}).train)


def test_its_sizes_are_those_of_the_checkpoint_and_its_dropouts_those_of_the_settings(checkpoint: Path) -> None:
    network = start(checkpoint, dropout=0.3)
    assert network is not None
    assert {name: getattr(network.config, name) for name in SIZES} == SIZES
    assert (network.config.dropout, network.config.attn_dropout) == (0.3, 0.1)


def test_a_given_size_may_be_that_of_the_checkpoint(checkpoint: Path) -> None:
    assert start(checkpoint, **SIZES) is not None


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [
        ("num_heads", "--num-heads", 4),  # the default of the recipe icdsel
        ("hidden_dim", "--hidden-dim", 256),  # the default
        ("tower", "--tower", 512),
        ("num_layers", "--num-layers", 2),
        ("gate", "--gate", False),
    ],
)
def test_a_given_size_that_differs_is_rejected_even_if_it_is_the_default(
    checkpoint: Path, name: str, flag: str, value: object
) -> None:
    with pytest.raises(CheckpointError, match=rf"{name} {SIZES[name]}.*omit {flag}$"):
        start(checkpoint, **{name: value})


def test_whether_it_sees_answers_is_up_to_the_checkpoint(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"candidate_answers False.*omit --candidate-answers$"):
        start(checkpoint, candidate_answers=True)
    network = PointerNetwork(PointerConfig(d_model=8, answer_dim=4, **SIZES))
    save_policy(checkpoint, network, epoch=0, phase="rce", metrics={}, kl_beta=0.1)
    for given in ({}, {"candidate_answers": True}):
        found = start(checkpoint, **given)
        assert found is not None and found.config.answer_dim == 4
    with pytest.raises(CheckpointError, match=r"candidate_answers True"):
        start(checkpoint, candidate_answers=False)


def test_sizes_of_another_recipe_are_not_taken_for_given_ones(checkpoint: Path) -> None:
    settings = with_values(settings_from({"train": {"init": str(checkpoint)}}), {"train": {"recipe": "lever-plus"}})
    assert initial_policy(settings.train) is not None


def test_without_a_checkpoint_there_is_none() -> None:
    assert initial_policy(settings_from({"train": {"num_heads": 4}}).train) is None


def test_a_policy_without_stop_gets_one_that_is_as_probable_as_going_on(checkpoint: Path) -> None:
    network = start(checkpoint)
    assert network is not None and not network.config.stop
    stopping = with_stop(network.eval()).eval()
    query, candidates = torch.randn(3, 8), torch.randn(3, 5, 8)
    assert stopping.config.stop and with_stop(stopping) is stopping
    assert torch.equal(stopping.stop_margin(query, candidates), torch.zeros(3))
    assert torch.equal(stopping.greedy(query, candidates, 2, fixed=True), network.greedy(query, candidates, 2))


def test_a_policy_that_may_stop_is_not_made_one_that_may_not(checkpoint: Path) -> None:
    stopping = PointerNetwork(PointerConfig(d_model=8, stop=True, **SIZES))
    save_policy(checkpoint, stopping, epoch=0, phase="rce", metrics={}, kl_beta=0.1)
    for given in ({}, {"stop": True}):
        network = start(checkpoint, **given)
        assert network is not None and network.config.stop
    with pytest.raises(CheckpointError, match="omit --no-stop"):
        start(checkpoint, stop=False)

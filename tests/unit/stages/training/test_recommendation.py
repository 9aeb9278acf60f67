"""Which checkpoint of a run is recommended, and who follows the recommendation."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from icdsel.artefacts.checkpoint_writing import save_policy
from icdsel.artefacts.run_folder import METADATA_FILE, Run, find_checkpoint
from icdsel.policy.config import PointerConfig
from icdsel.policy.groups import Groups
from icdsel.policy.measures import measure
from icdsel.policy.network import PointerNetwork
from icdsel.stages.training.recommendation import paired, recommend
from icdsel.store.metadata import Metadata

TABLE = torch.nn.functional.normalize(torch.randn(30, 6, generator=torch.Generator().manual_seed(1)), dim=-1)


def policy(sign: float) -> PointerNetwork:
    """A policy whose cosines all have this sign: with -1 it prefers what the other one avoids."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PointerNetwork(PointerConfig(6, hidden_dim=6, gate=False)).eval()
    with torch.no_grad():
        network.query_proj.weight.mul_(sign)
    return network


def held_out(count: int = 20) -> Groups:
    """Queries with two pointers of one ICD; the one that `policy(1)` prefers is the better one."""
    generator = torch.Generator().manual_seed(2)
    pool = torch.stack([torch.randperm(30, generator=generator)[:5] for _ in range(count)])
    query = torch.randint(30, (count,), generator=generator)
    mask = torch.ones(count, 5, dtype=torch.bool)
    pointers = torch.tensor([[[0], [1]]]).repeat(count, 1, 1)
    log_prob = policy(1).log_prob(TABLE[query], TABLE[pool], pointers, mask)
    raw = torch.where(log_prob == log_prob.amax(-1, keepdim=True), 2.0, 0.0)
    return Groups(query, pool, mask, pointers, raw, raw)


def trained(folder: Path, groups: Groups, **epochs: float) -> list[dict[str, Any]]:
    """A run with these checkpoints; returns its lines of metrics."""
    lines = []
    for name, sign in epochs.items():
        phase, number = name.split("_")
        network = policy(sign)
        save_policy(folder / f"{phase}_epoch{number}.pt", network, epoch=0, phase=phase, metrics={}, kl_beta=0.1)
        reward = float(measure(network, TABLE, groups).expected.mean())
        lines.append({"phase": phase, "epoch": int(number), "expected_reward": reward})
    return lines


def test_a_policy_that_grpo_ruined_is_not_recommended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    groups = held_out()
    lines = trained(tmp_path, groups, rce_1=1.0, rce_2=1.0, grpo_1=-1.0)
    assert recommend(tmp_path, lines, TABLE, groups).name == "rce_epoch2.pt"  # of two equal ones the later
    assert "became worse in training" in caplog.text and "rce_epoch2.pt is recommended" in caplog.text
    assert (tmp_path / "grpo_epoch1.pt").exists()


def test_grpo_comes_before_rce_where_it_is_not_worse(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    groups = held_out()
    lines = trained(tmp_path, groups, rce_1=1.0, grpo_1=1.0, grpo_2=1.0)
    assert recommend(tmp_path, lines, TABLE, groups).name == "grpo_epoch2.pt"
    assert not caplog.text


@pytest.mark.parametrize("count", [1, 2])
def test_a_difference_that_chance_explains_changes_nothing(tmp_path: Path, count: int) -> None:
    groups = held_out()[:count]
    if count == 2:  # one query better, the other worse
        groups.raw[1] = groups.raw[1].flip(0)
    lines = trained(tmp_path, groups, rce_1=1.0, grpo_1=-1.0)
    lines[0]["expected_reward"] = lines[1]["expected_reward"] + 0.1
    assert recommend(tmp_path, lines, TABLE, groups).name == "grpo_epoch1.pt"


def test_a_certain_but_tiny_loss_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Seeds of one training would else be compared after different epochs."""
    groups = held_out()
    groups.raw.clamp_(min=1.99)
    lines = trained(tmp_path, groups, rce_1=1.0, grpo_1=-1.0)
    better, worse = (measure(policy(sign), TABLE, groups).expected for sign in (1.0, -1.0))
    gain, error = paired(better - worse)
    assert 0 < gain < 0.01 and gain > 5 * error
    assert recommend(tmp_path, lines, TABLE, groups).name == "grpo_epoch1.pt"
    assert not caplog.text


def test_imitation_of_beams_is_never_recommended(tmp_path: Path) -> None:
    groups = held_out()
    lines = trained(tmp_path, groups, warm_1=1.0, rce_1=-1.0)
    assert recommend(tmp_path, lines, TABLE, groups).name == "rce_epoch1.pt"


def test_paired_differences_by_hand() -> None:
    mean, error = paired(torch.tensor([1.0, 2.0, 3.0]))
    assert mean == 2 and error == pytest.approx(1 / math.sqrt(3))
    assert paired(torch.tensor([1.0])) == (1.0, math.inf) and paired(torch.tensor([])) == (0.0, math.inf)


# --- who follows it ---------------------------------------------------------------------------------------


def run_folder(folder: Path, **metadata: Any) -> Path:
    trained(folder, held_out(), rce_1=1.0, rce_2=1.0, grpo_1=-1.0)
    Metadata(inputs={}, finished=1, **metadata).write(folder / METADATA_FILE)
    return folder


def test_the_recommended_checkpoint_is_the_one_that_the_metadata_name(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, recommended="rce_epoch2.pt")
    assert find_checkpoint(folder).name == Run(folder).checkpoint.name == "rce_epoch2.pt"


@pytest.mark.parametrize("recommended", [None, "rce_epoch9.pt", "../elsewhere.pt", "resume.pt"])
def test_without_a_usable_name_it_is_the_last_one(tmp_path: Path, recommended: str | None) -> None:
    folder = run_folder(tmp_path, **({} if recommended is None else {"recommended": recommended}))
    assert find_checkpoint(folder).name == "grpo_epoch1.pt"


def test_without_metadata_it_is_the_last_one(tmp_path: Path) -> None:
    trained(tmp_path, held_out(), rce_1=1.0, grpo_1=1.0)
    assert find_checkpoint(tmp_path).name == "grpo_epoch1.pt"

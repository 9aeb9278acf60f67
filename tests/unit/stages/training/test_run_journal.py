"""A training is resumed after its last complete epoch, and its files fit together."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from icdsel.artefacts.checkpoint import load_policy
from icdsel.artefacts.run_folder import METADATA_FILE, Run, read_metrics
from icdsel.errors import RunError
from icdsel.policy.config import PointerConfig
from icdsel.policy.loop import Epoch
from icdsel.policy.network import PointerNetwork
from icdsel.stages import train
from icdsel.stages.train import commit_run, run_slot
from icdsel.stages.training.run_journal import RESUME_FILE, RunJournal
from icdsel.store.metadata import read_metadata
from icdsel.trackers import Tracking

METRICS = {"rce_loss": 2.0, "expected_reward": 0.5, "oracle_share": 0.25}


class Curves(Tracking):
    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[int] = []

    def log_epoch(self, number: int, metrics: Any) -> None:
        self.epochs.append(number)


def network(seed: int = 0) -> PointerNetwork:
    torch.manual_seed(seed)
    return PointerNetwork(PointerConfig(d_model=4, hidden_dim=4))


def journal(folder: Path, policy: PointerNetwork, curves: Tracking | None = None) -> RunJournal:
    return RunJournal(folder, policy, curves or Tracking(), lambda steps, status="": None)


def keep(log: RunJournal, policy: PointerNetwork, number: int, **metrics: float) -> None:
    log.step(7)
    draws = {"rng": torch.get_rng_state(), "order": torch.Generator().get_state()}
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    log.keep(Epoch("rce", number, METRICS | metrics, 0.1, optimizer, draws))


def two_epochs(folder: Path) -> PointerNetwork:
    policy = network(1)
    log = journal(folder, policy)
    assert log.resume() is None
    keep(log, policy, 0)
    keep(log, policy, 1, rce_loss=1.0)
    return policy


def test_an_epoch_leaves_a_checkpoint_and_a_line_of_metrics(tmp_path: Path) -> None:
    policy = two_epochs(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.jsonl",
        "rce_epoch1.pt",
        "rce_epoch2.pt",
        "resume.pt",
    ]
    assert [(epoch.epoch, epoch.values["rce_loss"]) for epoch in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 2.0),
        (2, 1.0),
    ]
    weights = load_policy(tmp_path / "rce_epoch2.pt").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in policy.state_dict().items())


def test_it_is_resumed_with_weights_metrics_and_work(tmp_path: Path) -> None:
    trained, policy, curves = two_epochs(tmp_path), network(2), Curves()
    log = journal(tmp_path, policy, curves)
    resume = log.resume()
    assert resume is not None and (resume.phase, resume.epoch, resume.kl_beta) == ("rce", 1, 0.1)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in policy.state_dict().items())
    assert [epoch["rce_loss"] for epoch in log.epochs] == [2.0, 1.0] and log.queries == 14
    keep(log, policy, 2)
    assert log.queries == 21 and curves.epochs == [1, 2, 3]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3


@pytest.mark.parametrize("rest", ['{"phase": "rce", "epoch": 3, "rce_loss": 9.0}\n', '{"phase": "rce", "ep'])
def test_metrics_of_an_epoch_that_was_not_completed_are_dropped(tmp_path: Path, rest: str) -> None:
    two_epochs(tmp_path)
    whole = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(whole + rest)
    journal(tmp_path, network()).resume()
    assert (tmp_path / "metrics.jsonl").read_text() == whole


def test_without_its_state_a_training_starts_again(tmp_path: Path) -> None:
    policy = two_epochs(tmp_path)
    (tmp_path / RESUME_FILE).unlink()
    log = journal(tmp_path, policy)
    assert log.resume() is None and log.queries == 0
    keep(log, policy, 0)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def lose_metrics(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0])


def damage_metrics(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text(json.dumps({"phase": "rce", "epoch": "one"}) + "\n")


def damage_state(folder: Path) -> None:
    state = folder / RESUME_FILE
    state.write_bytes(state.read_bytes()[:-100])


def other_state(folder: Path) -> None:
    (folder / RESUME_FILE).write_bytes((folder / "rce_epoch2.pt").read_bytes())


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (
            lose_metrics,
            r"metrics\.jsonl lacks epochs that .*resume\.pt continues from: move the folder of the run away",
        ),
        (damage_metrics, r"metrics\.jsonl, line 1: it has no phase or no epoch"),
        (damage_state, r"this training cannot be resumed: move the folder of the run away, and run the same command"),
        (other_state, r"resume\.pt is damaged, or belongs to another training: move"),
    ],
)
def test_files_that_do_not_fit_together_are_rejected_with_the_remedy(tmp_path: Path, damage: Any, why: str) -> None:
    two_epochs(tmp_path)
    damage(tmp_path)
    with pytest.raises(RunError, match=why):
        journal(tmp_path, network()).resume()


def test_the_state_of_another_network_is_rejected(tmp_path: Path) -> None:
    two_epochs(tmp_path)
    with pytest.raises(RunError, match="belongs to another training"):
        journal(tmp_path, PointerNetwork(PointerConfig(d_model=8, hidden_dim=4))).resume()


def test_an_epoch_that_diverged_is_not_written(tmp_path: Path) -> None:
    policy = network()
    log = journal(tmp_path, policy)
    with pytest.raises(RunError, match=r"rce epoch 1 diverged \(loss nan\).*Try a smaller --rce-lr"):
        keep(log, policy, 0, rce_loss=float("nan"))
    assert not [*tmp_path.iterdir()]


def test_of_runs_that_finish_at_the_same_time_only_one_is_the_last(tmp_path: Path, monkeypatch) -> None:
    look = train.read_metadata_files

    def slowly(paths: Any) -> Any:
        found = list(look(paths))
        time.sleep(0.1)
        return found

    def finish(name: str) -> int | None:
        with run_slot(Run(tmp_path / "model_cpk" / name), {}).open() as result:
            result.begin({}, "cpu", 1)
            commit_run(result, {})
        return read_metadata(tmp_path / "model_cpk" / name / METADATA_FILE).finished

    monkeypatch.setattr(train, "read_metadata_files", slowly)
    with ThreadPoolExecutor() as threads:
        assert sorted(threads.map(finish, "ab"), key=str) == [1, 2]

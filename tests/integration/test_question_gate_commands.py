"""The question gate, pruned pointers and RCE over the best ones, from RL data to answers."""

from pathlib import Path

import pytest
from worlds import write_small_world

from icdsel.artefacts.checkpoint import load_policy
from icdsel.artefacts.rl_data import read_rl_data
from icdsel.errors import CheckpointError, SettingsError
from icdsel.policy.rewards import is_correct
from icdsel.settings.loading import Settings, settings_from
from icdsel.stages.generate import generate
from icdsel.stages.train import train


def settings(folder: Path, **tables: dict[str, object]) -> Settings:
    data = {
        "data_dir": str(folder / "data"),
        "results_dir": str(folder / "results"),
        "pool_size": "all",
        "embed": "separate",
    }
    proposals = {"queries": 64, "min_shots": 0, "beam": 0, "samples": 0, "random": 4, "retrieval": 0, "prune": 2}
    values = {"data": data, "proposals": proposals, "train": {"rce_epochs": 1}, "reward": {"price": 0.1}}
    return settings_from({name: values.get(name, {}) | tables.get(name, {}) for name in values})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("gate")
    write_small_world(made / "data", train=400, tuning=2, validation=2)
    generate(settings(made, proposals={"prune": 0}), made / "plain.jsonl")
    generate(settings(made), made / "pruned.jsonl")
    return made


def test_right_pointers_are_scored_without_each_icd_where_no_shorter_one_is_right(folder: Path) -> None:
    plain, more = (read_rl_data(folder / f"{name}.jsonl").groups for name in ("plain", "pruned"))
    asked = 0
    for before, after in zip(plain, more, strict=True):
        shorter = after.candidates[len(before.candidates) :]
        assert after.candidates[: len(before.candidates)] == before.candidates
        right = [c.pointer for c in before.candidates if is_correct(c)]
        assert bool(shorter) <= (bool(right) and min(map(len, right)) == 2)
        assert all(any(set(c.pointer) < set(pointer) for pointer in right) for c in shorter)
        asked += len(shorter)
    assert asked > 0


def test_a_gated_policy_is_trained_over_the_whole_training_split(folder: Path) -> None:
    made = settings(folder)
    assert (made.train.rce_over, made.train.negatives, made.train.tower, made.train.update) == (
        *("best", 256),
        *(0, "residual"),
    )
    run = train(made, run="gate", rl_data_files=[folder / "pruned.jsonl"])
    config = load_policy(run.checkpoint).config
    assert config.question_gate == 32 and config.stop and config.d_model % 2 == 0


def test_a_gate_needs_image_and_question_apart(folder: Path) -> None:
    together = settings(folder, data={"embed": "both"}, train={"question_gate": 8, "rce_epochs": 1})
    with pytest.raises(SettingsError, match="--embed separate"):
        train(together, run="together", rl_data_files=[folder / "pruned.jsonl"])


def test_a_checkpoint_for_other_embeddings_is_rejected(folder: Path) -> None:
    run = train(settings(folder), run="gate", rl_data_files=[folder / "pruned.jsonl"])
    together = settings(folder, data={"embed": "both"}, proposals={"init": str(run.checkpoint)})
    with pytest.raises(CheckpointError, match="embed"):
        generate(together, folder / "other.jsonl")


def test_pruning_needs_shorter_pointers() -> None:
    with pytest.raises(SettingsError, match="--min-shots 0"):
        settings_from({"proposals": {"prune": 2}})

"""The list of runs, over folders made by hand: no training."""

import io
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from icdsel.artefacts.run_folder import find_run, shown_name
from icdsel.cli.tables import runs_table
from icdsel.comparison.runs import RunSummary, age, list_runs
from icdsel.errors import RunError
from icdsel.settings.loading import load_settings, settings_from
from icdsel.store.fingerprints import fingerprint_file

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def write_run(
    results: Path, name: str, *, hours: float = 1, finished: bool = True, dataset: str = "world", **tables: Any
) -> Path:
    """A run that began so many hours before noon, with the last two of its five RCE epochs."""
    folder = results / dataset / "model_cpk" / name
    folder.mkdir(parents=True)
    settings = settings_from({"data": {"dataset": dataset} | tables.pop("data", {})} | tables)
    side = {
        "identity": {},
        "settings": settings.model_dump(mode="json"),
        "environment": {"written": (NOON - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S%z")},
    }
    (folder / "run.json").write_text(json.dumps(side | ({"finished": 1} if finished else {})))
    epochs = [
        {"phase": "rce", "epoch": i, "expected_reward": i / 10, "oracle_share": i / 5, "kl_beta": 0.1} for i in (4, 5)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    for i in (4, 5):
        (folder / f"rce_epoch{i}.pt").write_bytes(f"{name} {i}".encode())
    return folder


def write_answers(run: Path, epoch: int, accuracies: dict[int, list[float]], size: str = "validation-2") -> Path:
    """Predictions of a run's checkpoint: accuracies by shots."""
    folder = run.parent.parent / "infer/RandSampler_tiny-vlm"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"policy-{run.name}-rce_epoch{epoch}"
    inputs = {"checkpoint": fingerprint_file(run / f"rce_epoch{epoch}.pt")}
    side = {"identity": inputs, "name": name, "set": size}
    (folder / f"{name}_{size}.meta.json").write_text(json.dumps(side))
    lines = [
        {"question_id": i, "shots": shots, "icds": [], "accuracy": value}
        for shots, values in accuracies.items()
        for i, value in enumerate(values)
    ]
    path = folder / f"{name}_{size}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def shown(runs: list[RunSummary], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(runs_table(runs, NOON))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_runs_are_sorted_by_age_with_the_scores_of_their_last_checkpoint(tmp_path):
    new = write_run(tmp_path, "new", hours=1, train={"rce_lr": 0.001})
    old = write_run(tmp_path, "new-er", hours=50, dataset="okvqa", vlm={"model": "tiny-vlm"})
    (tmp_path / "world/model_cpk/new.old-1").mkdir()
    write_answers(new, 5, {1: [1.0, 0.0], 2: [1.0, 0.6]})
    write_answers(new, 4, {1: [0.0, 0.0]})
    first, second = list_runs(tmp_path)
    assert (first.name, second.name) == ("new-er", "new")
    assert (first.dataset, first.settings, first.answered) == ("okvqa", ("tiny-vlm",), ())
    assert second.settings == ("rce-lr-0.001",)
    assert (second.state, second.checkpoint, second.phase, second.epoch) == ("finished", "rce_epoch5.pt", "rce", 5)
    assert (second.expected_reward, second.oracle_share) == (0.5, 1.0)
    assert {a.checkpoint: a.accuracy for a in second.answered} == {
        "rce_epoch4.pt": {1: 0.0},
        "rce_epoch5.pt": {1: 50.0, 2: 80.0},
    }
    assert second.bytes == sum(path.stat().st_size for path in new.iterdir())
    assert [run.name for run in list_runs(tmp_path, "okvqa")] == ["new-er"]
    assert list_runs(tmp_path, "okvqa_local") == [first]  # Lever-Plus's name of it
    assert list_runs(tmp_path, "vqav2") == list_runs(tmp_path / "nowhere") == []
    assert old.name in shown([first, second], 80)


def test_settings_that_dataset_preset_and_recipe_decide_are_not_listed(tmp_path):
    write_run(tmp_path, "usual")
    write_run(tmp_path, "original", data={"preset": "lever-plus"})
    write_run(tmp_path, "network", train={"recipe": "lever-plus", "tensorboard": True})
    write_run(tmp_path, "elsewhere", data={"data_dir": "there"}, vlm={"device": "cpu", "batch_tokens": 7})
    write_run(tmp_path, "prompt", vlm={"system_prompt": ""}, reward={"mode": "soft_only"})
    assert {run.name: run.settings for run in list_runs(tmp_path)} == {
        "usual": (),
        "original": ("lever-plus",),
        "network": ("lever-plus",),
        "elsewhere": (),
        "prompt": ("system-prompt-", "mode-soft_only"),
    }


def test_the_settings_of_whoever_lists_runs_are_not_mixed_in(tmp_path, monkeypatch):
    write_run(tmp_path, "usual", dataset="okvqa", train={"rce_lr": 0.5})
    expected = list_runs(tmp_path)
    assert (expected[0].model, expected[0].settings) == ("Qwen/Qwen2.5-VL-3B-Instruct", ("rce-lr-0.5",))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "icdsel.toml").write_text(
        '[train]\nbatch_size = 8\nrecipe = "lever-plus"\n[reward]\nmode = "soft_only"\n'
    )
    monkeypatch.setenv("ICDSEL_VLM_MODEL", "someone/else")
    monkeypatch.setenv("ICDSEL_DATA_SAMPLER", "mix")
    assert list_runs(tmp_path) == list_runs(tmp_path, "okvqa") == expected


def test_settings_that_a_run_is_older_than_have_their_defaults(tmp_path):
    run = write_run(tmp_path, "run", dataset="okvqa")
    side = json.loads((run / "run.json").read_text())
    for table, name in (("vlm", "model"), ("data", "encoder"), ("train", "num_heads")):
        del side["settings"][table][name]
    (run / "run.json").write_text(json.dumps(side))
    [found] = list_runs(tmp_path)
    assert (found.state, found.model, found.settings) == ("finished", "Qwen/Qwen2.5-VL-3B-Instruct", ())


def test_answers_of_a_policy_that_was_trained_anew_do_not_count(tmp_path, capsys):
    run = write_run(tmp_path, "run")
    path = write_answers(run, 5, {1: [1.0]})
    [found] = list_runs(tmp_path)
    assert len(found.answered) == 1
    (run / "rce_epoch5.pt").write_bytes(b"another")
    [found] = list_runs(tmp_path)
    assert found.answered == ()
    write_answers(run, 5, {1: [1.0]})
    path.write_text("torn")
    [found] = list_runs(tmp_path)
    assert (found.state, found.answered) == ("finished", ())
    assert f"{path.name}, line 1" in capsys.readouterr().err


def damage_side(run: Path) -> None:
    (run / "run.json").write_text('{"identity"')


def damage_setting(run: Path) -> None:
    side = json.loads((run / "run.json").read_text())
    side["settings"]["train"]["rce_epochs"] = "many"
    (run / "run.json").write_text(json.dumps(side))


def lose_side(run: Path) -> None:
    (run / "run.json").unlink()


def lead_in_a_circle(run: Path) -> None:
    (run / "grpo_epoch1.pt").symlink_to("grpo_epoch1.pt")


def lead_out(run: Path) -> None:
    """A link in the run's place, to a folder whose files are not counted one by one."""
    shutil.rmtree(run)
    run.symlink_to("/")


def lose_checkpoints(run: Path) -> None:
    for path in run.glob("*.pt"):
        path.unlink()


def lose_the_last_checkpoint(run: Path) -> None:
    (run / "rce_epoch5.pt").unlink()


def damage_metrics(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"phase": "rce", "epoch": 1}\n[1]\n')


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (damage_side, "run.json cannot be read"),
        (damage_setting, "rce_epochs"),
        (lose_side, "run.json is missing"),
        (lose_checkpoints, "No checkpoint"),
        (lose_the_last_checkpoint, "its last checkpoint is missing"),
        (damage_metrics, "metrics.jsonl"),
        (lead_in_a_circle, "grpo_epoch1.pt is not a file"),
        (lead_out, "run.json is missing"),
    ],
)
def test_a_damaged_run_says_why_and_hides_no_other(tmp_path, damage, problem):
    damage(write_run(tmp_path, "bad", hours=3))
    write_run(tmp_path, "good", hours=2)
    states = {run.name: run for run in list_runs(tmp_path)}
    assert states["bad"].state == "damaged" and problem in states["bad"].problem
    assert states["good"].state == "finished"
    assert "damaged" in shown(list(states.values()), 80)


def test_a_run_of_another_version_is_not_damaged(tmp_path):
    run = write_run(tmp_path, "run")
    side = json.loads((run / "run.json").read_text())
    side["settings"]["train"]["abandoned"] = 3
    (run / "run.json").write_text(json.dumps(side))
    assert list_runs(tmp_path)[0].state == "finished"


def test_an_unfinished_run_may_have_no_checkpoint_yet(tmp_path):
    lose_checkpoints(write_run(tmp_path, "begun", finished=False))
    [run] = list_runs(tmp_path)
    assert (run.state, run.problem, run.checkpoint) == ("unfinished", "", None)
    assert "unfinished" in shown([run], 80)


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        (timedelta(seconds=59), "just now"),
        (timedelta(seconds=60), "1 min ago"),
        (timedelta(minutes=179), "2 h ago"),
        (timedelta(hours=47), "1 d ago"),
        (timedelta(days=400), "400 d ago"),
    ],
)
def test_an_age_has_one_unit(ago, text):
    run = RunSummary("a", "world", "a", "finished", written=(NOON - ago).isoformat())
    assert age(run, NOON) == text
    assert age(RunSummary("a", "world", "a", "damaged"), NOON) == ""


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_the_screen_without_cutting_figures(tmp_path, width):
    name = "v3_RandSampler_tiny-vlm_grpo-epochs-3_freeze-backbone_rce-normalized-reward"
    run = write_run(tmp_path, name, train={"rce_normalized_reward": True, "num_layers": 2})
    write_run(tmp_path, "other")
    write_answers(run, 5, {1: [1.0, 0.0], 4: [1.0, 1.0]})
    table = shown(list_runs(tmp_path), width)
    lines = table.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in table
    for figure in ("rce 5", "1: 50.0", "4: 100.0", "n = 2", "num-layers-2"):
        assert figure in table
    if width >= 80:
        assert "0.500" in table and "100% of" in table
        assert "1 h ago" in table or "Not shown at this width: age, size" in table
    assert name[:16] in table  # it goes on in the next lines


def test_a_run_whose_name_only_repeats_its_settings_is_shown_by_its_number(tmp_path):
    write_run(tmp_path, "v3_RandSampler_tiny-vlm_rce-lr-0.001", train={"rce_lr": 0.001})
    own = write_run(tmp_path, "mine")
    side = json.loads((own / "run.json").read_text())
    (own / "run.json").write_text(json.dumps(side | {"finished": 2}))
    runs = {run.name: (run.number, run.named) for run in list_runs(tmp_path)}
    assert runs == {"v3_RandSampler_tiny-vlm_rce-lr-0.001": (1, False), "mine": (2, True)}
    table = shown(list_runs(tmp_path), 80)
    assert "v3_" not in table and "2 mine" in table and "rce-lr-0.001" in table


def test_a_run_is_found_by_its_number_and_named_in_short(tmp_path):
    long = write_run(tmp_path, "v3_RandSampler_tiny-vlm_rce-lr-0.001", train={"rce_lr": 0.001})
    short = write_run(tmp_path, "mine", finished=False)
    named_like_a_number = write_run(tmp_path, "7", finished=False)
    settings = load_settings({"data": {"results_dir": str(tmp_path)}})
    assert find_run(settings, "1").folder == find_run(settings, "run 1").folder == long
    assert find_run(settings, "7").folder == named_like_a_number
    assert (shown_name(long), shown_name(short)) == ("run 1", "mine")
    unfinished = write_run(tmp_path, "v3_RandSampler_tiny-vlm_rce-lr-0.002", finished=False)
    assert shown_name(unfinished) == "v3_RandS…ce-lr-0.002"
    with pytest.raises(RunError, match="no run '3'"):
        find_run(settings, "3")

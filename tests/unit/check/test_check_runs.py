"""What `check` finds in runs' folders, checkpoints and unknown files."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from icdsel.artefacts.checkpoint_writing import save_policy
from icdsel.artefacts.run_folder import find_checkpoint, read_metrics
from icdsel.check import runs as kinds
from icdsel.check.findings import Checked, report
from icdsel.check.paths import UNKNOWN, check
from icdsel.console import plain
from icdsel.errors import RunError, UserError
from icdsel.policy.config import PointerConfig
from icdsel.policy.network import PointerNetwork
from icdsel.settings.loading import settings_from
from icdsel.store.files import write_json
from icdsel.store.fingerprints import fingerprint_file

SMALL = PointerConfig(d_model=8, hidden_dim=8, num_heads=1)
DATA = Path(__file__).parents[2] / "data"


def write_policy(path: Path, phase: str, epoch: int, config: PointerConfig = SMALL) -> None:
    save_policy(path, PointerNetwork(config), epoch=epoch - 1, phase=phase, metrics={}, kl_beta=0.1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of two RCE epochs and one of GRPO."""
    folder = tmp_path / "run"
    (tmp_path / "rl.jsonl").write_text("{}\n")
    settings = settings_from({"train": {"rce_epochs": 2, "grpo_epochs": 1}}).model_dump(mode="json")
    side = {"identity": {"rl_data": [fingerprint_file(tmp_path / "rl.jsonl")]}, "settings": settings, "finished": 1}
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(side | {"rl_data": [str(tmp_path / "rl.jsonl")]}))
    lines = []
    for phase, epoch in (("rce", 1), ("rce", 2), ("grpo", 1)):
        write_policy(folder / f"{phase}_epoch{epoch}.pt", phase, epoch)
        lines.append(json.dumps({"phase": phase, "epoch": epoch, "expected_reward": 0.5}) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def change(run: Path, **more: Any) -> None:
    side = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(side | more))


def checked(path: Path) -> Checked:
    [found] = check(settings_from({}), [path])
    return found


def counts(found: Checked) -> dict[str, int]:
    return {finding.problem: finding.count for finding in found.findings}


def test_nothing_is_wrong_with_a_complete_run(run):
    found = checked(run)
    assert (found.is_a, found.findings) == ("run", ())
    assert found.about.startswith("checkpoints: 3; the last: pointer network for embeddings of width 8")
    assert found.about.endswith("after grpo epoch 1")


def test_run_json(run):
    side = json.loads((run / "run.json").read_text())
    del side["finished"]
    (run / "run.json").write_text(json.dumps(side))
    assert counts(checked(run)) == {kinds.UNFINISHED.problem: 1}
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))  # killed between a checkpoint and its line
    assert counts(checked(run)) == {kinds.UNFINISHED.problem: 1}
    (run / "metrics.jsonl").write_text("".join(lines))
    (run / "run.json").write_text("[")
    assert counts(checked(run)) == {kinds.BAD_METADATA.problem: 1}
    (run / "run.json").unlink()
    assert counts(checked(run)) == {kinds.BAD_METADATA.problem: 1}  # its checkpoints tell what it is


def test_checkpoints_that_are_missing_or_damaged(run):
    (run / "grpo_epoch1.pt").unlink()
    (run / "rce_epoch1.pt").unlink()
    assert counts(checked(run)) == {kinds.LAST_MISSING.problem: 1, kinds.MISSING.problem: 1}
    content = (run / "rce_epoch2.pt").read_bytes()
    (run / "rce_epoch2.pt").write_bytes(content[: len(content) // 2])
    assert counts(checked(run))[kinds.BAD_CHECKPOINT.problem] == 1


def test_a_link_that_leads_out_of_the_run(run, tmp_path):
    (run / "grpo_epoch1.pt").rename(tmp_path / "elsewhere.pt")
    (run / "grpo_epoch1.pt").symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(UserError, match="leads out of its run"):
        find_checkpoint(run)
    found = checked(run)
    assert counts(found) == {kinds.LEADS_OUT.problem: 1} and found.errors
    (tmp_path / "elsewhere.pt").rename(run / "policy.pt")
    (run / "grpo_epoch1.pt").unlink()
    (run / "grpo_epoch1.pt").symlink_to("policy.pt")
    (tmp_path / "link").symlink_to(run)  # a run's folder may lie elsewhere
    assert counts(checked(run)) == counts(checked(tmp_path / "link")) == {}


def test_a_plan_of_any_number_of_epochs_takes_no_time(run):
    side = json.loads((run / "run.json").read_text())
    side["settings"]["train"]["rce_epochs"] = 10**15
    (run / "run.json").write_text(json.dumps(side))
    assert counts(checked(run)) == {kinds.MISSING.problem: 10**15 - 2}


def test_checkpoints_of_other_epochs_and_sizes(run):
    write_policy(run / "rce_epoch1.pt", "grpo", 4, PointerConfig(d_model=16, hidden_dim=8, num_heads=1))
    assert counts(checked(run)) == {kinds.MISNAMED.problem: 1, kinds.SIZES.problem: 2}


def test_metrics(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], lines[0], '{"phase": "rce", "epoch": 2, "kl": NaN}', "{"]))
    found = checked(run)
    assert counts(found) == {kinds.BAD_METRICS.problem: 3, kinds.NO_METRICS.problem: 2}
    assert any("grpo epoch 1" in example for finding in found.findings for example in finding.examples)
    # Lines that other commands reject are no metrics of their epoch.
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], '{"phase": "grpo", "epoch": 1, "kl": "low"}']))
    assert counts(checked(run)) == {kinds.BAD_METRICS.problem: 1, kinds.NO_METRICS.problem: 1}
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], '{"phase": "grpo", "epoch": "1", "kl": 0.1}']))
    assert counts(checked(run)) == {kinds.BAD_METRICS.problem: 1, kinds.NO_METRICS.problem: 1}
    (run / "metrics.jsonl").unlink()
    assert counts(checked(run)) == {kinds.BAD_METRICS.problem: 1, kinds.NO_METRICS.problem: 3}


@pytest.mark.parametrize("line", ["", " ", '{"phase": "rce", "epoch": 9, "\\ud800": 1}', "\ufeff", "[]", "\v"])
def test_metrics_that_icdsel_runs_rejects_are_damaged(run, line: str):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    with pytest.raises(RunError):
        read_metrics(run / "metrics.jsonl")
    assert counts(checked(run)) == {kinds.BAD_METRICS.problem: 1}


def test_missing_or_changed_rl_data_and_leftover_files(run, tmp_path):
    (run / ".rce_epoch1.pt.7.part").write_bytes(b"")
    (tmp_path / "rl.jsonl").write_text("{}{}\n")
    assert counts(checked(run)) == {kinds.RL_DATA_CHANGED.problem: 1, kinds.LEFT_BEHIND.problem: 1}
    change(run, rl_data=["/nowhere/\0", 7, "gone.jsonl"])
    (tmp_path / "rl.jsonl").unlink()
    assert counts(checked(run)) == {kinds.LEFT_BEHIND.problem: 1, kinds.BAD_METADATA.problem: 1}
    change(run, rl_data=["gone.jsonl"])
    assert kinds.RL_DATA_GONE.problem in counts(checked(run))


def test_the_journal_of_online_training(run):
    record = {"question_id": 1, "image_id": 1, "question": "?", "answers": ["x"], "candidate_pool_ids": [2, 3]}
    record["pointer_candidates"] = [{"pointer": [2, 3], "vqa_acc_score": 1.0}]
    (run / "online.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(record) + "\n{")
    found = checked(run)
    assert [finding.severity for finding in found.findings] == ["warning"]
    assert found.findings[0].count == 1 and "line 3" in found.findings[0].examples[0]


def test_a_checkpoint_is_described(tmp_path):
    write_policy(tmp_path / "a.pt", "rce", 2, PointerConfig(d_model=8, hidden_dim=8, num_heads=2, tower=16))
    found = checked(tmp_path / "a.pt")
    assert counts(found) == {kinds.IGNORED_PARTS.problem: 2} and found.errors == 0
    assert (
        "width 8, hidden 8, layers 1, heads 2, shared encoder 16" in found.about and "after rce epoch 2" in found.about
    )
    found = checked(DATA / "lightning_v2_with_omegaconf.ckpt")
    assert kinds.OBJECTS.problem in counts(found) and found.errors == 0
    network = PointerNetwork(SMALL)
    with torch.no_grad():
        next(iter(network.parameters())).fill_(torch.nan)
    save_policy(tmp_path / "nan.pt", network, epoch=0, phase="rce", metrics={}, kl_beta=0.1)
    found = checked(tmp_path / "nan.pt")
    assert "NaN" in found.findings[0].examples[0] and found.errors == 1


class Evil:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.proof),))


def test_code_in_a_checkpoint_is_reported_and_not_run(tmp_path):
    network = PointerNetwork(SMALL)
    content = {"epoch": 0, "phase": "rce", "model_state_dict": network.state_dict(), "metrics": Evil(tmp_path / "p")}
    torch.save(content, tmp_path / "evil.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil(tmp_path / "p")))
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as file:
        file.writestr("x/data.pkl", pickle.dumps(Evil(tmp_path / "p")))
    found = checked(tmp_path / "evil.pt")
    assert [f.examples for f in found.findings if f.problem == kinds.OBJECTS.problem] == [(f"{os.name}.mkdir",)]
    torch.save({"model": Evil(tmp_path / "p")}, tmp_path / "unfit.pt")
    found = checked(tmp_path / "unfit.pt")
    assert found.errors == 1 and kinds.OBJECTS.problem in counts(found)
    assert checked(tmp_path / "bare.pt").errors == checked(tmp_path / "zip.pt").errors == 1
    assert not (tmp_path / "p").exists()


def test_an_unknown_file_is_a_finding_and_a_missing_one_a_user_error(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.md").write_text("# hello")
    (tmp_path / "link").symlink_to("text.md")
    os.mkfifo(tmp_path / "pipe")
    found = check(settings_from({}), [tmp_path / name for name in ("empty", "text.md", "link", "pipe")])
    assert [counts(one) for one in found] == [{UNKNOWN.problem: 1}] * 4
    assert report(found)["must_be_fixed"] == 4  # the JSON key
    (tmp_path / "rl.jsonl.part").write_text("")
    with pytest.raises(UserError, match=r"rl\.jsonl does not exist; there is .*rl\.jsonl\.part"):
        check(settings_from({}), [tmp_path / "rl.jsonl"])


def test_a_path_that_is_not_utf_8_is_written_as_valid_json(tmp_path):
    path = tmp_path / os.fsdecode(b"a\xff.md")
    path.write_text("# hello")
    write_json(tmp_path / "list.json", report(check(settings_from({}), [path])))
    [item] = json.loads((tmp_path / "list.json").read_text(encoding="utf-8"))["checked"]
    assert Path(item["name"]) == path


def test_examples_are_printable():
    assert plain("a\x1b[31m\nb\ud800") == "a�[31m b�"
    assert len(plain("x" * 10_000)) == 240


def test_the_description_of_a_path_is_a_single_short_line(run):
    phase = "rce\n must be fixed   1   everything" + "x" * 10_000
    assert "\n" not in Checked("a", "b", phase).about and len(Checked("a", "b", phase).about) == 240
    write_policy(run / "rce_epoch1.pt", phase, 1)
    assert "everything" not in checked(run / "rce_epoch1.pt").about + checked(run).about


STARTS = [
    b"",
    b"PK\x03\x04",
    b"\x80\x02",
    b'{"0": {"pointer_candidates": ',
    b'{"question_id": 1, "pointer_candidates": [',
]


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["a.pt", "a.ckpt", "a.jsonl", "a.jsonl.part", "a.json", "run.json", "metrics.jsonl", "a"]),
    start=st.sampled_from(STARTS),
    content=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: json.dumps({text: [text]}).encode()),
)
def test_no_content_raises(run, name: str, start: bytes, content: bytes):
    path = run / name if name in ("run.json", "metrics.jsonl") else run.parent / name
    path.write_bytes(start + content)
    found = check(settings_from({"data": {"dataset": str(run.parent / "none.jsonl")}}), [path, run])
    assert all(one.is_a and json.dumps(report([one]), ensure_ascii=False).encode() for one in found)

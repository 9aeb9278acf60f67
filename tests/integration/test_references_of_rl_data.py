"""RL data with and without the probabilities of reference answers, by an engine that keeps the requests."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import icdsel
from fakes import FakeEngine, fake_kind
from PIL import Image

from icdsel.artefacts.rl_data import metadata_path
from icdsel.errors import RlDataError, SettingsError
from icdsel.settings.loading import Settings, load_settings
from icdsel.stages.generate import Shard, generate
from icdsel.stages.train import train
from icdsel.vlm.engine import Request
from icdsel.vlm.engines import ENGINES

TRAIN, QUERIES = 44, 40  # two units of queries
READS = "hard01_plus_gtprob"
DATA = Path("results/codes/generated_data/rl_data_RandSampler_anything_pool-size-16.jsonl")
RUNS = Path("results/codes/model_cpk")


class Asked(list[Request]):
    """The requests that were sent to the VLM; what sends more than `most` of them is interrupted."""

    most = 10**9

    def keep(self, batch: list[Request]) -> None:
        if len(self) + len(batch) > self.most:
            raise KeyboardInterrupt
        self.extend(batch)

    @property
    def references(self) -> set[bool]:
        """Whether they asked for references."""
        return {bool(request.references) for request in self}


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of plain pictures, each with two reference answers."""
    folder = tmp_path_factory.mktemp("codes")
    lines = []
    for i in range(TRAIN + 4):
        Image.new("RGB", (8, 8), (5 * i, 40 * (i % 6), 255 - 5 * i)).save(folder / f"{i}.png")
        line = {"question_id": 100 + i, "image": f"{i}.png", "split": "train" if i < TRAIN else "validation"}
        lines.append(json.dumps(line | {"question": f"Which {i % 2}?", "answers": [f"a{i % 6}"] * 2 + ["no code"]}))
    (folder / "codes.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "codes.jsonl"


@pytest.fixture
def asked(codes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    monkeypatch.chdir(tmp_path)
    few = {"vlm": {"engine": "fake", "model": "anything"}, "train": {"rce_epochs": 1, "hidden_dim": 8, "tower": 8}}
    few |= {"data": {"dataset": str(codes), "encoder": "vlm", "pool_size": 16}}
    few |= {"proposals": {"queries": QUERIES, "beam": 1, "samples": 0, "retrieval": 1, "random": 1}}
    for table, values in few.items():
        for name, value in values.items():
            monkeypatch.setenv(f"ICDSEL_{table}_{name}".upper(), str(value))
    requests = Asked()
    monkeypatch.setitem(ENGINES, "fake", fake_kind(lambda name: FakeEngine(name, fault=requests.keep)))
    yield requests


def settings(references: str = "auto", mode: str = "hard_plus_soft", **tables: Mapping[str, Any]) -> Settings:
    return load_settings({"proposals": {"references": references}, "reward": {"mode": mode}, **tables})


def have_probabilities(path: Path = DATA) -> set[bool]:
    """Whether the scored pointers of RL data have the probabilities."""
    groups = [json.loads(line) for line in path.read_text().splitlines()]
    return {one["vqa_gt_prob"] is not None for group in groups for one in group["pointer_candidates"]}


def recorded(path: Path = DATA) -> dict[str, Any]:
    return json.loads(metadata_path(path).read_text())


def remove(*paths: Path) -> None:
    for path in paths:
        path.unlink()
        metadata_path(path).unlink()


def test_by_default_nothing_is_scored_that_nothing_reads(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    generate(settings())
    assert "Reference answers are not scored" in capsys.readouterr().err
    assert asked.references == {False} and have_probabilities() == {False}
    assert recorded()["identity"]["references"] == "none"
    assert recorded()["settings"]["proposals"]["references"] == "none"
    assert recorded()["work"]["scoring"]["count"] == QUERIES


def test_a_warm_cache_shards_and_interruptions_give_the_same_bytes(
    asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    asked.most = 70  # the first unit has 32 queries, with at least 2 pointers each
    with pytest.raises(KeyboardInterrupt):
        generate(settings())
    assert DATA.with_name(f"{DATA.name}.part").read_text().count("\n") == 32
    asked.most = 10**9
    generate(settings())
    content, count = DATA.read_bytes(), len(asked)
    remove(DATA)
    generate(settings())
    assert "answers are reused from the same prompts" in " ".join(capsys.readouterr().err.split())
    assert DATA.read_bytes() == content and len(asked) == count
    assert "work" not in recorded()  # estimates of durations count what the VLM answered
    remove(DATA)
    for number in (1, 2):
        generate(settings(), shard=Shard(number, 2))
    generate(settings())
    assert DATA.read_bytes() == content and len(asked) == count
    generate(settings(vlm={"reuse_answers": False}), Path("fresh.jsonl"))
    assert Path("fresh.jsonl").read_bytes() == content and len(asked) == 2 * count


def test_predictions_share_answers_with_rl_data_without_references(asked: Asked) -> None:
    generate(settings(proposals={"query_split": "validation", "queries": 4}))
    asked.clear()
    icdsel("infer", "--n", 4, "--shots", 2, "--selector", "oracle")
    assert {len(request.icds) for request in asked} == {0}  # zero-shot alone


def test_what_reads_the_probabilities_takes_no_data_without_them(asked: Asked) -> None:
    generate(settings())
    content, count = DATA.read_bytes(), len(asked)
    for references, mode, reader in (
        ("auto", READS, f"the reward mode {READS}"),
        ("labels", "hard_plus_soft", "--references labels"),
    ):
        without = f"without the probabilities of the reference answers, which {reader} needs: .* --references labels"
        with pytest.raises(RlDataError, match=without):
            train(settings(references, mode))
    with pytest.raises(RlDataError, match=f"of {DATA} have no vqa_gt_prob, .* again with --references labels"):
        train(settings(mode=READS), rl_data_files=[DATA])
    for files in ([], [DATA]):
        with pytest.raises(SettingsError, match=f"--references none scores no .* the reward mode {READS} needs"):
            train(settings("none", READS), rl_data_files=files)
    assert DATA.read_bytes() == content and len(asked) == count
    train(settings(mode=READS), overwrite=True)
    assert have_probabilities() == {True} and "references" not in recorded()["identity"]
    assert have_probabilities(DATA.with_name(f"{DATA.name}.old-1")) == {False}


def test_data_without_probabilities_are_described_as_such(asked: Asked) -> None:
    generate(settings())
    checked = icdsel("check", DATA, "--reward-mode", READS, code=1)
    assert "again with --overwrite (for vqa_gt_prob also --references labels)" in " ".join(checked.split())
    assert "different settings" in icdsel("check", DATA, "--references", "labels")
    assert "different settings" not in icdsel("check", DATA)
    assert "vqa_gt_prob, which Lever-Plus counts as 0" in " ".join(icdsel("convert", DATA).split())


def test_results_of_earlier_versions_keep_their_references(asked: Asked) -> None:
    asked.most = 70
    with pytest.raises(KeyboardInterrupt):
        generate(settings("labels"))
    begun = recorded()
    assert "references" not in begun["identity"]
    del begun["settings"]["proposals"]["references"]  # as versions without the setting recorded it
    metadata_path(DATA).write_text(json.dumps(begun))
    asked.most = 10**9
    generate(settings())  # resumes
    assert asked.references == {True} and have_probabilities() == {True}
    content, count = DATA.read_bytes(), len(asked)
    generate(settings())  # complete
    train(settings())
    assert DATA.read_bytes() == content
    held_out = Asked(asked[count:])  # the policy's choices on held-out queries, whose references nothing reads
    assert held_out.references == {False}
    with pytest.raises(RlDataError, match="leave --references none out"):
        generate(settings("none"))
    generate(settings("labels"), Path("fresh.jsonl"))
    assert Path("fresh.jsonl").read_bytes() == content


def test_shards_keep_theirs_and_mixed_ones_are_asked_about(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    generate(settings("labels"), shard=Shard(1, 2))
    generate(settings(), shard=Shard(2, 2))  # begun beside one with references
    assert asked.references == {True}
    count = len(asked)
    generate(settings())
    assert have_probabilities() == {True} and len(asked) == count
    remove(DATA, DATA.with_name(f"{DATA.stem}.shard-2-of-2.jsonl"))
    generate(settings("none"), shard=Shard(2, 2))
    with pytest.raises(RlDataError, match=r"some shards .* --references labels or --references none"):
        generate(settings())
    generate(settings("none"))
    skipped = " ".join(capsys.readouterr().err.split())
    assert "shard-1-of-2.jsonl is skipped" in skipped and "of which reference answers the VLM gave" in skipped
    assert have_probabilities() == {False}


def test_online_training_scores_references_only_where_they_are_read(asked: Asked) -> None:
    online = {"online": True, "grpo_epochs": 1, "online_samples": 2, "rce_epochs": 0}
    train(settings(train=online), run="plain")
    assert asked.references == {False} and have_probabilities(RUNS / "plain/online.jsonl") == {False}
    shutil.rmtree(DATA.parent)
    train(settings(mode=READS, train=online), run="reads")
    assert have_probabilities() == have_probabilities(RUNS / "reads/online.jsonl") == {True}
    # RL data with the probabilities, and samples without them: the default reward reads neither.
    count = len(asked)
    train(settings(train=online, vlm={"reuse_answers": False}), run="mixed", rl_data_files=[DATA])
    assert Asked(asked[count:]).references == {False}


def test_an_experiment_scores_references_if_one_of_its_variants_reads_them(asked: Asked) -> None:
    command = ("experiment", f"rce,reward.mode={READS}", "--n", 4, "--shots", 1, "--selector", "random")
    icdsel(*command)
    assert have_probabilities() == {True}
    assert "--references none" in icdsel(*command, "--references", "none", code=2)

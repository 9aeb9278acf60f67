"""A policy that decides how many ICDs it shows: answers, certificates and what is refused, with a VLM that copies."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import icdsel
from fakes import FakeEngine, fake_kind
from worlds import write_small_world

from icdsel.comparison.certificate import GRID
from icdsel.vlm.engine import Request
from icdsel.vlm.engines import ENGINES

ON = ("--engine", "fake", "--model", "anything")
FEW = ("--queries", 24, "--beam", 2, "--samples", 1, "--retrieval", 1, "--rce-epochs", 1)
TUNING, VALIDATION = 40, 12
ANSWERS = Path("results/world/infer/RandSampler_anything_engine-fake")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Request]]]:
    """A folder with a run that may stop and one that may not, and the requests that commands send to the VLM."""
    folder = tmp_path_factory.mktemp("auto")
    requests: list[Request] = []

    def keep(batch: list[Request]) -> None:
        requests.extend(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_small_world(Path("data"), train=100, tuning=TUNING, validation=VALIDATION)
        patch.setitem(ENGINES, "fake", fake_kind(lambda name: FakeEngine(name, fault=keep)))
        icdsel("train", *ON, *FEW, "--run", "fixed")
        icdsel("train", *ON, *FEW, "--min-shots", 0, "--run", "stops", "--overwrite")
        yield folder, requests


@pytest.fixture(autouse=True)
def asked(trained: tuple[Path, list[Request]], monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests of a test's commands, in the folder of the runs."""
    folder, requests = trained
    monkeypatch.chdir(folder)
    requests.clear()
    return requests


def predictions(split: str, count: int) -> list[dict[str, object]]:
    [file] = ANSWERS.glob(f"policy-stops-*_{split}-{count}.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_policy_decides_and_selectors_that_cannot_are_left_out() -> None:
    said = icdsel("infer", *ON, "--run", "stops", "--n", 12, "--shots", "auto+100,auto-100,1", "--selector", "policy")
    assert "auto+100" in said
    by_shots: dict[object, set[int]] = {}
    for line in predictions("validation", 12):
        by_shots.setdefault(line["shots"], set()).add(len(line["icds"]))  # type: ignore[arg-type]
    assert by_shots == {1: {1}, "auto+100": {0}, "auto-100": {2}}
    said = icdsel("infer", *ON, "--run", "stops", "--n", 12, "--shots", "auto", "--selector", "policy,nearest-both")
    assert "nearest-both, majority cannot decide how many ICDs to show, and are left out" in said
    icdsel("compare", *ON, "--json", "t.json", "--html", "page.html", "--plots", "plots")
    rows = {(row["selector"], row["shots"]): row for row in json.loads(Path("t.json").read_text())}
    assert rows["policy", "auto+100"]["mean_shots"] == 0 and rows["policy", "auto-100"]["mean_shots"] == 2
    assert rows["policy", "auto+100"]["accuracy"] == rows["zero-shot", 0]["accuracy"]
    assert rows["policy", "auto-100"]["mean_prompt_tokens"] == 30
    assert Path("plots/mean-shots.png").exists()


def test_a_certificate_is_computed_from_predictions(asked: list[Request]) -> None:
    said = icdsel("infer", *ON, "--run", "stops", "--certify", 20)
    place = Path("results/world/model_cpk/stops/certificate.json")
    first = json.loads(place.read_text())
    assert (first["split"], first["n"], first["delta"]) == ("tuning", TUNING, 20.0)
    # Without ICDs this VLM is always wrong, so that showing always is certified.
    assert first["shots"] == GRID[-1] and f"--shots {GRID[-1]} is not worse than zero-shot" in said
    assert len(asked) <= TUNING * 3  # none, one or two ICDs, at all offsets
    assert {line["shots"] for line in predictions("tuning", TUNING)} == set(GRID)
    asked.clear()
    icdsel("infer", *ON, "--run", "stops", "--certify", 20, "--shots", "auto")
    again = json.loads(place.read_text())
    assert asked == [] and again | {"command": ""} == first | {"command": ""}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--run", "fixed", "--shots", "auto"), "was trained without STOP"),
        (("--run", "fixed", "--certify", 1), "was trained without STOP"),
        (("--run", "stops", "--certify", -1), "--certify takes a tolerance of 0 to below 100 points, not -1"),
        (("--run", "stops", "--certify", 1, "--split", "train"), "policies are trained on its queries"),
        (("--run", "stops", "--certify", 1, "--shots", "1,2"), "leave out --shots"),
        (("--run", "stops", "--certify", 1, "--selector", "random"), "leave out --selector"),
        (("--run", "stops", "--shots", "auto,many"), "neither a number nor auto"),
    ],
)
def test_mistakes_get_one_message(words: tuple[object, ...], message: str, asked: list[Request]) -> None:
    said = " ".join(icdsel("infer", *ON, *words, code=2).split())
    assert message in said and "Traceback" not in said
    assert asked == []

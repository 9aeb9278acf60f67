"""Selectors and samplers that somebody adds, through the real command line on the bundled world."""

import ast
import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command_line import icdsel
from typer.testing import CliRunner
from worlds import write_small_world

from icdsel import selection, submissions
from icdsel.cli.app import app
from icdsel.records import Pointer
from icdsel.retrieval import samplers
from icdsel.retrieval.samplers import SAMPLERS, Draws, Sampler
from icdsel.selection import SELECTORS, Selector
from icdsel.selection.context import Context

INFER = ("infer", "--n", 6, "--shots", "1,2")
PREDICTIONS = Path("results/world/infer/RandSampler_tiny-vlm")


class LastOfThePool(Selector):
    """The last rows of the pool."""

    name = "last-of-the-pool"

    def choose(self, context: Context, shots: int) -> list[Pointer | None]:
        return context.pointers(pool[-shots:] for pool in context.pools)


class BySimilarity(LastOfThePool):
    """A baseline that needs the sampler's encoder and no VLM."""

    name = "by-similarity"
    needs_similarity = True
    needs_vlm = False
    always_shown = True

    def answer(self, icds: Any) -> str:
        return f"the answer of {len(icds)} examples"


def nearest_and_random(draws: Draws, size: int) -> Iterator[list[int]]:
    for near, drawn in zip(draws.nearest("both", size), draws.random(size), strict=True):
        yield list(dict.fromkeys(near[: size // 2] + drawn))[:size]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A working directory that holds only a small bundled world, with two selectors and a sampler added."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("work"))
    write_small_world(Path("data"), train=200, tuning=2, validation=20)
    SELECTORS.add(LastOfThePool())
    SELECTORS.add(BySimilarity())
    SAMPLERS.add(Sampler("nearest-and-random", nearest_and_random))
    yield
    del SELECTORS["last-of-the-pool"], SELECTORS["by-similarity"], SAMPLERS["nearest-and-random"]
    os.chdir(before)


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The records of a result, and the inputs in its metadata."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return records, json.loads(path.with_suffix(".meta.json").read_text())["identity"]


def test_an_added_selector_chooses_and_the_vlm_answers(folder: None) -> None:
    said = icdsel(*INFER, "--selector", "last-of-the-pool")
    assert "last-of-the-pool" in said
    icdsel("gen-rl-data", "--split", "validation", "--queries", 6)
    rl_data, _ = read(Path("results/world/generated_data/rl_data_RandSampler_tiny-vlm_validation.jsonl"))
    pools = {record["question_id"]: record["candidate_pool_ids"] for record in rl_data}
    records, inputs = read(PREDICTIONS / "last-of-the-pool_validation-6.jsonl")
    assert inputs["selector"] == "last-of-the-pool"
    assert not {"sampler_encoder", "checkpoint", "rl_data"} & set(inputs)
    assert len(records) == 12
    assert all(record["icds"] == pools[record["question_id"]][-record["shots"] :] for record in records)
    assert "answered" in icdsel(*INFER, "--selector", "last-of-the-pool")  # reused the second time


def test_an_added_selector_may_answer_by_itself_and_always_be_shown(folder: None) -> None:
    icdsel(*INFER, "--selector", "random")
    records, inputs = read(PREDICTIONS / "by-similarity_validation-6.jsonl")
    assert {record["prediction"] for record in records} == {"the answer of 1 examples", "the answer of 2 examples"}
    assert inputs["sampler_encoder"] == inputs["encoder"]
    said = icdsel("compare", "--json", "table.json")
    assert "should be in the table" not in said
    rows = {row["selector"] for row in json.loads(Path("table.json").read_text())}
    assert {"by-similarity", "last-of-the-pool", "random", "zero-shot", "majority"} <= rows
    (PREDICTIONS / "by-similarity_validation-6.jsonl").unlink()
    (PREDICTIONS / "by-similarity_validation-6.meta.json").unlink()
    assert "--selector by-similarity --shots 1,2" in " ".join(icdsel("compare").split())


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda context, shots: [pool[:shots] for pool in context.pools], r"context\.pointers\(rows\)"),
        (lambda context, shots: context.pointers([context.pools[0][:shots]]), "chose 1 pointers for 6 queries"),
    ],
)
def test_a_selector_that_does_not_choose_pointers_is_an_error(
    folder: None, monkeypatch: pytest.MonkeyPatch, choose: Any, message: str
) -> None:
    monkeypatch.setattr(SELECTORS["last-of-the-pool"], "choose", choose)
    words = [*map(str, INFER[:3]), "--shots", "3", "--selector", "last-of-the-pool"]
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_an_added_sampler_draws_the_pools(folder: None) -> None:
    words = ("gen-rl-data", "--queries", 4, "--beam", 1, "--samples", 0, "--retrieval", 0)
    icdsel(*words, "--sampler", "nearest-and-random", "--pool-size", 8)
    records, inputs = read(
        Path("results/world/generated_data/rl_data_NearestAndRandomSampler_tiny-vlm_pool-size-8.jsonl")
    )
    assert inputs["data.sampler"] == "nearest-and-random"
    assert inputs["sampler_encoder"] == inputs["encoder"]
    assert all(len(set(record["candidate_pool_ids"])) == 8 for record in records)
    assert "choose one of" in icdsel(*words, "--sampler", "nearest", code=2)
    assert "nearest-and-random" in " ".join(icdsel(*words, "--sampler", "nearest", code=2).split())


def example(module: ModuleType, name: str) -> str:
    """The code in the docstring of a module's variable."""
    statements = ast.parse(inspect.getsource(module)).body
    places = [k for k, one in enumerate(statements) if name in ast.unparse(one).split("=")[0].split(":")[0].split()]
    docstring = statements[places[0] + 1].value.value
    return textwrap.dedent("".join(f"{line}\n" for line in docstring.splitlines() if not line or line[:4] == "    "))


@pytest.mark.parametrize(
    ("module", "name", "words", "made"),
    [
        (selection, "SELECTORS", "infer --n 4 --shots 2 --selector shortest-answers", "shortest-answers_*.jsonl"),
        (
            samplers,
            "SAMPLERS",
            "gen-rl-data --queries 2 --beam 1 --sampler near-and-far",
            "rl_data_NearAndFarSampler_tiny-vlm.jsonl",
        ),
        (
            submissions,
            "FORMATS",
            "infer --n 4 --shots 1 --selector random --format pairs",
            "submissions/random-42_validation-4_1.pairs.txt",
        ),
    ],
)
def test_the_examples_in_the_docstrings_run(
    tmp_path: Path, module: ModuleType, name: str, words: str, made: str
) -> None:
    write_small_world(tmp_path / "data", train=200, tuning=2, validation=20)
    (tmp_path / "mine.py").write_text(example(module, name))
    subprocess.run([sys.executable, "mine.py", *words.split()], cwd=tmp_path, check=True)
    assert list((tmp_path / "results").rglob(made))

"""Pointers of several lengths and their price, through the real command line, with a VLM that copies."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import icdsel
from fakes import FakeEngine, fake_kind

from icdsel.vlm.engines import ENGINES

ON = ("--engine", "fake", "--model", "anything")
FEW = ("--queries", 16, "--beam", 2, "--samples", 1, "--retrieval", 1, "--rce-epochs", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, world_into: Callable[[Path], None]) -> Iterator[Path]:
    """RL data with pointers of 0 to 2 ICDs, in a folder with a run that was trained on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("stopping"))
        world_into(Path("data"))
        patch.setitem(ENGINES, "fake", fake_kind(FakeEngine))
        priced = ("--min-shots", 0, "--price", 0.1, "--token-price", 0.001)
        icdsel("train", *ON, *FEW, *priced, "--grpo-epochs", 1, "--update", "residual", "--run", "stops")
        [path] = Path("results/world/generated_data").glob("*.jsonl")
        yield path.absolute()


def groups(lines: str) -> list[list[dict[str, object]]]:
    return [json.loads(line)["pointer_candidates"] for line in lines.splitlines()]


def error(*words: object) -> str:
    return " ".join(icdsel(*words, code=2).split())


def test_rl_data_hold_pointers_of_every_length_and_the_query_alone(data: Path) -> None:
    for candidates in groups(data.read_text()):
        lengths = [len(candidate["pointer"]) for candidate in candidates]  # type: ignore[arg-type]
        assert {*lengths} == {0, 1, 2} and lengths.count(0) == 1
        assert all(candidate["prompt_tokens"] for candidate in candidates)
    assert "of 0 to 2 ICDs" in " ".join(icdsel("check", data, *ON).split())
    assert "pointers of 0 to 2 ICDs cannot be converted" in error("convert", data)


def test_online_samples_may_stop_too(data: Path) -> None:
    more = ("--rce-epochs", 1, "--grpo-epochs", 2, "--online", "--online-samples", 4, "--run", "online")
    icdsel("train", *ON, "--rl-data", data, *more)
    [journal] = Path("results/world/model_cpk").glob("online/online.jsonl")
    sampled = groups(journal.read_text())
    assert sampled and all(len(c["pointer"]) <= 2 for candidates in sampled for c in candidates)  # type: ignore[arg-type]


def test_what_cannot_be_is_said(data: Path) -> None:
    auto = ("infer", *ON, "--n", 4, "--shots", "auto", "--run", "stops")
    assert "500 shots do not fit into a pool of 64: use fewer (--shots, --max-shots" in error(*auto, "--max-shots", 500)
    assert "needs a selector that decides how many" in error(*auto, "--selector", "nearest-both")
    assert "--price (reward.price): Input should be greater than or equal to 0" in error("train", "--price", -1)
    text = error("train", *ON, "--rl-data", data, "--no-stop", "--run", "never")
    assert "have 0 to 2 ICDs" in text and "omit --no-stop" in text

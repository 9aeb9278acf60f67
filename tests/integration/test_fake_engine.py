"""An engine that is not part of icdsel, from RL data to answers, through the command line."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import icdsel
from fakes import FakeEngine, copied_answer, fake_kind, raises

from icdsel.records import Answer
from icdsel.vlm.engine import Request
from icdsel.vlm.engines import ENGINES

ON = ("--engine", "fake", "--model", "anything")
FEW = ("--queries", 24, "--beam", 2, "--samples", 1, "--retrieval", 1)
RL_DATA = Path("results/world/generated_data/rl_data_RandSampler_anything.jsonl")
ANSWERS = Path("results/world/infer/RandSampler_anything_engine-fake")


@pytest.fixture
def engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_into: Callable[[Path], None]
) -> Iterator[list[FakeEngine]]:
    """The fake engines that commands opened, in a folder that holds the bundled world."""
    monkeypatch.chdir(tmp_path)
    world_into(tmp_path / "data")
    opened: list[FakeEngine] = []

    def open_fake(name: str) -> FakeEngine:
        opened.append(FakeEngine(name))
        return opened[-1]

    monkeypatch.setitem(ENGINES, "fake", fake_kind(open_fake))
    yield opened


def test_training_on_answers_that_are_all_alike_stops(engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ENGINES, "fake", fake_kind(lambda name: FakeEngine(name, lambda request: "nonsense")))
    said = icdsel("train", *ON, *FEW, code=1)
    assert "nothing to learn" in said and "mean reward is 0.00" in said and "--queries" in said
    assert not list(Path("results/world/model_cpk").glob("*/*.pt"))


def test_rl_data_training_and_inference(engines: list[FakeEngine]):
    icdsel("gen-rl-data", *ON, *FEW)
    records = [json.loads(line) for line in RL_DATA.read_text().splitlines()]
    metadata = json.loads(RL_DATA.with_name(f"{RL_DATA.stem}.meta.json").read_text())
    assert metadata["identity"]["model"] == "fake-anything" and metadata["identity"]["vlm.engine"] == "fake"
    assert len(records) == 24
    requests = {
        (request.query.question_id, tuple(icd.question_id for icd in request.icds)): request
        for call in engines[0].calls
        for request in call
    }
    candidates = [(record, candidate) for record in records for candidate in record["pointer_candidates"]]
    assert len(candidates) == len(requests)
    for record, candidate in candidates:
        request = requests[record["question_id"], tuple(candidate["pointer"])]
        assert candidate["vqa_pred_answer"] == copied_answer(request)
        assert (candidate["vqa_acc_score"] > 0) == (copied_answer(request) in record["answers"])
    assert {candidate["vqa_correct"] for _, candidate in candidates} == {0, 1}
    said = icdsel("train", *ON, *FEW, "--rce-epochs", 1, "--grpo-epochs", 1)
    run = json.loads(next(Path("results/world/model_cpk").glob("*/run.json")).read_text())
    assert run["recommended"] == "grpo_epoch1.pt" and run["recommended"] in said
    assert run["held_out"]["queries"] == 5 and run["held_out"]["known"] == 1
    assert "On 5 held-out queries, the policy's choice" in said
    asked = sum(len(engine.calls) for engine in engines)
    icdsel("train", *ON, "--rl-data", RL_DATA, "--rce-epochs", 1, "--run", "again")
    assert sum(len(engine.calls) for engine in engines) == asked  # other RL data: the VLM is not queried
    icdsel("infer", *ON, "--n", 20, "--shots", "1,2", "--selector", "policy,random,nearest-both")
    files = list(ANSWERS.glob("*.jsonl"))
    assert len(files) == 5
    for path in files:
        answered = [json.loads(line) for line in path.read_text().splitlines()]
        assert answered and not any("error" in record for record in answered)
    shown = [request for engine in engines[2:] for call in engine.calls for request in call]
    assert {len(request.icds) for request in shown} == {0, 1, 2}


def of_some_queries(request: Request) -> bool:
    return request.query.question_id % 3 == 0


def test_failed_calls_are_recorded_and_the_command_says_so(engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch):
    def open_failing(name: str) -> FakeEngine:
        return FakeEngine(name, fault=raises(lambda: RuntimeError("device-side assert"), of_some_queries))

    monkeypatch.setitem(ENGINES, "fake", fake_kind(open_failing))
    said = icdsel("gen-rl-data", *ON, *FEW, "--max-failed", 1, code=1)
    assert "VLM calls failed" in said
    for line in RL_DATA.read_text().splitlines():
        record = json.loads(line)
        errors = {candidate.get("error") for candidate in record["pointer_candidates"]}
        assert errors == ({"RuntimeError: device-side assert"} if record["question_id"] % 3 == 0 else {None})


@pytest.mark.parametrize(("text", "cut", "warned"), [("it is a", True, True), ("wrong", False, False)])
def test_answers_that_are_cut_off_before_they_are_right_are_warned_of(
    engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch, text: str, cut: bool, warned: bool
):
    def open_talkative(name: str) -> FakeEngine:
        def said(request: Request) -> Answer:
            count = len(request.references)
            return Answer(text, (-1.0,) * count, (1,) * count, cut=cut)

        return FakeEngine(name, answer_of=said)

    monkeypatch.setitem(ENGINES, "fake", fake_kind(open_talkative))
    warning = "no answer of the VLM is correct, and 100% were cut off at --max-new-tokens 5"
    assert (warning in " ".join(icdsel("gen-rl-data", *ON, *FEW).split())) == warned
    infer = ("infer", *ON, "--n", 4, "--shots", 1, "--selector", "nearest-both")  # and majority, which may be right
    assert (warning in " ".join(icdsel(*infer).split())) == warned


def test_where_some_answers_are_right_the_cut_ones_are_wrong(
    engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
):
    def half(request: Request) -> Answer:
        count, right = len(request.references), request.query.question_id % 2
        return Answer(request.query.answers[0] if right else "it is a", (-1.0,) * count, (1,) * count, cut=True)

    monkeypatch.setitem(ENGINES, "fake", fake_kind(lambda name: FakeEngine(name, answer_of=half)))
    assert "cut off" not in icdsel("gen-rl-data", *ON, *FEW)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--engine", "fak", "--model", "anything"), "unknown engine 'fak': did you mean 'fake'"),
        (("--engine", "qwen-vl", "--model", "anything"), "cannot load the model 'anything'"),
    ],
)
def test_mistakes_are_clear(engines: list[FakeEngine], flags: tuple[object, ...], message: str):
    assert message in " ".join(icdsel("gen-rl-data", *flags, *FEW, code=2).split())


def test_without_embeddings_another_encoder_is_named(engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch):
    def without_embeddings(name: str) -> FakeEngine:
        engine = FakeEngine(name)
        engine.can_embed = False
        return engine

    monkeypatch.setitem(ENGINES, "fake", fake_kind(without_embeddings))
    said = " ".join(icdsel("gen-rl-data", *ON, *FEW, code=2).split())
    assert "anything has no features of single images: name another encoder, such as --encoder" in said

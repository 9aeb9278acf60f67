"""The tasks `caption`, `exact` and `number` through the command line, on a small made dataset, with a fake VLM."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import icdsel
from fakes import FakeEngine, fake_kind

from icdsel.data.world import all_scenes, draw
from icdsel.tasks.bleu import bleu, bleu_counts
from icdsel.tasks.cider import DocumentFrequencies, cider_d
from icdsel.tasks.ngrams import tokens
from icdsel.vlm.engine import Request
from icdsel.vlm.engines import ENGINES

FEW = ("--engine", "fake", "--model", "copier", "--encoder", "vlm", "--pool-size", "16")
PROPOSE = ("--queries", "20", "--beam", "2", "--samples", "1", "--retrieval", "2", "--random", "2")
INFER = ("--n", "16", "--shots", "1,2", "--selector", "policy,nearest-image,random")


def last_answer(request: Request) -> str:
    """Captions are copied; counts are written out, and are one too many for a query with an even id."""
    answer = request.icds[-1].answer if request.icds else "a thing"
    if not answer.isdigit():
        return answer
    return f"about {int(answer) + (int(request.query.question_id) % 2 == 0)}.0 of them"


def write_dataset(folder: Path) -> None:
    """40 training and 20 validation images with captions, and the same with the length of the word for their shape."""
    rng, scenes = random.Random(5), all_scenes()
    captions, counts = [], []
    for i in range(60):
        scene = rng.choice(scenes)
        draw(scene, rng).save(folder / f"{i}.png")
        line = {"question_id": i, "image": f"{i}.png", "split": "train" if i < 40 else "validation"}
        said = [
            f"A {scene.colour} {scene.shape} on a {scene.background} background.",
            f"there is a {scene.shape} that's {scene.colour}",
            f"{scene.colour} {scene.shape}, {'many' if scene.busy else 'no'} lines",
        ]
        captions.append(json.dumps(line | {"question": "Describe the image.", "answers": said, "answer": said[0]}))
        counts.append(json.dumps(line | {"question": "How many?", "answers": [str(len(scene.shape))]}))
    (folder / "captions.jsonl").write_text("\n".join(captions) + "\n")
    (folder / "counts.jsonl").write_text("\n".join(counts) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder, before = tmp_path_factory.mktemp("texts"), Path.cwd()
    write_dataset(folder)
    os.chdir(folder)
    ENGINES.add(fake_kind(lambda name: FakeEngine(name, last_answer)))
    try:
        yield folder
    finally:
        del ENGINES["fake"]
        os.chdir(before)


def lines_of(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


CAPTIONS = ("--dataset", "captions.jsonl", "--task", "caption", *FEW)
COUNTS = ("--dataset", "counts.jsonl", *FEW)


@pytest.fixture(scope="module")
def captions(folder: Path) -> Path:
    """The folder after RL data, training with queries of the VLM, inference and comparison of captions."""
    icdsel("train", *CAPTIONS, *PROPOSE, "--rce-epochs", 1, "--grpo-epochs", 1, "--online", "--online-samples", 1)
    icdsel("infer", *CAPTIONS, *INFER)
    return folder


def frequencies(split: str) -> DocumentFrequencies:
    lines = [line for line in lines_of("captions.jsonl") if line["split"] == split]
    return DocumentFrequencies.of(map(tokens, line["answers"]) for line in lines)


def test_rl_data_are_scored_by_the_captions_of_the_training_split(captions: Path) -> None:
    [path] = Path("results/captions/generated_data").glob("*.jsonl")
    [run] = Path("results/captions/model_cpk").glob("*/online.jsonl")
    corpus = frequencies("train")
    for group in (*lines_of(path), *lines_of(run)):
        references = list(map(tokens, group["answers"]))
        for candidate in group["pointer_candidates"]:
            expected = cider_d(tokens(candidate["vqa_pred_answer"]), references, corpus)
            assert candidate["vqa_acc_score"] == pytest.approx(expected, rel=1e-5) and candidate["vqa_correct"] is None


def test_predictions_are_scored_by_the_captions_of_their_whole_split(captions: Path) -> None:
    truths = {line["question_id"]: list(map(tokens, line["answers"])) for line in lines_of("captions.jsonl")}
    corpus, paths = frequencies("validation"), list(Path("results/captions/infer").glob("*/*.jsonl"))
    assert len(paths) == 5
    for record in (record for path in paths for record in lines_of(path)):
        expected = cider_d(tokens(record["prediction"]), truths[record["question_id"]], corpus)
        assert record["accuracy"] == pytest.approx(expected, abs=1e-6)
        assert 0 <= record["accuracy_rouge-l"] <= 1


def test_the_comparison_and_the_page_speak_of_cider_d(captions: Path) -> None:
    said = icdsel("compare", *CAPTIONS, "--html", "page.html", "--json", "table.json")
    assert "CIDEr-D (cider-d) in points, n = 16 queries" in said
    page = Path("page.html").read_text()
    text = page[page.index("<body") : page.rindex("</main>")]
    assert '<h2 id="accuracy-heading">CIDEr-D</h2>' in text and "CIDEr-D by number of shots" in text
    for absent in ("VQA", "McNemar", "Accuracy", ">Correct<", "✓ right", "Cider"):
        assert absent not in text + said
    assert "BLEU-4, of all queries together" in said
    truths = {line["question_id"]: list(map(tokens, line["answers"])) for line in lines_of("captions.jsonl")}
    [nearest] = Path("results/captions/infer").glob("*/nearest-image*.jsonl")
    answers = [line for line in lines_of(nearest) if line["shots"] == 1]
    counts = [bleu_counts(tokens(line["prediction"]), truths[line["question_id"]]) for line in answers]
    expected = 100 * bleu([sum(place) for place in zip(*counts, strict=True)])
    rows = json.loads(Path("table.json").read_text())
    [found] = [row["corpus"] for row in rows if (row["selector"], row["shots"]) == ("nearest-image", 1)]
    assert 10 < expected < 100 and found[0]["score"] == pytest.approx(expected, abs=1e-3)
    best = max(row["accuracy"] for row in rows)
    assert 10 < best < 1000  # in points, as publications print it


def test_another_metric_has_its_own_name(captions: Path) -> None:
    words = (*CAPTIONS, "--metric", "rouge-l")
    said = icdsel("infer", *words, "--n", 16, "--shots", 1, "--selector", "nearest-image,random")
    assert "ROUGE-L in points by number of shots" in " ".join(said.split())
    said += icdsel("gen-rl-data", *words, *PROPOSE, "--output", "rouge.jsonl")
    said += icdsel("compare", *words, "--html", "rouge.html")
    assert "mean ROUGE-L" in said and "ROUGE-L (rouge-l) in points, n = 16 queries" in said
    page = Path("rouge.html").read_text()
    results, landscape = page[page.index("<body") :].split('id="landscape-heading"')
    assert "ROUGE-L" in results and "CIDEr-D" not in results + said
    assert "Mean CIDEr-D" in landscape  # of the RL data at their usual place, which were scored by it


def test_check_warns_of_few_captions_alone(captions: Path) -> None:
    icdsel("check", "captions.jsonl", *CAPTIONS, "--json", "check.json")
    checked = json.loads(Path("check.json").read_text())
    problems = {finding["problem"] for one in checked["checked"] for finding in one["findings"]}
    assert problems == {"questions have fewer than 5 answers"}


def test_captions_of_one_query_are_no_corpus(folder: Path) -> None:
    lines = lines_of("captions.jsonl")
    few = [*lines[:40], *(line | {"answers": [], "answer": ""} for line in lines[41:]), lines[40]]
    Path("single.jsonl").write_text("\n".join(map(json.dumps, few)) + "\n")
    words = ("--dataset", "single.jsonl", *CAPTIONS[2:], "--n", 20, "--shots", 1, "--selector", "random")
    assert "the split has captions for a single query" in " ".join(icdsel("infer", *words, code=2).split())


@pytest.mark.parametrize(
    ("task", "metric", "score", "others"),
    [
        ("number", "exact", 1.0, {"tolerance": 1.0, "error": 1.0}),
        ("number", "error", 1.0, {"tolerance": 1.0, "exact": 1.0}),
        ("exact", "exact", 0.0, {"cased": 0.0, "verbatim": 0.0}),
    ],
)
def test_counts_are_read_in_texts_by_the_task_number_alone(
    folder: Path, task: str, metric: str, score: float, others: dict[str, float]
) -> None:
    words = (*COUNTS, "--task", task, "--metric", metric)
    icdsel("infer", *words, "--n", 16, "--shots", 1, "--selector", "nearest-image,random")
    truths = {line["question_id"]: line["answers"][0] for line in lines_of("counts.jsonl")}
    [path] = Path("results/counts/infer").glob(f"*task-{task}_metric-{metric}*/nearest-image*.jsonl")
    records = lines_of(path)
    right = [record for record in records if record["prediction"] == f"about {truths[record['question_id']]}.0 of them"]
    assert 0 < len(right) < len(records)
    for record in right:
        assert record["accuracy"] == score
        assert {name: record[f"accuracy_{name}"] for name in others} == others
    said = " ".join(icdsel("compare", *words).split())
    assert {"exact": "Exact match", "number": "Number score"}[task] + f" ({metric}) in points, n = 16" in said
    assert {"exact": "an exact match", "number": "a right number"}[task] in said and "VQA" not in said

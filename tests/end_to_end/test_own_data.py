"""The commands on data in the forms that people have: OK-VQA's files, the preprocessor's, JSON lines, Lever-Plus's."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from icdsel.cli import app
from icdsel.demo.world import write_world

TRAIN, VALIDATION = 120, 30
ON = ("--dataset", "okvqa", "--model", "tiny-vlm", "--pool-size", 20, "--queries", 24)
PROPOSE = ("--beam", 2, "--samples", 1, "--retrieval", 2)


def icdsel(*words: object, code: int = 0) -> str:
    made = CliRunner().invoke(app, [str(word) for word in words])
    output = made.output + (made.stderr if made.stderr not in made.output else "")
    assert made.exit_code == code, output + str(made.exception)
    return output


def write_okvqa(folder: Path) -> None:
    """Some questions of the bundled world in OK-VQA's official form, images as JPEG under COCO's names."""
    write_world(folder / "world")
    for split, name, count in (("train", "train", TRAIN), ("validation", "val", VALIDATION)):
        questions = json.loads((folder / f"world/questions_{split}.json").read_text())["questions"][:count]
        annotations = json.loads((folder / f"world/annotations_{split}.json").read_text())["annotations"]
        annotations = [a for a in annotations if a["question_id"] in {q["question_id"] for q in questions}]
        for annotation in annotations:
            for answer in annotation["answers"]:
                answer["raw_answer"] = answer["answer"]
            annotation.pop("multiple_choice_answer", None)
        (folder / f"OpenEnded_mscoco_{name}2014_questions.json").write_text(json.dumps({"questions": questions}))
        (folder / f"mscoco_{name}2014_annotations.json").write_text(json.dumps({"annotations": annotations}))
        images = folder / f"coco/{name}2014"
        images.mkdir(parents=True)
        for question in questions:
            with Image.open(folder / f"world/images/{split}/{question['image_id']:012d}.png") as image:
                image.convert("RGB").save(images / f"COCO_{name}2014_{question['image_id']:012d}.jpg", quality=98)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("okvqa")
    write_okvqa(folder)
    before = Path.cwd()
    os.chdir(folder)
    Path("icdsel.toml").write_text('[data]\ndata_dir = "."\nimage_dir = "coco"\n')
    try:
        icdsel("gen-rl-data", *ON, *PROPOSE, "--output", "ours.jsonl")
        yield folder
    finally:
        os.chdir(before)


def weights(folder: Path, run: str) -> bytes:
    return (folder / f"results/okvqa/model_cpk/{run}/rce_epoch1.pt").read_bytes()


def train(*words: object) -> str:
    return icdsel("train", *ON, "--rce-epochs", 1, *words)


def test_the_preset_asks_and_trains_as_the_original_and_both_metrics_are_shown(folder):
    preset = ("--preset", "lever-plus")
    icdsel("train", *ON, *PROPOSE, *preset, "--rce-epochs", 1)
    run = folder / "results/okvqa/model_cpk/v3_RandSampler_tiny-vlm_lever-plus_rce-epochs-1"
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert settings["vlm"]["num_beams"] == 3 and settings["train"]["recipe"] == "lever-plus"
    told = icdsel("infer", *ON[:6], *preset, "--n", 10, "--shots", 1)
    assert "zero-shot" in told
    icdsel("compare", *ON[:6], *preset, "--json", "table.json")
    (row,) = [row for row in json.loads(Path("table.json").read_text()) if row["selector"] == "policy"]
    assert row["metric"] == "openflamingo"
    predictions = next((folder / "results/okvqa/infer").glob("*lever-plus*/policy*.jsonl")).read_text()
    assert {"accuracy", "accuracy_official", "accuracy_lemmatised"} <= json.loads(predictions.splitlines()[0]).keys()


def test_the_preprocessed_form_is_the_same_dataset(folder, tmp_path):
    for name in ("train", "val"):
        asked = json.loads(Path(f"OpenEnded_mscoco_{name}2014_questions.json").read_text())["questions"]
        question = {record["question_id"]: record["question"] for record in asked}
        content = json.loads(Path(f"mscoco_{name}2014_annotations.json").read_text())
        for annotation in content["annotations"]:
            annotation["question"] = question[annotation["question_id"]]
        (tmp_path / "okvqa_hf").mkdir(exist_ok=True)
        (tmp_path / f"okvqa_hf/vqav2_mscoco_{name}2014.json").write_text(json.dumps(content))
    there = ("--data-dir", tmp_path, "--image-dir", folder / "coco")
    icdsel("gen-rl-data", *ON, *PROPOSE, *there, "--output", "ours.jsonl")  # found there already: the same identity


def test_rl_data_go_to_lever_plus_and_come_back(folder):
    icdsel("convert", "ours.jsonl", *ON[:6])
    train("--rl-data", "ours.jsonl", "--run", "from-ours")
    train("--rl-data", "ours.json", "--run", "from-theirs")
    assert weights(folder, "from-ours") == weights(folder, "from-theirs")


def test_unsound_data_of_lever_plus_are_refused_with_the_count(folder):
    content = json.loads(Path("ours.json").read_text())
    for record in (record for key, record in content.items() if key != "_meta"):
        for candidate in record["pointer_candidates"]:
            candidate["gen_method"] = "global_positive_injection"
    Path("made-up.json").write_text(json.dumps(content))
    told = icdsel("train", *ON, "--rl-data", "made-up.json", "--run", "x", code=2)
    assert "--accept-unsound" in told and "Traceback" not in told
    assert not Path("results/okvqa/model_cpk/x").exists()


def test_a_warm_start_imitates_the_beams(folder):
    anchors = [key for key in json.loads(Path("ours.json").read_text()) if key != "_meta"][:10]
    beams = {
        anchor: {"id_list": [[(int(anchor) + k) % TRAIN, (int(anchor) + 7) % TRAIN, int(anchor)] for k in (1, 2)],
                 "score_list": [-1e-7, -2e-7]}
        for anchor in anchors
    }  # fmt: skip
    Path("beams.json").write_text(json.dumps(beams))
    told = train("--rl-data", "ours.jsonl", "--warm-start", "beams.json", "--warm-epochs", 2, "--run", "warm")
    assert "warm epoch 2" in told
    lines = Path("results/okvqa/model_cpk/warm/metrics.jsonl").read_text().splitlines()
    phases = [json.loads(line)["phase"] for line in lines]
    assert phases == ["warm", "warm", "rce"]
    told = icdsel("train", *ON, "--rl-data", "beams.json", "--run", "y", code=2)
    assert "--warm-start" in told


def test_the_whole_split_as_one_pool(folder):
    whole = ("--dataset", "okvqa", "--model", "tiny-vlm", "--pool-size", "all", "--queries", 12)
    icdsel("gen-rl-data", *whole, *PROPOSE, "--output", "whole.jsonl")
    group = json.loads(Path("whole.jsonl").read_text().splitlines()[0])
    assert group["candidate_pool_ids"] == "all" and group["question_id"] in group["excluded_ids"]
    icdsel("train", *whole, "--rl-data", "whole.jsonl", "--run", "whole", "--rce-epochs", 1)
    told = icdsel("infer", *whole[:6], "--run", "whole", "--n", 6, "--shots", 2, "--selector", "policy,random")
    assert "random-42" in told


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_an_image_that_cannot_be_read_stops_the_run_or_is_left_out(folder, tmp_path, damage):
    images = tmp_path / "coco"
    shutil.copytree(folder / "coco", images)
    ids = [
        record["image_id"]
        for record in json.loads(Path("mscoco_train2014_annotations.json").read_text())["annotations"]
    ]
    broken = images / f"train2014/COCO_train2014_{ids[5]:012d}.jpg"
    if damage == "missing":
        broken.unlink()
    else:
        broken.write_bytes(broken.read_bytes()[:300])
    there = ("--image-dir", images, "--results-dir", tmp_path / "results")
    told = icdsel("gen-rl-data", *ON, *PROPOSE, *there, code=2)
    assert broken.name in told and "1 of 120" in told and "--on-image-error skip" in told
    told = icdsel("gen-rl-data", *ON, *PROPOSE, *there, "--on-image-error", "skip", "--output", tmp_path / "rl.jsonl")
    assert broken.name in told
    left_out = {
        record["question_id"]
        for record in json.loads(Path("mscoco_train2014_annotations.json").read_text())["annotations"]
        if record["image_id"] == ids[5]
    }
    for line in (tmp_path / "rl.jsonl").read_text().splitlines():
        assert not left_out & set(json.loads(line)["candidate_pool_ids"])


def test_json_lines_of_ones_own(folder, tmp_path):
    asked = json.loads(Path("OpenEnded_mscoco_train2014_questions.json").read_text())["questions"]
    answers = json.loads(Path("mscoco_train2014_annotations.json").read_text())["annotations"]
    answers_of = {a["question_id"]: [b["answer"] for b in a["answers"]] for a in answers}
    lines = [
        {
            "question_id": q["question_id"],
            "image": f"train2014/COCO_train2014_{q['image_id']:012d}.jpg",
            "question": q["question"],
            "answers": answers_of[q["question_id"]],
            "split": "train" if k < 100 else "validation",
        }
        for k, q in enumerate(asked)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    mine = ("--dataset", tmp_path / "mine.jsonl", "--model", "tiny-vlm", "--results-dir", tmp_path / "results")
    told = icdsel("infer", *mine, "--n", 10, "--shots", 1, "--selector", "random,nearest-both")
    assert "nearest-both" in told
    assert (tmp_path / "results/mine/infer/RandSampler_tiny-vlm").is_dir()

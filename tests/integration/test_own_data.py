"""The commands on data in the forms that people have: OK-VQA's files, the preprocessor's, JSON lines, Lever-Plus's."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import icdsel
from PIL import Image

from icdsel.artefacts.checkpoint import load_policy

TRAIN, VALIDATION = 120, 30
ON = ("--dataset", "okvqa", "--model", "tiny-vlm", "--pool-size", 20, "--queries", 24)
PROPOSE = ("--beam", 2, "--samples", 1, "--retrieval", 2)


def write_okvqa(folder: Path, world_into: Callable[[Path], None]) -> None:
    """Some questions of the bundled world in OK-VQA's official form, images as JPEG under COCO's names."""
    world_into(folder)
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
def folder(tmp_path_factory, world_into):
    folder = tmp_path_factory.mktemp("okvqa")
    write_okvqa(folder, world_into)
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
    run = folder / "results/okvqa/model_cpk/v3_RandSampler_tiny-vlm_pool-size-20_lever-plus_rce-epochs-1"
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert settings["vlm"]["num_beams"] == 3 and settings["train"]["recipe"] == "lever-plus"
    output = icdsel("infer", *ON[:6], *preset, "--n", 10, "--shots", 1)
    assert "zero-shot" in output
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


def test_unsound_data_of_lever_plus_are_rejected_with_the_count(folder):
    content = json.loads(Path("ours.json").read_text())
    for record in (record for key, record in content.items() if key != "_meta"):
        for candidate in record["pointer_candidates"]:
            candidate["gen_method"] = "global_positive_injection"
    Path("made-up.json").write_text(json.dumps(content))
    output = icdsel("train", *ON, "--rl-data", "made-up.json", "--run", "x", code=2)
    assert "--accept-unsound" in output and "Traceback" not in output
    assert not Path("results/okvqa/model_cpk/x").exists()


def test_a_warm_start_imitates_the_beams(folder):
    anchors = [key for key in json.loads(Path("ours.json").read_text()) if key != "_meta"][:10]
    beams = {
        anchor: {"id_list": [[(int(anchor) + k) % TRAIN, (int(anchor) + 7) % TRAIN, int(anchor)] for k in (1, 2)],
                 "score_list": [-1e-7, -2e-7]}
        for anchor in anchors
    }  # fmt: skip
    Path("beams.json").write_text(json.dumps(beams))
    output = train("--rl-data", "ours.jsonl", "--warm-start", "beams.json", "--warm-epochs", 2, "--run", "warm")
    assert "warm epoch 2" in output
    lines = Path("results/okvqa/model_cpk/warm/metrics.jsonl").read_text().splitlines()
    phases = [json.loads(line)["phase"] for line in lines]
    assert phases == ["warm", "warm", "rce"]
    output = icdsel("train", *ON, "--rl-data", "beams.json", "--run", "y", code=2)
    assert "--warm-start" in output


def test_the_whole_split_as_one_pool(folder):
    whole = ("--dataset", "okvqa", "--model", "tiny-vlm", "--pool-size", "all", "--queries", 12)
    icdsel("gen-rl-data", *whole, *PROPOSE, "--output", "whole.jsonl")
    group = json.loads(Path("whole.jsonl").read_text().splitlines()[0])
    assert group["candidate_pool_ids"] == "all" and group["question_id"] in group["excluded_ids"]
    icdsel("train", *whole, "--rl-data", "whole.jsonl", "--run", "whole", "--rce-epochs", 1)
    output = icdsel("infer", *whole[:6], "--run", "whole", "--n", 6, "--shots", 2, "--selector", "policy,random")
    assert "random-42" in output


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
    output = icdsel("gen-rl-data", *ON, *PROPOSE, *there, code=2)
    assert broken.name in output and "1 of 120" in output and "--on-image-error skip" in output
    output = icdsel("gen-rl-data", *ON, *PROPOSE, *there, "--on-image-error", "skip", "--output", tmp_path / "rl.jsonl")
    assert broken.name in output
    left_out = {
        record["question_id"]
        for record in json.loads(Path("mscoco_train2014_annotations.json").read_text())["annotations"]
        if record["image_id"] == ids[5]
    }
    for line in (tmp_path / "rl.jsonl").read_text().splitlines():
        assert not left_out & set(json.loads(line)["candidate_pool_ids"])


@pytest.mark.parametrize(("number", "split"), [(5, "train"), (TRAIN + 3, "validation")])
def test_one_bad_image_ends_no_command_otherwise_than_it_was_told_to(folder, tmp_path, number, split):
    """Few queries, so that one image is more than `--max-failed` allows."""
    lines = []
    for name, count, part in (("train", TRAIN, "train"), ("val", VALIDATION, "validation")):
        asked = json.loads(Path(f"OpenEnded_mscoco_{name}2014_questions.json").read_text())["questions"][:count]
        annotations = json.loads(Path(f"mscoco_{name}2014_annotations.json").read_text())["annotations"]
        answers = {annotation["question_id"]: annotation["answers"] for annotation in annotations}
        for question in asked:
            image = f"coco/{name}2014/COCO_{name}2014_{question['image_id']:012d}.jpg"
            given = answers[question["question_id"]]
            lines.append({"image": image, "question": question["question"], "answers": given, "split": part})
    (tmp_path / "bad.jpg").write_bytes(b"")
    lines[number]["image"] = "bad.jpg"
    shutil.copytree(folder / "coco", tmp_path / "coco")
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = ("--dataset", tmp_path / "own.jsonl", "--image-dir", tmp_path, "--model", "tiny-vlm", "--pool-size", 20)
    common += ("--results-dir", tmp_path / "results", "--max-failed", 0)
    learn = ("--queries", 10, *PROPOSE)
    asks = ("infer", *common, "--n", 6, "--shots", 1, "--selector", "nearest-both")
    commands = [("gen-rl-data", *common, *learn), ("train", *common, *learn, "--rce-epochs", 1), asks]
    for command in commands:
        stops = split == "train" or command is asks
        output = icdsel(*command, code=2 if stops else 0)
        assert ("--on-image-error skip" in output) == stops
    for command in commands:  # 1: a call failed, as an example of the image was a query
        failed = split == "validation" and command is asks
        output = icdsel(*command, "--on-image-error", "skip", "--results-dir", tmp_path / "skipped", code=int(failed))
        assert "more than --max-failed" not in output
    answered = list((tmp_path / "skipped/own/infer").rglob("nearest-both_validation-6.jsonl"))
    assert len(answered[0].read_text().splitlines()) == 6


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
    for k in range(100, 110):  # five questions on each of two images
        lines[k]["image"] = lines[100 + (k - 100) // 5 * 5]["image"]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    mine = ("--dataset", tmp_path / "mine.jsonl", "--model", "tiny-vlm", "--results-dir", tmp_path / "results")
    output = icdsel("infer", *mine, "--n", 10, "--shots", 1, "--selector", "random,nearest-both")
    assert "nearest-both" in output
    assert "The 10 queries share 2 images" in output
    folder = tmp_path / "results/mine/infer/RandSampler_tiny-vlm"
    answers = [json.loads(line) for line in (folder / "nearest-both_validation-10.jsonl").read_text().splitlines()]
    assert len({answer["image_id"] for answer in answers}) == 2


# --- what used to pass in silence -------------------------------------------------------------------------


def test_a_start_takes_its_sizes_from_the_checkpoint(folder):
    train("--rl-data", "ours.jsonl", "--run", "seed-network", "--recipe", "lever-plus")
    start = folder / "results/okvqa/model_cpk/seed-network/rce_epoch1.pt"
    train("--rl-data", "ours.jsonl", "--run", "started", "--init", start)
    assert load_policy(folder / "results/okvqa/model_cpk/started/rce_epoch1.pt").config.tower == 0
    output = icdsel("train", *ON, "--rl-data", "ours.jsonl", "--init", start, "--num-layers", 2, "--run", "z", code=2)
    assert "num_layers 1" in output and "--num-layers" in output
    # 4 is the default, but it was given.
    output = icdsel("train", *ON, "--rl-data", "ours.jsonl", "--init", start, "--num-heads", 4, "--run", "z", code=2)
    assert "num_heads 1" in output and "--num-heads" in output
    original = Path(__file__).parents[1] / "data/rce_epoch1.pt"
    output = icdsel("train", *ON, "--rl-data", "ours.jsonl", "--init", original, "--run", "z", code=2)
    assert "width" in output and "Traceback" not in output


def test_a_policy_is_not_answered_with_other_embeddings(folder):
    train("--rl-data", "ours.jsonl", "--run", "plain")
    output = icdsel("infer", *ON[:6], "--run", "plain", "--n", 4, "--min-pixels", 7056, code=2)
    assert "encoder (the encoder's files, and the limits of an image's size: --max-image-pixels" in output


def test_the_oracle_takes_no_scores_of_other_prompts(folder):
    icdsel("gen-rl-data", *ON[:6], *PROPOSE, "--split", "validation", "--queries", 4, "--metric", "official")
    output = icdsel("infer", *ON[:6], "--selector", "oracle", "--n", 4, "--shots", 2, code=2)
    assert "data.metric" in output


@pytest.mark.parametrize("words", [("gen-rl-data", "--pointer-shots", 16), ("infer", "--shots", 16, "--n", 4)])
@pytest.mark.parametrize("size", ["all", 10])
def test_more_shots_than_a_pool_has_candidates_are_rejected(folder, tmp_path, words, size):
    lines = [json.loads(line) for line in Path("ours.jsonl").read_text().splitlines()]
    few = {record["question_id"] for record in lines[:12]}
    asked = json.loads(Path("OpenEnded_mscoco_train2014_questions.json").read_text())["questions"]
    answers = json.loads(Path("mscoco_train2014_annotations.json").read_text())["annotations"]
    kept = [question for question in asked if question["question_id"] in few]
    for name in ("train", "val"):
        for kind, records in (("OpenEnded_{}_questions", kept), ("{}_annotations", answers)):
            chosen = [record for record in records if record["question_id"] in few]
            content = {"questions" if "questions" in kind else "annotations": chosen}
            (tmp_path / (kind.format(f"mscoco_{name}2014") + ".json")).write_text(json.dumps(content))
    shutil.copytree("coco/train2014", tmp_path / "coco/train2014")
    (tmp_path / "coco/val2014").mkdir()
    for image in (tmp_path / "coco/train2014").iterdir():
        shutil.copy(image, tmp_path / "coco/val2014" / image.name.replace("train", "val"))
    there = ("--data-dir", tmp_path, "--image-dir", tmp_path / "coco", "--results-dir", tmp_path / "results")
    random = ("--selector", "random,nearest-both") if words[0] == "infer" else ()
    output = icdsel(*words, *random, "--dataset", "okvqa", "--model", "tiny-vlm", "--pool-size", size, *there, code=2)
    assert "16 shots do not fit" in output


def test_training_that_diverges_stops_before_its_checkpoint(folder):
    output = icdsel("train", *ON, "--rl-data", "ours.jsonl", "--rce-lr", 1e30, "--run", "nan", code=2)
    assert "diverged" in output and "--rce-lr" in output
    assert not list((folder / "results/okvqa/model_cpk/nan").glob("*.pt"))


def test_a_reward_mode_needs_its_scores(folder):
    content = json.loads(Path("ours.json").read_text())
    content["_meta"] = {}  # Lever-Plus's own: its probabilities are not to be trusted
    Path("theirs.json").write_text(json.dumps(content))
    output = icdsel(
        "train", *ON, "--rl-data", "theirs.json", "--reward-mode", "hard01_plus_gtprob", "--run", "z", code=2
    )
    assert "vqa_gt_prob" in output and "hard_plus_soft" in output
    train("--rl-data", "theirs.json", "--run", "theirs")


def test_what_is_in_the_originals_form_is_not_converted_to_it(folder):
    assert "--rl-data ours.json" in icdsel("convert", "ours.json", *ON[:6], code=2)


def test_one_file_has_one_identity_however_it_is_named(folder, tmp_path):
    line = {"question_id": 1, "image": "a.png", "question": "?", "answers": ["x"], "split": "train"}
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    splits = [(i, "train") for i in range(8)] + [(i, "validation") for i in range(8, 12)]
    (tmp_path / "few.jsonl").write_text(
        "".join(json.dumps(line | {"question_id": i, "split": split}) + "\n" for i, split in splits)
    )
    few = ("--model", "tiny-vlm", "--pool-size", 3, "--no-exclude-same-image", "--n", 4, "--shots", 1)
    more = ("--selector", "random", "--results-dir", tmp_path / "results", "--image-dir", tmp_path)
    icdsel("infer", "--dataset", tmp_path / "few.jsonl", *few, *more)
    relative = os.path.relpath(tmp_path / "few.jsonl")
    assert "answered already" in icdsel("infer", "--dataset", relative, *few, *more)

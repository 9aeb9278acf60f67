"""Results of other inputs are never used for what a command needs now: each command names what differs."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import icdsel
from PIL import Image
from safetensors.torch import load_file, save_file

from icdsel.stages import infer, prediction_row, rl_data_inputs
from icdsel.stages import train as training
from icdsel.store.fingerprints import fingerprint_file
from icdsel.vlm.local.loading import TINY_VLM_DIR

SMALL = ("--dataset", "set.jsonl", "--model", "./my-model", "--encoder", "vlm", "--pool-size", 8)
SCORE = ("gen-rl-data", *SMALL, "--queries", 4, "--beam", 1, "--samples", 1, "--retrieval", 1, "--random", 1)
ONLINE = (
    *("train", "--rce-over", "pool", *SMALL, *SCORE[-10:]),
    *("--rce-epochs", 1, "--grpo-epochs", 1, "--online", "--run", "online"),
)
ANSWER = ("infer", *SMALL, "--n", 4, "--shots", 1, "--selector", "random")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small dataset and a model, with RL data, a run and predictions of both."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    Path("images").mkdir()
    lines = []
    for number in range(30):
        picture = Image.new("RGB", (56, 56), (8 * number, 250 - 8 * number, 40))
        picture.putpixel((number, 3), (255, 255, 255))
        picture.save(f"images/{number}.png")
        lines.append(
            {
                "question_id": number,
                "image": f"images/{number}.png",
                "question": "what colour?",
                "answers": ["red", "green"],
                "split": "train" if number < 24 else "validation",
            }
        )
    Path("set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copytree(TINY_VLM_DIR, "my-model", ignore=shutil.ignore_patterns("__pycache__"))
    try:
        icdsel(*SCORE)
        icdsel("train", "--rce-over", "pool", *SMALL, *SCORE[-10:], "--rce-epochs", 1, "--run", "mine")
        icdsel(*ANSWER)
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def copy(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "copy", copy_function=shutil.copy2)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def edit(number: int) -> None:
    """Another answer in one line of the dataset, of the same length."""
    lines = Path("set.jsonl").read_text().splitlines()
    lines[number] = lines[number].replace("green", "brown")
    Path("set.jsonl").write_text("\n".join(lines) + "\n")


def repaint(number: int) -> None:
    Image.effect_noise((56, 56), 90).convert("RGB").save(f"images/{number}.png")


def finetune() -> None:
    """One matrix in the middle of the weights is another."""
    weights = load_file("my-model/model.safetensors")
    name = sorted(weights)[len(weights) // 2]
    weights[name] += 0.01
    save_file(weights, "my-model/model.safetensors", {"format": "pt"})


def rename_template() -> None:
    """Another prompt by the model's own files."""
    path = Path("my-model/chat_template.jinja")
    path.write_text(path.read_text() + "\n")


CHANGES: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
    "answer": (lambda: edit(3), ("dataset (the training examples",)),
    "image": (lambda: repaint(3), ("dataset (the training examples",)),
    "weights": (finetune, ("model (the VLM's files)", "encoder (the encoder's files")),
    "template": (rename_template, ("model (the VLM's files)",)),
}


def predictions() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("results").rglob("*.jsonl")}


@pytest.mark.parametrize("what", CHANGES)
def test_results_of_other_data_or_another_model_are_rejected(copy: Path, what: str):
    change, named = CHANGES[what]
    change()
    before = predictions()
    for command in (
        SCORE,
        ANSWER,
        ("train", "--rce-over", "pool", *SMALL, *SCORE[-10:], "--rce-epochs", 1, "--run", "mine"),
    ):
        output = icdsel(*command, code=2)
        assert "created with different settings" in output and "--overwrite" in output
        for words in named:
            assert words in output, output
    assert predictions() == before


def test_overwrite_renames_it_to_backup_and_creates_it_again(copy: Path):
    repaint(3)
    before = predictions()
    icdsel(*SCORE, "--overwrite")
    name = "rl_data_RandSampler_my-model_pool-size-8"
    folder = copy / "results/set/generated_data"
    assert (folder / f"{name}.jsonl.old-1").read_bytes() == before[f"{name}.jsonl"]
    assert (folder / f"{name}.meta.json.old-1").is_file()
    icdsel(*SCORE)  # stands


@pytest.mark.parametrize("change", [edit, repaint])
def test_predictions_for_other_queries_are_rejected(copy: Path, change: Callable[[int], None]):
    change(25)
    icdsel(*SCORE)  # the training split is the same
    assert "queries (the queries' split" in icdsel(*ANSWER, code=2)


def test_scores_for_queries_of_another_split_are_rejected(copy: Path):
    icdsel(*SCORE, "--split", "validation")
    icdsel(*ANSWER[:-2], "--selector", "oracle")
    edit(25)
    assert "queries (the queries' split" in icdsel(*SCORE, "--split", "validation", code=2)
    oracle = icdsel(*ANSWER[:-2], "--selector", "oracle", "--results-dir", "elsewhere", code=2)
    assert "gen-rl-data --split validation" in oracle  # it takes none from another place
    for path in Path("results/set/infer").glob("*/oracle*"):
        path.unlink()
    assert "queries (the queries' split" in icdsel(*ANSWER[:-2], "--selector", "oracle", code=2)
    path = "results/set/generated_data/rl_data_RandSampler_my-model_pool-size-8_validation.jsonl"
    assert "the dataset has changed since" in icdsel("check", path, *SMALL, code=1)


@pytest.mark.parametrize(("command", "module"), [(SCORE, rl_data_inputs), (ANSWER, prediction_row)])
def test_scores_of_another_scorer_version_are_rejected(copy: Path, monkeypatch: pytest.MonkeyPatch, command, module):
    monkeypatch.setattr(module, "SCORER_VERSION", 0)
    assert "scorer (the version of icdsel's scorer)" in icdsel(*command, code=2)


def test_a_prompt_is_named_by_its_setting(copy: Path):
    output = icdsel(*SCORE, "--system-prompt", "Be brief.", code=2)
    assert "vlm.system_prompt" in output and "'Be brief.' now" in output


def test_online_training_depends_on_the_scorer(copy: Path, monkeypatch: pytest.MonkeyPatch):
    icdsel(*ONLINE)
    monkeypatch.setattr(training, "SCORER_VERSION", 0)
    assert "scorer (the version" in icdsel(*ONLINE, code=2)


def test_predictions_of_a_policy_that_was_replaced_are_reported(copy: Path):
    train = ("train", "--rce-over", "pool", *SMALL, *SCORE[-10:], "--rce-epochs", 1, "--run", "mine")
    answers = icdsel(*ANSWER[:-2], "--selector", "policy,random", "--run", "mine")
    assert "is not finished" not in answers
    assert "another policy" not in icdsel("compare", *SMALL)
    icdsel(*train, "--train-seed", 1, "--overwrite")
    assert "is from another policy" in " ".join(icdsel("compare", *SMALL).split())


def test_an_unfinished_run_is_reported(copy: Path):
    side = Path("results/set/model_cpk/mine/run.json")
    side.write_text(json.dumps({k: v for k, v in json.loads(side.read_text()).items() if k != "finished"}))
    assert "the training of run mine is not finished" in icdsel(*ANSWER[:-2], "--selector", "policy", "--run", "mine")


def record(path: Path, **values: object) -> None:
    """Changes what a checkpoint says that it was trained for."""
    content = torch.load(path, weights_only=True)
    content["trained_for"] |= values
    torch.save(content, path)


POLICY = (*ANSWER[:-2], "--selector", "policy", "--run", "mine")
CHECKPOINT = Path("results/set/model_cpk/mine/rce_epoch1.pt")


def test_policies_are_answered_with_the_embeddings_that_they_were_trained_on(copy: Path):
    record(CHECKPOINT, train_embeddings="0123456789abcdef")
    output = icdsel(*POLICY, code=2)
    assert "train_embeddings (the file of --train-embeddings): '0123456789abcdef' then, None now" in output


def test_a_policy_is_checked_wherever_its_checkpoint_lies(copy: Path):
    shutil.copy(CHECKPOINT, "mine.pt")
    bare = (*ANSWER[:-2], "--selector", "policy", "--checkpoint", "mine.pt")
    assert "does not say what it was trained for" not in icdsel(*bare)
    icdsel("convert", "mine.pt", "--output", "converted.ckpt")
    record(Path("mine.pt"), encoder="other")
    for words in (
        bare,
        (*SCORE, "--init", "mine.pt", "-o", "x.jsonl"),
        ("train", "--rce-over", "pool", *SMALL, "--init", "mine.pt"),
    ):
        assert "encoder (the encoder's files" in icdsel(*words, code=2)
    assert "encoder (the encoder's files" not in icdsel(*bare[:-1], "converted.ckpt")  # as it was converted
    record(Path("converted.ckpt"), **{"data.embed": "image"})
    assert "data.embed: 'image' then, 'both' now" in icdsel(*bare[:-1], "converted.ckpt", code=2)


def test_a_policy_for_another_prompt_is_reported(copy: Path):
    output = " ".join(icdsel(*POLICY, "--system-prompt", "Be brief.").split())
    assert "trained with a different setting: vlm.system_prompt" in output


def test_a_training_set_that_grew_or_was_renamed_is_no_other_dataset(copy: Path):
    lines = Path("set.jsonl").read_text().splitlines()
    more = json.loads(lines[0]) | {"question_id": 99, "image": "images/29.png", "question": "how many?"}
    Path("renamed.jsonl").write_text("\n".join(lines) + "\n")
    policy = ("infer", "--dataset", "renamed.jsonl", *SMALL[2:], "--n", 4, "--shots", 1, "--checkpoint", CHECKPOINT)
    assert "has changed since" not in icdsel(*policy)
    Path("renamed.jsonl").write_text("\n".join([*lines, json.dumps(more)]) + "\n")
    said = " ".join(icdsel(*policy, "--results-dir", "grown").split())
    assert "the training split has changed since" in said and "24 examples then, 25 now" in said
    assert "the old ones are still there" in said


def test_another_dataset_is_rejected_whatever_its_name(copy: Path):
    lines = [json.loads(line) for line in Path("set.jsonl").read_text().splitlines()]
    Path("set.jsonl").write_text("".join(json.dumps(line | {"question": "which size?"}) + "\n" for line in lines))
    output = " ".join(icdsel(*POLICY, code=2).split())
    assert "0% of the examples that it was trained on are in the training split of 'set'" in output


def test_a_checkpoint_of_an_earlier_version_is_checked_by_its_run_else_not_at_all(copy: Path):
    content = torch.load(CHECKPOINT, weights_only=True)
    del content["trained_for"]
    torch.save(content, CHECKPOINT)
    torch.save(content, "bare.pt")
    side = CHECKPOINT.with_name("run.json")
    recorded = json.loads(side.read_text())
    side.write_text(json.dumps(recorded | {"identity": recorded["identity"] | {"encoder": "other"}}))
    assert "encoder (the encoder's files" in icdsel(*POLICY, code=2)
    side.write_text(json.dumps(recorded | {"identity": recorded["identity"] | {"dataset": "other"}}))
    assert "images have changed since" in " ".join(icdsel(*POLICY).split())
    bare = icdsel(*ANSWER[:-2], "--selector", "policy", "--checkpoint", "bare.pt")
    assert "bare.pt does not say what it was trained for" in " ".join(bare.split())


def test_long_names_of_runs(copy: Path):
    assert "the maximum is 120 bytes" in icdsel(
        "train", "--rce-over", "pool", *SMALL, *SCORE[-10:], "--run", "x" * 121, code=2
    )
    more = ("--rce-epochs", 1, "--rce-lr", 1.23456e-3, "--rce-temp-start", 1.23456, "--rce-temp-end", 0.123456)
    icdsel(
        "train",
        "--rce-over",
        "pool",
        *SMALL,
        *SCORE[-10:],
        *more,
        "--hidden-dim",
        64,
        "--grpo-lr",
        1.23456e-5,
        "--dropout",
        0.123456,
    )
    assert max(len(path.name) for path in Path("results/set/model_cpk").iterdir() if path.is_dir()) <= 120
    icdsel(*ANSWER[:-2], "--selector", "policy")


def test_images_that_cannot_be_read_count(copy: Path):
    skip = ("--on-image-error", "skip")
    icdsel(*SCORE, *skip)  # made with all images: none had to be skipped
    size = Path("images/3.png").stat().st_size
    Path("images/3.png").write_bytes(bytes(size))
    shutil.rmtree("results/set/cache")  # the embeddings, by which an image has its place in a pool
    assert "broken_images (the images that cannot be read): None then" in icdsel(*SCORE, *skip, code=2)


def test_rl_data_need_a_name_with_a_suffix(copy: Path):
    assert "end in .jsonl" in icdsel(*SCORE, "--output", "round_0.5", code=2)
    assert not [*copy.glob("round*")]


def test_a_damaged_run_beside_it_stops_no_training(copy: Path):
    other = Path("results/set/model_cpk/other/run.json")
    other.parent.mkdir()
    other.write_bytes(b"")
    output = icdsel(
        "train", "--rce-over", "pool", *SMALL, *SCORE[-10:], "--rce-epochs", 1, "--run", "new", "--train-seed", 1
    )
    assert "other/run.json" in output
    icdsel(*ANSWER[:-2], "--selector", "policy")


def test_shards_without_metadata_files_are_reported(copy: Path):
    shard = ("--output", "parts[1].jsonl", "--shard", "1/2")
    icdsel(*SCORE, *shard)
    assert "queries were scored in shards" in icdsel(*SCORE, *shard[:2])
    Path("parts[1].jsonl").unlink()
    Path("parts[1].shard-1-of-2.meta.json").unlink()
    assert "is skipped: its metadata," in " ".join(icdsel(*SCORE, *shard[:2]).split())


def test_an_interrupted_online_training_misses_its_journal(copy: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:  # as if it had been killed after its last epoch
        patch.setattr(training, "commit_run", lambda *_: None)
        icdsel(*ONLINE)
    journal = Path("results/set/model_cpk/online/online.jsonl")
    kept = journal.read_bytes()
    assert kept
    journal.unlink()
    assert "lacks answers that earlier epochs were trained on" in " ".join(icdsel(*ONLINE, code=2).split())
    journal.write_bytes(kept)
    icdsel(*ONLINE)


def test_a_half_made_file_is_not_completed_with_something_else(copy: Path):
    whole = copy / "results/set/generated_data/rl_data_RandSampler_my-model_pool-size-8.jsonl"
    whole.rename(whole.with_name(whole.name + ".part"))
    repaint(3)
    assert "dataset (the training examples" in icdsel(*SCORE, code=2)


def test_damaged_data_are_repaired_by_the_documented_remedy(copy: Path):
    """What hours of scoring have made is not lost with the end of a file."""
    path = copy / "results/set/generated_data/rl_data_RandSampler_my-model_pool-size-8.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    count = len(whole.splitlines())
    output = icdsel(
        "train", "--rce-over", "pool", *SMALL, "--rl-data", path, "--rce-epochs", 1, "--run", "mine", code=2
    )
    assert f"line {count} is damaged" in output and f"Rename it to {path.name}.part" in output
    path.rename(path.with_name(path.name + ".part"))
    icdsel(*SCORE)
    assert path.read_bytes() == whole


TRAIN = ("train", "--rce-over", "pool", *SMALL, *SCORE[-10:], "--rce-epochs", 1)


def test_a_policy_that_is_replaced_while_other_rows_are_answered(copy: Path, monkeypatch: pytest.MonkeyPatch):
    row, trained = infer._row, []

    def train_first(session, context, selector, *others):
        if not trained:
            trained.append(selector.name)
            icdsel(*TRAIN, "--run", "mine", "--rce-lr", 0.01, "--overwrite")
        return row(session, context, selector, *others)

    old = fingerprint_file(Path("results/set/model_cpk/mine/rce_epoch1.pt"))
    monkeypatch.setattr(infer, "_row", train_first)
    icdsel(*ANSWER[:-1], "random,policy")
    assert trained == ["random"]
    [side] = Path("results").rglob("policy-mine-*.meta.json")
    assert json.loads(side.read_text())["identity"]["checkpoint"] == old
    monkeypatch.setattr(infer, "_row", row)
    assert "checkpoint (the policy's checkpoint)" in icdsel(*ANSWER[:-1], "policy", code=2)


def test_a_start_that_is_replaced_while_pointers_are_scored(copy: Path, monkeypatch: pytest.MonkeyPatch):
    runs = Path("results/set/model_cpk")
    icdsel(*TRAIN, "--run", "other", "--rce-lr", 0.01)
    shutil.copy(runs / "mine/rce_epoch1.pt", "start.pt")
    score = training.generate

    def replace_it(*args, **kwargs):
        shutil.copy(runs / "other/rce_epoch1.pt", "start.pt")
        return score(*args, **kwargs)

    monkeypatch.setattr(training, "generate", replace_it)
    icdsel(*TRAIN, "--run", "meanwhile", "--init", "start.pt")
    icdsel(*TRAIN, "--run", "before", "--init", "start.pt")
    made = [runs / run for run in ("meanwhile", "before")]
    assert len({(run / "rce_epoch1.pt").read_bytes() for run in made}) == 1
    assert len({json.loads((run / "run.json").read_text())["identity"]["init"] for run in made}) == 1


def test_a_finished_run_without_its_last_checkpoint_is_trained_again(copy: Path):
    two = (*TRAIN[:-1], 2, "--run", "two")
    icdsel(*two)
    run = Path("results/set/model_cpk/two")
    before = {path.name: path.read_bytes() for path in run.glob("*epoch*")}
    last = run / "rce_epoch2.pt"
    last.unlink()
    assert "the training of run two is not finished" in icdsel(*ANSWER[:-1], "policy", "--run", "two")
    for damage in (lambda: None, lambda: last.write_bytes(last.read_bytes()[:1000])):
        damage()
        assert "its last checkpoint is missing or damaged: it is trained again" in icdsel(*two)
        assert {path.name: path.read_bytes() for path in run.glob("*epoch?.pt")} == {
            name: content for name, content in before.items() if name.endswith(".pt")
        }
    assert "is the name of a backup" in icdsel("train", "--rce-over", "pool", *SMALL, "--run", "my.old-test", code=2)


def test_a_finished_file_that_was_truncated_is_rejected(copy: Path):
    path = Path("results/set/generated_data/rl_data_RandSampler_my-model_pool-size-8.jsonl")
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    for command in (
        SCORE,
        (*TRAIN, "--run", "new"),
        ("train", "--rce-over", "pool", *SMALL, "--rl-data", path, "--run", "newer"),
    ):
        assert "holds 3 of 4 queries: it was cut. Rename it to" in " ".join(icdsel(*command, code=2).split())
    assert "holds 3 of 4 queries: it was cut." in " ".join(icdsel("convert", path, *SMALL[:2], code=2).split())
    path.write_bytes(whole + whole.splitlines(keepends=True)[-1])
    for command in (SCORE, (*TRAIN, "--run", "new")):
        assert "holds 5 of 4 queries: some are repeated. Rename it to" in " ".join(icdsel(*command, code=2).split())
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    assert "error 1 queries are missing" in " ".join(icdsel("check", path, *SMALL, code=1).split())
    path.rename(f"{path}.part")
    icdsel(*SCORE)
    assert path.read_bytes() == whole

    [answers] = Path("results").rglob("random-*.jsonl")
    whole = answers.read_bytes()
    answers.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    for command in (ANSWER, ("compare", answers)):
        output = " ".join(icdsel(*command, code=2).split())
        assert "holds 3 of 4 answers at 1 shots: it was cut. Move it away" in output
    answers.unlink()
    icdsel(*ANSWER)
    assert answers.read_bytes() == whole

    oracle = (*ANSWER[:-4], "--shots", 2, "--selector", "oracle")
    icdsel(*SCORE, "--split", "validation")
    icdsel(*oracle)
    [answers] = Path("results").rglob("oracle_*.jsonl")  # which may have fewer answers than there are queries
    answers.write_bytes(answers.read_bytes().splitlines(keepends=True)[0])
    assert "answers at 2 shots: it was cut. Move it away" in " ".join(icdsel(*oracle, code=2).split())


def test_a_record_that_no_score_can_be_read_of_is_made_again(copy: Path):
    path = Path("results/set/generated_data/rl_data_RandSampler_my-model_pool-size-8.jsonl")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    lines[1] = lines[1].replace(b"vqa_acc_score", b"vqa_Acc_score", 1)
    path.write_bytes(b"".join(lines))
    output = " ".join(icdsel(*SCORE, code=2).split())
    assert "line 2: a score is not a number" in output and f"Rename it to {path.name}.part" in output
    path.rename(f"{path}.part")
    icdsel(*SCORE)
    assert path.read_bytes() == whole


def test_a_shard_with_damaged_metadata_is_not_merged(copy: Path):
    path = Path("results/set/generated_data/rl_data_RandSampler_my-model_pool-size-8.jsonl")
    whole = path.read_bytes()
    path.unlink()
    icdsel(*SCORE, "--shard", "1/1")
    side = path.with_name("rl_data_RandSampler_my-model_pool-size-8.shard-1-of-1.meta.json")
    side.write_text(side.read_text()[:40])
    assert "is skipped, its queries are scored again" in icdsel(*SCORE)
    assert path.read_bytes() == whole

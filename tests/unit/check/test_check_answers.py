"""What `check` says about answers: by which metric they are right, and whether the VLM can say them."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from icdsel.check import answers as kinds
from icdsel.check.findings import Checked
from icdsel.check.paths import check
from icdsel.settings.loading import settings_from


def checked(folder: Path, *answers: list[str], given: dict[str, Any] | None = None, **more: Any) -> Checked:
    """A dataset of one training question per list of answers, each on its own image."""
    records = [{"answers": ["cat"] * 10, "split": "validation"}, *({"answers": each} | more for each in answers)]
    for number, record in enumerate(records):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
        records[number] = {"question_id": number, "image": f"{number}.png", "question": "What?"} | record
    path = folder / "set.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    [found] = check(settings_from(given or {}), [path])
    return found


def problems(found: Checked) -> dict[str, int]:
    return {finding.problem: finding.count for finding in found.findings}


def metric(name: str) -> dict[str, Any]:
    return {"data": {"metric": name}}


def test_a_metric_that_compares_letter_by_letter_is_named(tmp_path: Path) -> None:
    same, differing = ["Yes"] * 10, ["yes"] * 9 + ["no"]
    assert problems(checked(tmp_path, same, differing)) == {}
    found = checked(tmp_path, same, differing, given=metric("official"))
    # Also the validation question's ten "cat".
    assert problems(found) == {kinds.EXACT.problem: 2}
    assert "'yES' is wrong for 'Yes'" in " ".join(found.findings[0].examples)
    assert found.metric == "official"
    assert problems(checked(tmp_path, same, differing, given=metric("openflamingo"))) == {}


def test_the_rule_of_a_dataset_with_publications_is_not_warned_of(tmp_path: Path) -> None:
    for split in ("train", "val"):
        n = len(split)
        ids = {"question_id": n, "image_id": n}
        questions = {"questions": [ids | {"question": "What?"}]}
        annotations = {"annotations": [ids | {"answers": [{"answer": "yes"}] * 10}]}
        (tmp_path / f"v2_OpenEnded_mscoco_{split}2014_questions.json").write_text(json.dumps(questions))
        (tmp_path / f"v2_mscoco_{split}2014_annotations.json").write_text(json.dumps(annotations))
    [found] = check(settings_from({}), [tmp_path])  # the settings name another dataset: its own metric counts
    assert found.metric == "official"
    assert kinds.EXACT.problem not in problems(found)


def test_letters_are_answers_but_for_the_metrics_of_publications(tmp_path: Path) -> None:
    letters = ["A"] * 9 + ["B"]
    assert problems(checked(tmp_path, letters)) == {}
    found = problems(checked(tmp_path, letters, given=metric("openflamingo")))
    assert found == {kinds.EMPTY_ANSWERS.problem: 1}


def test_demonstrations_of_what_is_wrong_are_found(tmp_path: Path) -> None:
    stems = [{"answer": "ride", "raw_answer": "riding"}] * 10
    assert problems(checked(tmp_path, stems)) == {}  # type: ignore[arg-type]
    found = checked(tmp_path, stems, given=metric("openflamingo"))  # type: ignore[arg-type]
    assert problems(found) == {kinds.WRONG_SHOWN.problem: 1}
    assert "'riding', not 'ride', 'riding'" in found.findings[0].examples[0]


LONG = "a cat that sits on a wooden chair"


@pytest.mark.parametrize("model", ["nobody/has-this-model", "tiny-vlm"])
def test_answers_that_are_longer_than_the_vlm_may_answer_are_found(tmp_path: Path, model: str) -> None:
    found = checked(tmp_path, [LONG] * 10, ["cat"] * 5 + [LONG] * 5, given={"vlm": {"model": model}})
    [finding] = found.findings
    assert (finding.count, finding.of, finding.severity) == (1, 3, "warning")
    assert "longer than --max-new-tokens 5" in finding.problem
    if model == "tiny-vlm":  # byte-level BPE, trained on other words
        needed = int(finding.remedy.split("--max-new-tokens ")[1].split()[0])
        assert needed > 8 and "(tokens)" in finding.remedy
    else:
        assert "--max-new-tokens 8 (words: tokens are more)" in finding.remedy
        needed = 8
    enough = {"vlm": {"model": model, "max_new_tokens": needed}}
    assert problems(checked(tmp_path, [LONG] * 10, given=enough)) == {}


def test_the_tokenizer_of_a_models_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    letters = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[attr-defined]
    letters.save(str(tmp_path / "model" / "tokenizer.json"))
    given = {"vlm": {"model": str(tmp_path / "model"), "max_new_tokens": 6}}
    found = checked(tmp_path, ["seagull"] * 10, ["sheep"] * 10, given=given)
    assert problems(found) == {kinds.too_long(6, "tokens", 7).problem: 1}
    assert "--max-new-tokens 7 (tokens)" in found.findings[0].remedy

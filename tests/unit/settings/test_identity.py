import pytest

from icdsel.settings import settings_from
from icdsel.settings.identity import identity
from icdsel.settings.tables import TABLES


@pytest.mark.parametrize(
    ("table", "name", "value"),
    [
        ("train", "device", "cuda:1"),
        ("train", "tensorboard", True),
        ("train", "tracker", "wandb"),
        ("vlm", "device", "cuda:1"),
        ("vlm", "batch_tokens", 7),
        ("data", "data_dir", "elsewhere"),
        ("data", "results_dir", "elsewhere"),
    ],
)
def test_settings_that_change_no_result_are_not_part_of_the_identity(table: str, name: str, value: object) -> None:
    changed = identity(settings_from({table: {name: value}}), *TABLES)
    assert changed == identity(settings_from({}), *TABLES)
    assert f"{table}.{name}" not in changed


def test_other_settings_are_part_of_the_identity_unless_left_out() -> None:
    settings = settings_from({"train": {"rce_lr": 0.5}})
    assert identity(settings, "train")["train.rce_lr"] == 0.5
    assert "train.rce_lr" not in identity(settings, "train", leave_out=["train.rce_lr"])
    assert "train.rce_lr" not in identity(settings, "data")


def test_answers_of_candidates_count_only_if_the_policy_sees_them() -> None:
    assert "train.candidate_answers" not in identity(settings_from({}), "train")  # results are older than the setting
    assert identity(settings_from({"train": {"candidate_answers": True}}), "train")["train.candidate_answers"] is True


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("proposals.min_shots", 0),
        ("reward.price", 0.1),
        ("reward.token_price", 0.001),
        ("train.update", "residual"),
        ("train.query_tower", 64),
        ("train.stop", True),
        ("train.negatives", 64),
        ("train.rce_lr_end", 0.5),
        ("train.question_gate", 8),
    ],
)
def test_later_settings_count_only_where_they_change_something(name: str, value: object) -> None:
    table, field = name.split(".")
    assert name not in identity(settings_from({}), table)
    assert identity(settings_from({table: {field: value}}), table)[name] == value
    assert "proposals.min_shots" not in identity(settings_from({"proposals": {"shots": 3}}), "proposals")


def test_a_dataset_counts_by_its_name() -> None:
    assert identity(settings_from({"data": {"dataset": "some/folder/my.jsonl"}}), "data")["data.dataset"] == "my"

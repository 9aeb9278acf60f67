"""Which settings need the probabilities of reference answers, and what `--references` comes to."""

from dataclasses import replace

import pytest

from icdsel.errors import SettingsError
from icdsel.policy.references import references_needed_by, scores_references
from icdsel.policy.rewards import REWARD_MODES, RewardMode
from icdsel.registry import Registry
from icdsel.settings.loading import Settings, load_settings
from icdsel.tasks import TASKS

READS = {"hard01_plus_gtprob", "hard01_plus_gtprob_separated", "hard_plus_gtprob_plus_rel", "log_prob", "margin"}


def settings(references: str = "auto", mode: str = "hard_plus_soft", **data: str) -> Settings:
    return load_settings({"proposals": {"references": references}, "reward": {"mode": mode}, "data": data})


@pytest.mark.parametrize("mode", REWARD_MODES)
def test_a_reward_mode_says_whether_it_reads_them(mode: str) -> None:
    assert REWARD_MODES[mode].needs_references == (mode in READS)
    own = settings(mode=mode, task="choice") if mode == "margin" else settings(mode=mode)
    assert scores_references(own) == (mode in READS)
    assert references_needed_by(own) == (f"the reward mode {mode}" if mode in READS else None)


def test_a_margin_needs_options() -> None:
    with pytest.raises(SettingsError, match="--reward-mode margin: the task vqa has no options"):
        references_needed_by(settings(mode="margin"))


def test_neither_preset_reads_them() -> None:
    for preset in ("icdsel", "whole-set", "lever-plus"):
        assert not scores_references(settings(preset=preset))


def test_a_reward_mode_of_ones_own_needs_no_more_than_its_term(monkeypatch: pytest.MonkeyPatch) -> None:
    own = RewardMode("per-token", 1, "reference_prob_per_token")
    monkeypatch.setitem(REWARD_MODES, own.name, own)
    assert scores_references(settings(mode="per-token"))


def test_a_task_or_a_metric_may_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    vqa = TASKS["vqa"]
    reading = Registry("metric", (replace(m, needs_references=m.name == "official") for m in vqa.metrics.values()))
    with monkeypatch.context() as patch:
        patch.setattr(type(vqa), "metrics", reading)
        assert references_needed_by(settings(metric="official")) == "the metric official"
        assert references_needed_by(settings(metric="normalised")) is None
    monkeypatch.setattr(type(vqa), "needs_references", True)
    assert references_needed_by(settings()) == "the task vqa"
    both = "the reward mode hard01_plus_gtprob and the task vqa"
    assert references_needed_by(settings(mode="hard01_plus_gtprob")) == both


@pytest.mark.parametrize("exist", [None, False, True])
def test_auto_keeps_what_exists_and_adds_what_is_needed(exist: bool | None) -> None:
    assert scores_references(settings(), exist) == bool(exist)
    assert scores_references(settings(mode="hard01_plus_gtprob"), exist)
    assert scores_references(settings("labels"), exist)
    assert not scores_references(settings("none"), exist)


def test_none_where_something_needs_them_is_an_error_with_the_remedy() -> None:
    with pytest.raises(
        SettingsError, match=r"the reward mode hard01_plus_gtprob needs .* leave it out, or .* --reward"
    ):
        scores_references(settings("none", "hard01_plus_gtprob"))

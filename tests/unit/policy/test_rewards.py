import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icdsel.errors import SettingsError
from icdsel.policy.rewards import (
    NORMALIZATIONS,
    REWARD_MODES,
    fields_of,
    is_correct,
    normalize_rewards,
    pointer_reward,
    reward_of,
)
from icdsel.records import ScoredPointer
from icdsel.settings import settings_from
from icdsel.settings.tables import RewardSettings

LEVER_PLUS = json.loads((Path(__file__).parents[2] / "data" / "rewards.json").read_text(encoding="utf-8"))
WEIGHTS = ("hard_weight", "soft_weight", "rel_weight")

# Rewards as the modes make them, with ties.
groups = st.lists(st.sampled_from([0.0, 0.3, 0.6, 1.3, 1.6, 1.9, 2.0]), min_size=1, max_size=12)


@pytest.mark.parametrize("case", LEVER_PLUS)
def test_agrees_with_lever_plus(case):
    fields = dict(case["args"])
    mode = fields.pop("reward_mode")
    weights = {name: fields.pop(name) for name in WEIGHTS if name in fields}
    assert pointer_reward(fields, mode=mode, **weights) == pytest.approx(case["reward"], rel=1e-12)


@pytest.mark.parametrize(
    ("mode", "right", "wrong"),
    # right: correct 1, acc 0.6, prob 0.5, rel 0.4; wrong: correct 0, acc 0, prob 0.2, rel 0.4,
    # with the weights 0.5 (hard), 2 (soft) and 0.1 (rel).
    [
        ("hard_plus_soft", 0.5 + 1.2, 0.0),
        ("hard_plus_soft_v2", 1.0 + 1.2, 0.0),
        ("separated", 1.0 + 1.2, 0.0),
        ("hard_only", 0.5, 0.0),
        ("soft_only", 1.2, 0.0),
        ("hard01_plus_gtprob", 0.5 + 1.0, 0.4),
        ("hard01_plus_gtprob_separated", 1.0 + 1.0, 0.4),
        ("hard_plus_gtprob_plus_rel", 0.5 + 1.0, 0.4 + 0.1 * 0.4),  # relevance for wrong answers only
        ("log_prob", 2 * math.log(0.5), 2 * math.log(0.2)),
        ("margin", 2 * 0.7, 2 * -0.3),
    ],
)
def test_every_mode_by_hand(mode, right, wrong):
    weights = {"hard_weight": 0.5, "soft_weight": 2.0, "rel_weight": 0.1}
    candidate = {"vqa_correct": 1, "vqa_acc_score": 0.6, "vqa_gt_prob": 0.5, "vqa_rel_score": 0.4, "vqa_margin": 0.7}
    assert pointer_reward(candidate, mode=mode, **weights) == pytest.approx(right)
    scored = ScoredPointer((1, 2), correct=1, score=0.6, reference_prob=0.5, relevance=0.4, margin=0.7)
    assert pointer_reward(scored, mode=mode, **weights) == pytest.approx(right)
    candidate = {"vqa_correct": 0, "vqa_acc_score": 0.0, "vqa_gt_prob": 0.2, "vqa_rel_score": 0.4, "vqa_margin": -0.3}
    assert pointer_reward(candidate, mode=mode, **weights) == pytest.approx(wrong)
    scored = ScoredPointer((1, 2), correct=0, score=0.0, reference_prob=0.2, relevance=0.4, margin=-0.3)
    assert pointer_reward(scored, mode=mode, **weights) == pytest.approx(wrong)


def test_the_default_mode_on_okvqa_gives_0_or_1_3_or_more():
    # correct is 1 exactly where acc > 0, so with equal weights the default can only take these values.
    rewards = [pointer_reward({"vqa_acc_score": acc}, mode="hard_plus_soft") for acc in (0, 0.3, 0.6, 0.9, 1)]
    assert rewards == pytest.approx([0.0, 1.3, 1.6, 1.9, 2.0])


def test_every_mode_is_tested_above_and_the_default_comes_first():
    (by_hand,) = (mark for mark in test_every_mode_by_hand.pytestmark if mark.name == "parametrize")
    assert [mode for mode, _, _ in by_hand.args[1]] == list(REWARD_MODES)
    assert next(iter(REWARD_MODES)) == "hard_plus_soft"


def test_a_missing_vqa_correct_is_derived_but_none_is_0():
    assert pointer_reward({"vqa_acc_score": 0.3}, mode="hard_only") == 1.0
    assert pointer_reward({"vqa_acc_score": 0.0}, mode="hard_only") == 0.0
    assert pointer_reward({"vqa_acc_score": 0.3, "vqa_correct": None}, mode="hard_only") == 0.0
    assert pointer_reward({"vqa_acc_score": 0.3, "vqa_correct": False}, mode="hard_only") == 0.0


def test_a_probability_that_is_missing_is_the_lowest_reward_by_its_logarithm():
    assert pointer_reward({}, mode="log_prob") == pointer_reward({"vqa_gt_prob": None}, mode="log_prob") == -50.0


@pytest.mark.parametrize("mode", [mode for mode in REWARD_MODES if mode != "log_prob"])
def test_missing_fields_and_none_count_as_0(mode):
    assert pointer_reward({}, mode=mode) == 0.0
    fields = ("vqa_correct", "vqa_acc_score", "vqa_gt_prob", "vqa_rel_score")
    assert pointer_reward(dict.fromkeys(fields), mode=mode) == 0.0


def test_without_a_notion_of_correct_the_hard_term_is_0():
    scored = ScoredPointer((1, 2), score=2.5)
    assert pointer_reward(scored, mode="hard_plus_soft") == 2.5
    assert pointer_reward(scored, mode="hard_only") == 0.0
    assert not is_correct(scored)


def test_a_failed_call_has_no_reward():
    with pytest.raises(ValueError, match=r"pointer \[1, 2\] has no correct: its VLM call failed"):
        pointer_reward(ScoredPointer((1, 2), error="out of memory"), mode="hard_plus_soft")


def test_the_fields_of_a_mode_are_those_it_reads():
    assert fields_of("hard_plus_soft") == ("score",)
    assert fields_of("hard_only") == ()
    assert fields_of("hard_plus_gtprob_plus_rel") == ("reference_prob", "relevance")
    assert [name for name, mode in REWARD_MODES.items() if not mode.ignores] == ["hard_plus_gtprob_plus_rel"]


def test_rewards_are_clipped_to_5():
    candidate = {"vqa_correct": 1, "vqa_acc_score": 1.0}
    assert pointer_reward(candidate, mode="hard_plus_soft", hard_weight=100.0) == 5.0
    assert pointer_reward(candidate, mode="hard_plus_soft", hard_weight=-100.0) == -5.0


@pytest.mark.parametrize("mode", ["legacy", "hybrid"])
def test_retired_modes_name_the_one_to_use(mode):
    with pytest.raises(ValueError, match=f"{mode}.*use 'hard_plus_soft'"):
        pointer_reward({"vqa_correct": 1}, mode=mode)


def test_an_unknown_mode_lists_the_modes():
    with pytest.raises(ValueError, match=", ".join(REWARD_MODES)):
        pointer_reward({"vqa_correct": 1}, mode="hard")


@pytest.mark.parametrize("value", [math.nan, math.inf, "0.6", [1.0]])
def test_a_field_that_is_no_finite_number_is_an_error(value):
    with pytest.raises(ValueError, match="vqa_acc_score must be a finite number"):
        pointer_reward({"vqa_correct": 1, "vqa_acc_score": value}, mode="hard_plus_soft")


@given(
    st.sampled_from(list(REWARD_MODES)),
    st.fixed_dictionaries(
        {"vqa_correct": st.sampled_from([0, 1, None])},
        optional={name: st.none() | st.floats(0, 1) for name in ("vqa_acc_score", "vqa_gt_prob", "vqa_rel_score")},
    ),
)
@settings(max_examples=100, deadline=None)
def test_a_right_answer_never_earns_less_than_a_wrong_one(mode, candidate):
    wrong = pointer_reward(candidate | {"vqa_correct": 0}, mode=mode)
    right = pointer_reward(candidate | {"vqa_correct": 1}, mode=mode)
    limit = REWARD_MODES[mode].limit
    assert -limit <= wrong <= right <= limit


def test_z_scores_agree_with_lever_plus():
    # A group of Lever-Plus's own RL data (reward mode hard_plus_soft) and what its dataset makes of it.
    rewards = torch.tensor([2.0, 1.3, 2.0, 2.0, 2.0, 1.9, 2.0, 1.6])
    common, lowest = 0.572821855545044, -2.1003475189208984
    expected = torch.tensor([common, lowest, common, common, common, 0.1909404695034027, common, -0.9547032713890076])
    torch.testing.assert_close(normalize_rewards(rewards), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # mean 2, squared deviations 4 + 1 + 0 + 9 + 0 = 14, unbiased variance 14/4 = 3.5
        ("z_score", [(r - 2) / math.sqrt(3.5) for r in (0, 1, 2, 5, 2)]),
        ("z_score_clamp", [max(-1, min(1, (r - 2) / math.sqrt(3.5))) for r in (0, 1, 2, 5, 2)]),
        # ranks from the best: 5 → 0, both 2s → (1 + 2)/2, 1 → 3, 0 → 4; value 1 − 2·rank/4
        ("rank", [-1.0, -0.5, 0.25, 1.0, 0.25]),
        ("none", [0.0, 1.0, 2.0, 5.0, 2.0]),
    ],
)
def test_normalization_by_hand(method, expected):
    rewards = torch.tensor([0.0, 1.0, 2.0, 5.0, 2.0])
    actual = normalize_rewards(rewards, method, clamp=1.0)
    torch.testing.assert_close(actual, torch.tensor(expected))


def test_an_outlier_is_clamped_at_3_by_default():
    # One 1 among n − 1 zeros has the z-score (n − 1)/√n: 4.13 for n = 19.
    rewards = torch.tensor([1.0] + [0.0] * 18)
    assert normalize_rewards(rewards, "z_score")[0].item() == pytest.approx(18 / math.sqrt(19))
    assert normalize_rewards(rewards)[0].item() == 3.0


@pytest.mark.parametrize("method", NORMALIZATIONS)
@pytest.mark.parametrize("rewards", [[1.6], [0.0, 0.0], [0.3] * 6, [1.3] * 7, [2.0] * 15])
def test_groups_without_a_signal_are_returned_unchanged(method, rewards):
    # torch's float32 std of six times 0.3 is 3e-8, not 0: the group must count as equal all the same.
    group = torch.tensor(rewards)
    torch.testing.assert_close(normalize_rewards(group, method), group, rtol=0, atol=0)


@pytest.mark.parametrize("method", NORMALIZATIONS)
def test_differences_of_rounding_are_no_signal(method):
    # VQA accuracy depends on the order of the answers in its last bit.
    group = torch.tensor([0.9, 0.8999999999999998, 0.9], dtype=torch.float64)
    torch.testing.assert_close(normalize_rewards(group, method), group, rtol=0, atol=0)


@pytest.mark.parametrize("method", NORMALIZATIONS)
def test_masked_rewards_are_ignored_and_become_0(method):
    rewards = torch.tensor([0.0, math.nan, 1.0, math.inf, 2.0, 7.0])
    mask = torch.tensor([True, False, True, False, True, False])
    normalized = normalize_rewards(rewards, method, mask=mask)
    torch.testing.assert_close(normalized[mask], normalize_rewards(rewards[mask], method))
    assert normalized[~mask].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("method", NORMALIZATIONS)
def test_nothing_to_normalize(method):
    assert normalize_rewards(torch.empty(0), method).shape == (0,)
    nothing_counts = torch.zeros(2, dtype=torch.bool)
    assert normalize_rewards(torch.tensor([1.0, math.nan]), method, mask=nothing_counts).tolist() == [
        0.0,
        0.0,
    ]


def test_integers_become_floats_and_the_input_is_unchanged():
    rewards = torch.tensor([0, 1, 2])
    assert normalize_rewards(rewards).tolist() == [-1.0, 0.0, 1.0]
    assert rewards.tolist() == [0, 1, 2]
    unchanged = torch.tensor([0.0, 1.0])
    normalize_rewards(unchanged, "none")[0] = 9.0
    assert unchanged.tolist() == [0.0, 1.0]


def test_bad_arguments_are_errors():
    rewards = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match="z_score_clamp, z_score, rank, none"):
        normalize_rewards(rewards, "minmax")
    with pytest.raises(ValueError, match="shape"):
        normalize_rewards(rewards[None])
    with pytest.raises(ValueError, match="shape"):
        normalize_rewards(rewards, mask=torch.tensor([True]))
    with pytest.raises(ValueError, match="not finite"):
        normalize_rewards(torch.tensor([0.0, math.nan]))


@given(groups, st.sampled_from(list(NORMALIZATIONS)))
@settings(max_examples=150, deadline=None)
def test_normalization_is_finite_and_keeps_order_and_ties(values, method):
    rewards = torch.tensor(values)
    normalized = normalize_rewards(rewards, method)
    assert normalized.isfinite().all()
    differences = rewards[:, None] - rewards[None, :]
    normalized_differences = normalized[:, None] - normalized[None, :]
    assert torch.equal(torch.sign(differences), torch.sign(normalized_differences))


@given(groups, st.randoms(use_true_random=False), st.sampled_from(list(NORMALIZATIONS)))
@settings(max_examples=100, deadline=None)
def test_normalization_does_not_depend_on_the_order_of_pointers(values, random, method):
    order = random.sample(range(len(values)), len(values))
    rewards = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(normalize_rewards(rewards[order], method), normalize_rewards(rewards, method)[order])


@given(groups.filter(lambda values: len(set(values)) > 1))
@settings(max_examples=100, deadline=None)
def test_z_scores_have_mean_0_and_unbiased_std_1_and_ranks_mean_0(values):
    rewards = torch.tensor(values, dtype=torch.float64)
    z_scores = normalize_rewards(rewards, "z_score")
    assert z_scores.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert z_scores.std().item() == pytest.approx(1.0)
    ranks = normalize_rewards(rewards, "rank")
    assert ranks.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert ranks.abs().max() <= 1.0


# --- prices -----------------------------------------------------------------------------------------------


def test_icds_and_tokens_cost_what_the_settings_say():
    right = ScoredPointer((5, 6), correct=1, score=1.0, prompt_tokens=300)
    alone = ScoredPointer((), correct=1, score=1.0, prompt_tokens=100)
    for prices, rewards in (
        (RewardSettings(), (2.0, 2.0)),
        (RewardSettings(price=0.25), (1.5, 2.0)),
        (RewardSettings(token_price=0.001), (1.7, 1.9)),
        (RewardSettings(price=0.25, token_price=0.001), (1.2, 1.9)),
    ):
        assert (reward_of(right, prices), reward_of(alone, prices)) == pytest.approx(rewards)
        assert reward_of(right.to_json(), prices) == pytest.approx(rewards[0])


@pytest.mark.parametrize("flag", ["price", "token_price"])
def test_a_negative_price_is_rejected(flag):
    with pytest.raises(SettingsError, match=f"--{flag.replace('_', '-')}.*greater than or equal to 0, got -1"):
        settings_from({"reward": {flag: -1}})

"""What `compare --train` makes of the variants that are named."""

import pytest

from icdsel.errors import SettingsError
from icdsel.experiments.variants import answering, baselines, plan_experiments
from icdsel.settings.loading import Settings, load_settings, with_values
from icdsel.settings.presets import RECIPES


@pytest.fixture
def settings() -> Settings:
    return load_settings({"data": {"seed": 7}})


def changes(settings: Settings, variant: str) -> dict[str, object]:
    """What a variant's run changes of the settings of training and reward."""
    [experiment] = plan_experiments(settings, variant, 1)
    return {
        f"{table}.{name}": value
        for table in ("train", "reward")
        for name, value in getattr(experiment.settings, table)
        if value != getattr(getattr(settings, table), name)
    }


@pytest.mark.parametrize(
    ("variant", "changed"),
    [
        ("rce", {}),
        ("rce-normalized", {"rce_normalized_reward": True}),
        ("grpo", {"grpo_epochs": 3}),
        ("grpo-frozen", {"grpo_epochs": 3, "freeze_backbone": True}),
        (
            "rce-normalized+grpo-frozen",
            {"rce_normalized_reward": True, "grpo_epochs": 3, "freeze_backbone": True},
        ),
        ("rce_lr=1e-3", {"rce_lr": 1e-3}),
        ("train.rce-lr = 1e-3", {"rce_lr": 1e-3}),
        ("clip_epsilon=1e+1+grpo", {"clip_epsilon": 10.0, "grpo_epochs": 3}),
        ("grpo_epochs=5+grpo-frozen", {"grpo_epochs": 5, "freeze_backbone": True}),
    ],
)
def test_what_a_variant_changes(settings: Settings, variant: str, changed: dict[str, object]) -> None:
    assert changes(settings, variant) == {f"train.{name}": value for name, value in changed.items()}


def test_settings_of_the_reward_can_vary_and_those_of_the_data_cannot(settings: Settings) -> None:
    assert changes(settings, "reward.hard_weight=2") == {"reward.hard_weight": 2.0}
    for variant in (
        "data.seed=1",
        "vlm.num_beams=3",
        "proposals.beam=2",
        "train_seed=3",
        "tensorboard=true",
        "infer.n=5",
    ):
        with pytest.raises(SettingsError, match="cannot differ between the variants"):
            plan_experiments(settings, variant, 1)


def test_a_recipe_brings_its_own_network_and_what_was_set_otherwise_stays(settings: Settings) -> None:
    other = with_values(settings, {"train": {"dropout": 0.3}})
    trained = plan_experiments(other, "recipe=lever-plus", 1)[0].settings.train
    theirs = RECIPES["lever-plus"]
    assert (trained.gate, trained.num_heads, trained.tower, trained.rce_over) == (
        theirs.gate,
        theirs.num_heads,
        0,
        "pool",
    )
    assert trained.dropout == 0.3


def test_seeds_go_on_from_the_settings_own_and_each_has_a_run_of_its_own(settings: Settings) -> None:
    planned = plan_experiments(settings, "rce,grpo", 3)
    assert [str(experiment) for experiment in planned] == [
        *("rce, seed 7", "grpo, seed 7"),
        *("rce, seed 8", "grpo, seed 8"),
        *("rce, seed 9", "grpo, seed 9"),
    ]
    # The first seed is the settings' own: a run that `icdsel train` made before is this one.
    assert [experiment.settings.train.train_seed for experiment in planned] == [None, None, 8, 8, 9, 9]
    name = "v3_RandSampler_tiny-vlm"
    assert [experiment.run for experiment in planned][:4] == [
        name,
        f"{name}_grpo-epochs-3",
        f"{name}_train-seed-8",
        f"{name}_grpo-epochs-3_train-seed-8",
    ]
    assert len({experiment.run for experiment in planned}) == 6
    [first, second] = plan_experiments(with_values(settings, {"train": {"train_seed": 20}}), "rce", 2)
    assert (first.seed, second.seed) == (20, 21)


@pytest.mark.parametrize(
    ("variants", "told"),
    [
        ("grpo-frozn", "did you mean 'grpo-frozen'?"),
        ("rce,", "there are: rce, rce-normalized, grpo, grpo-frozen"),
        ("rce+", "unknown variant ''"),
        ("rce_lr", "rce_lr=0.0001"),
        ("grpo+rce_lrr=1", "did you mean 'rce_lr'?"),
        ("rce_lr=0", "--train rce_lr=0: --rce-lr"),
        ("rce_lr=1e-3+rce_lr=1e-4", "set twice"),
        ("rce,grpo,grpo+clip_epsilon=0.2", "'grpo' and 'grpo+clip_epsilon=0.2' are the same training"),
        ("rce,rce", "the same training"),
        ("rce_epochs=0", "nothing would be trained"),
        ("init=a/x.pt,init=b/x.pt", "would be one run"),
    ],
)
def test_mistakes_are_told_by_name(settings: Settings, variants: str, told: str) -> None:
    with pytest.raises(SettingsError) as error:
        plan_experiments(settings, variants, 1)
    assert told in str(error.value)


def test_who_answers_beside_the_policies(settings: Settings) -> None:
    asked = baselines(with_values(settings, {"infer": {"selector": "oracle,policy,random", "n": 30}}))
    assert [own.infer.selector for own in asked] == [("zero-shot", "majority", "oracle")] + [("random",)] * 3
    assert [own.infer.random_seed for own in asked[1:]] == [7, 8, 9]
    assert {own.infer.n for own in asked} == {30}
    assert answering(plan_experiments(settings, "rce", 1)[0]).infer.selector == ("policy",)

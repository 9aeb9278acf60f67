"""How variants become the runs of an experiment."""

import pytest

from icdsel.errors import SettingsError
from icdsel.experiments.variants import answering, baselines, plan_experiments
from icdsel.settings import Settings, settings_from, with_values
from icdsel.settings.presets import RECIPES


@pytest.fixture
def settings() -> Settings:
    return settings_from({"data": {"seed": 7}})


def changes(settings: Settings, variant: str) -> dict[str, object]:
    """The settings of training and reward that a variant's run changes."""
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
def test_a_variant_changes_what_it_names(settings: Settings, variant: str, changed: dict[str, object]) -> None:
    assert changes(settings, variant) == {f"train.{name}": value for name, value in changed.items()}


def test_settings_of_training_and_reward_can_vary_and_shared_ones_cannot(settings: Settings) -> None:
    assert changes(settings, "reward.hard_weight=2") == {"reward.hard_weight": 2.0}
    for variant in (
        "data.seed=1",
        "vlm.num_beams=3",
        "proposals.beam=2",
        "train_seed=3",
        "tensorboard=true",
        "device=cpu",
        "infer.n=5",
    ):
        with pytest.raises(SettingsError, match="cannot differ between variants"):
            plan_experiments(settings, variant, 1)


def test_a_recipe_brings_its_own_network(settings: Settings) -> None:
    trained = plan_experiments(settings, "recipe=lever-plus", 1)[0].settings.train
    theirs = RECIPES["lever-plus"]
    assert (trained.gate, trained.num_heads, trained.tower, trained.rce_over, trained.dropout) == (
        theirs.gate,
        theirs.num_heads,
        0,
        "pool",
        theirs.dropout,
    )


@pytest.mark.parametrize("heads", [4, 1, 2])  # what the recipe icdsel has, what lever-plus has, and another
def test_a_given_value_survives_a_variant_with_another_recipe(heads: int) -> None:
    given = settings_from({"train": {"num_heads": heads, "dropout": RECIPES["icdsel"].dropout}})
    planned = plan_experiments(given, "rce,recipe=lever-plus,recipe=lever-plus+gate=true", 2)
    assert {one.settings.train.num_heads for one in planned} == {heads}
    assert {one.settings.train.dropout for one in planned} == {RECIPES["icdsel"].dropout}
    assert [one.settings.train.tower for one in planned[:3]] == [RECIPES["icdsel"].tower, 0, 0]


def test_a_variant_overrides_a_given_value() -> None:
    given = settings_from({"train": {"num_heads": 2}})
    assert plan_experiments(given, "num_heads=4", 1)[0].settings.train.num_heads == 4


def test_seeds_count_up_from_the_seed_of_the_settings_and_each_has_its_own_run(settings: Settings) -> None:
    planned = plan_experiments(settings, "rce,grpo", 3)
    assert [str(experiment) for experiment in planned] == [
        *("rce, seed 7", "grpo, seed 7"),
        *("rce, seed 8", "grpo, seed 8"),
        *("rce, seed 9", "grpo, seed 9"),
    ]
    # The first has no seed of its own, so a run of `icdsel train` is reused.
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
    ("variants", "message"),
    [
        ("grpo-frozn", "did you mean 'grpo-frozen'?"),
        ("rce,", "choose rce, rce-normalized, grpo, grpo-frozen"),
        ("rce+", "unknown variant ''"),
        ("rce_lr", "rce_lr=0.0001"),
        ("num-heads", "num_heads=4;"),
        ("grpo+rce_lrr=1", "did you mean 'rce_lr'?"),
        ("rce_lr=0", "variant rce_lr=0: --rce-lr"),
        ("rce_lr=1e-3+rce_lr=1e-4", "set twice"),
        ("rce,grpo,grpo+clip_epsilon=0.2", "'grpo' and 'grpo+clip_epsilon=0.2' are the same training"),
        ("rce,rce", "the same training"),
        ("rce_epochs=0", "nothing would be trained"),
        ("init=a/x.pt,init=b/x.pt", "would have the same run name"),
    ],
)
def test_a_mistake_is_named_with_the_variant(settings: Settings, variants: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        plan_experiments(settings, variants, 1)
    assert message in str(error.value)


def test_baselines_answer_beside_the_policies(settings: Settings) -> None:
    planned = baselines(with_values(settings, {"infer": {"selector": "oracle,policy,random", "n": 30}}))
    assert [own.infer.selector for own in planned] == [("zero-shot", "majority", "oracle")] + [("random",)] * 3
    assert [own.infer.random_seed for own in planned[1:]] == [7, 8, 9]
    assert {own.infer.n for own in planned} == {30}
    several = baselines(with_values(settings, {"infer": {"selector": "balanced-all,mmr"}}))
    assert [(own.infer.selector, own.infer.random_seed) for own in several[1:]] == [
        (("random",), 7),
        (("random",), 8),
        (("random",), 9),
        *[(("balanced-all",), seed) for seed in (7, 8, 9)],
    ]
    whole = with_values(settings, {"data": {"pool_size": "all"}, "infer": {"selector": "mmr,mmr-all,balanced-all"}})
    assert [own.infer.selector for own in baselines(whole)][:1] == [("zero-shot", "majority", "mmr")]
    assert [own.infer.selector for own in baselines(whole)][4:] == [("balanced",)] * 3
    assert answering(plan_experiments(settings, "rce", 1)[0]).infer.selector == ("policy",)

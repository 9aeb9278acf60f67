import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from icdsel.artefacts.checkpoint import load_checkpoint
from icdsel.artefacts.checkpoint_writing import save_policy
from icdsel.policy.config import PointerConfig
from icdsel.policy.groups import Groups
from icdsel.policy.loop import Epoch, Resume, train_policy
from icdsel.policy.losses import advantages
from icdsel.policy.measures import evaluate, log_probs
from icdsel.policy.network import CosineNetwork, PointerNetwork
from icdsel.policy.rewards import normalize_rewards
from icdsel.settings.tables import TrainSettings

DATA = Path(__file__).parents[2] / "data"
TRAJECTORIES = json.loads((DATA / "training_trajectories.json").read_text())
NAN = math.nan
FROZEN = ("input_proj", "tower", "query_proj", "cand_proj")
KEY_BIAS = "in_proj_bias"

State = dict[str, Tensor]


@dataclass
class Result:
    """What a training left: epochs, the weights after each of them, and the sizes of the steps."""

    epochs: list[Epoch]
    states: list[State]
    steps: list[int]

    @property
    def state(self) -> State:
        return self.states[-1]

    def metrics(self, name: str) -> list[float]:
        return [epoch.metrics[name] for epoch in self.epochs if name in epoch.metrics]


def state_of(network: PointerNetwork) -> State:
    return {name: value.clone() for name, value in network.state_dict().items()}


def run(
    network: PointerNetwork, table: Tensor, train: Groups, settings: TrainSettings, validation: Groups, **more: Any
) -> Result:
    result = Result([], [], [])

    def keep(epoch: Epoch) -> None:
        result.epochs.append(epoch)
        result.states.append(state_of(network))

    arguments = {"seed": 1, "on_epoch": keep, "on_step": result.steps.append, **more}
    train_policy(network, table, train, validation, settings, **arguments)
    return result


def made_groups(count: int, pool: int = 6, pointers: int = 4, seed: int = 0, rewards: Tensor | None = None) -> Groups:
    """Groups of two shots over a table of 40 rows; half of the groups are smaller than the others."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [pool if q % 2 else pool - 2 for q in range(count)]
    counts = [pointers if q % 2 else pointers - 1 for q in range(count)]
    raw = torch.full((count, pointers), NAN)
    normalized = raw.clone()
    chosen = torch.full((count, pointers, 2), -1)
    mask = torch.zeros(count, pool, dtype=torch.bool)
    rows = torch.zeros(count, pool, dtype=torch.long)
    for q, (size, some) in enumerate(zip(sizes, counts, strict=True)):
        mask[q, :size] = True
        rows[q, :size] = torch.randperm(40, generator=generator)[:size]
        for p in range(some):
            chosen[q, p] = torch.randperm(size, generator=generator)[:2]
        drawn = torch.tensor([0.0, 1.3, 1.6, 2.0])[torch.randperm(4, generator=generator)[:some]]
        raw[q, :some] = drawn if rewards is None else rewards[:some]
        normalized[q, :some] = normalize_rewards(raw[q, :some])
    return Groups(torch.randint(40, (count,), generator=generator), rows, mask, chosen, raw, normalized)


def made_network(seed: int = 0, **more: Any) -> PointerNetwork:
    sizes = {"hidden_dim": 8, "num_heads": 2, "tower": 16, "dropout": 0.1, "attn_dropout": 0.1} | more
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PointerNetwork(PointerConfig(6, **sizes))


TABLE = torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(9)), dim=-1)
TRAIN, VALIDATION = made_groups(8, seed=1), made_groups(5, seed=2)


# --- Lever-Plus's training, to the number ----------------------------------------------------------------------


def padded(items: list[Mapping[str, Any]]) -> Groups:
    """The parsed groups of the golden data; the pool of every query are all 60 rows."""
    count, most = len(items), max(len(item["pointers"]) for item in items)
    pointers = torch.full((count, most, 2), -1)
    raw = torch.full((count, most), NAN)
    normalized = raw.clone()
    for q, item in enumerate(items):
        some = len(item["pointers"])
        pointers[q, :some] = torch.tensor(item["pointers"])
        raw[q, :some] = torch.tensor(item["rewards_raw"])
        normalized[q, :some] = torch.tensor(item["rewards_normalized"])
    pool = torch.tensor(TRAJECTORIES["rce_raw"]["candidate_indices"]).expand(count, 60)
    query = torch.tensor([item["query_id"] for item in items])
    return Groups(query, pool, torch.ones(count, 60, dtype=torch.bool), pointers, raw, normalized)


def golden_groups() -> tuple[Groups, Groups]:
    parsed = json.loads((DATA / "rl_data_parsed.json").read_text())
    written = json.loads((DATA / "rl_data_global_pointer.json").read_text())
    validation = []
    for query in sorted(map(int, written))[-parsed["n_val"] :]:
        kept = [c for c in written[str(query)]["pointer_candidates"] if c["vqa_eval_mode"] != "fallback"]
        rewards = [c["vqa_correct"] + c["vqa_acc_score"] for c in kept]  # hard_plus_soft
        validation.append(
            {
                "query_id": query,
                "pointers": [c["pointer"] for c in kept],
                "rewards_raw": rewards,
                "rewards_normalized": rewards,  # the validation loss is of raw rewards
            }
        )
    return padded(parsed["items"]), padded(validation)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_the_recipe_lever_plus_reproduces_lever_plus(name: str) -> None:
    trajectory = TRAJECTORIES[name]
    train, validation = golden_groups()
    settings = TrainSettings(
        recipe="lever-plus",
        rce_epochs=trajectory["rce_epochs"],
        grpo_epochs=trajectory["grpo_epochs"],
        rce_lr=trajectory["rce_lr"],
        grpo_lr=trajectory["grpo_lr"],
        kl_beta=trajectory["kl_beta"],
        batch_size=trajectory["batch_size"],
        rce_normalized_reward=trajectory["rce_reward"] == "normalized",
        freeze_backbone=trajectory["freeze_backbone"],
    )
    network = PointerNetwork(PointerConfig(32, hidden_dim=16, gate=False, dropout=0.0, attn_dropout=0.0))
    network.load_state_dict({key: torch.tensor(value) for key, value in trajectory["initial_state"].items()})
    table = torch.load(DATA / "query_embeddings.pt", weights_only=True)
    result = run(network, table, train, settings, validation, shuffle=trajectory["shuffle"])

    files = [f"{epoch.phase}_epoch{epoch.number + 1}.pt" for epoch in result.epochs]
    assert sorted(files) == sorted(trajectory["checkpoints"])
    for file, epoch, state in zip(files, result.epochs, result.states, strict=True):
        expected = trajectory["checkpoints"][file]
        # The mean of normalised advantages is rounding error, of some 1e-8.
        found = {metric: epoch.metrics[metric] for metric in expected["metrics"]}
        assert found == pytest.approx(expected["metrics"], rel=1e-5, abs=1e-6)
        assert epoch.kl_beta == pytest.approx(expected["kl_beta"], rel=1e-12)
        norms = {key: value.norm().item() for key, value in state.items()}
        assert norms == pytest.approx(expected["weight_norms"], rel=1e-4)
    assert result.state.keys() == trajectory["final_state"].keys()
    for key, value in trajectory["final_state"].items():
        wanted = torch.tensor(value)
        limit = 1e-4 * max(1.0, wanted.abs().max().item())
        assert (result.state[key] - wanted).abs().max().item() <= limit, key


def test_rounding_errors_in_the_gradient_of_the_key_bias_change_nothing() -> None:
    # A key bias adds one number to all scores of a head, which the softmax takes off again: its gradient is 0.
    # Adam would turn the rounding error that autograd gives for it into steps of the size of the learning rate.
    network = made_network()
    result = run(network, TABLE, TRAIN, TrainSettings(rce_epochs=2, grpo_epochs=2, rce_lr=1e-2), VALIDATION)
    query, key, value = result.state[f"cross_attn_layers.0.{KEY_BIAS}"].chunk(3)
    assert torch.equal(key, torch.zeros(8))
    assert query.abs().max() > 1e-3 and value.abs().max() > 1e-3


# --- resuming after an interruption ------------------------------------------------------------------------


class _Killed(Exception):
    pass


@pytest.mark.parametrize("recipe", ["icdsel", "lever-plus"])
@pytest.mark.parametrize("after", range(6))
def test_a_resumed_training_gives_the_same_bits(tmp_path: Path, recipe: str, after: int) -> None:
    settings = TrainSettings(
        recipe=recipe, warm_epochs=2, rce_epochs=2, grpo_epochs=3, rce_lr=1e-3, grpo_lr=1e-3, freeze_backbone=True
    )
    warm = made_groups(6, seed=3)
    uninterrupted = run(made_network(), TABLE, TRAIN, settings, VALIDATION, warm=warm)
    assert [epoch.phase for epoch in uninterrupted.epochs] == ["warm"] * 2 + ["rce"] * 2 + ["grpo"] * 3

    network, count = made_network(), iter(range(10))

    def keep(epoch: Epoch) -> None:
        if next(count) == after:
            save_policy(
                tmp_path / "resume.pt",
                network,
                epoch=epoch.number,
                phase=epoch.phase,
                metrics={},
                kl_beta=epoch.kl_beta,
                optimizer=epoch.optimizer,
                extra=epoch.draws,
            )
            raise _Killed

    with pytest.raises(_Killed):
        run(network, TABLE, TRAIN, settings, VALIDATION, warm=warm, on_epoch=keep)
    torch.manual_seed(77)  # another process
    checkpoint = load_checkpoint(tmp_path / "resume.pt")
    resume = Resume(checkpoint.phase, checkpoint.epoch, checkpoint.kl_beta, checkpoint.optimizer, checkpoint.extra)
    again = made_network(seed=5)
    again.load_state_dict(checkpoint.network.state_dict())
    rest = run(again, TABLE, TRAIN, settings, VALIDATION, warm=warm, resume=resume)
    assert [(e.phase, e.number, e.metrics, e.kl_beta) for e in rest.epochs] == [
        (e.phase, e.number, e.metrics, e.kl_beta) for e in uninterrupted.epochs[after + 1 :]
    ]
    assert all(torch.equal(rest.state[name], uninterrupted.state[name]) for name in uninterrupted.state)


# --- what a seed decides ----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["icdsel", "lever-plus"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_same_seed_gives_the_same_weights_to_the_bit(recipe: str, batch_size: int) -> None:
    settings = TrainSettings(recipe=recipe, rce_epochs=2, grpo_epochs=2, batch_size=batch_size, rce_lr=1e-3)

    def trained(seed: int) -> State:
        return run(made_network(), TABLE, TRAIN, settings, VALIDATION, seed=seed).state

    first = trained(1)
    torch.manual_seed(123)  # whatever was drawn before plays no part
    again, other = trained(1), trained(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["query_proj.weight"], other["query_proj.weight"])


def test_the_seed_decides_the_order_of_the_queries_and_every_query_is_taken_once_an_epoch() -> None:
    settings = TrainSettings(rce_epochs=3, batch_size=3)
    network = made_network(dropout=0.0, attn_dropout=0.0)
    before = state_of(network)

    def trained(seed: int, **more: bool) -> Result:
        network.load_state_dict(before)
        return run(network, TABLE, TRAIN, settings, VALIDATION, seed=seed, **more)

    assert trained(1).steps == [3, 3, 2] * 3
    # Without dropout the order is all that the seed decides.
    assert not torch.equal(trained(1).state["query_proj.weight"], trained(2).state["query_proj.weight"])
    fixed = trained(1, shuffle=False).state["query_proj.weight"]
    assert torch.equal(fixed, trained(2, shuffle=False).state["query_proj.weight"])


def test_all_queries_in_one_batch_are_one_step_of_the_mean_loss() -> None:
    # One step at τ = 0.5 (the end of the schedule) on the mean over the queries of what each loses alone.
    network = made_network(dropout=0.0, attn_dropout=0.0)
    result = run(network, TABLE, TRAIN, TrainSettings(rce_epochs=1, batch_size=8), VALIDATION)
    alone = [
        run(
            made_network(dropout=0.0, attn_dropout=0.0), TABLE, TRAIN[q : q + 1], TrainSettings(rce_epochs=1), TRAIN
        ).metrics("rce_loss")[0]
        for q in range(8)
    ]
    assert result.steps == [8]
    assert result.metrics("rce_loss") == pytest.approx([sum(alone) / 8], rel=1e-5)


def test_padding_has_no_weight_in_a_complete_training() -> None:
    def wider(groups: Groups) -> Groups:
        """The same with two more candidates and three more pointers, all of them padding."""
        count = len(groups)
        return Groups(
            groups.query,
            torch.cat([groups.pool, torch.full((count, 2), 7)], 1),
            torch.cat([groups.mask, torch.zeros(count, 2, dtype=torch.bool)], 1),
            torch.cat([groups.pointers, torch.full((count, 3, 2), -1)], 1),
            torch.cat([groups.raw, torch.full((count, 3), NAN)], 1),
            torch.cat([groups.normalized, torch.full((count, 3), NAN)], 1),
        )

    for recipe in ("icdsel", "lever-plus"):
        settings = TrainSettings(recipe=recipe, rce_epochs=2, grpo_epochs=2, rce_lr=1e-3, grpo_lr=1e-4)
        plain, padded_too = (
            run(made_network(dropout=0.0, attn_dropout=0.0), TABLE, train, settings, validation)
            for train, validation in ((TRAIN, VALIDATION), (wider(TRAIN), wider(VALIDATION)))
        )
        for a, b in zip(plain.epochs, padded_too.epochs, strict=True):
            assert b.metrics == pytest.approx(a.metrics, rel=1e-4, abs=1e-5)
        for name, value in plain.state.items():
            torch.testing.assert_close(padded_too.state[name], value, rtol=0, atol=1e-4)


# --- RCE --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["pool", "group"])
def test_rce_learns_what_was_rewarded(over: str) -> None:
    # Of the pointers of every query the first alone is right: preferring it is all there is to learn.
    train = made_groups(8, seed=1, rewards=torch.tensor([2.0, 0.0, 0.0, 0.0]))
    settings = TrainSettings(rce_epochs=100, rce_lr=1e-2, rce_over=over)
    result = run(made_network(dropout=0.0), TABLE, train, settings, train)
    shares = result.metrics("oracle_share")
    assert shares[0] < 0.6
    assert shares[-1] > 0.9
    assert result.metrics("oracle_reward") == [2.0] * 100
    assert result.metrics("rce_loss")[-1] < 0.5 * result.metrics("rce_loss")[0]


@pytest.mark.parametrize(("size", "has_effect"), [(20, False), (200, True)])
def test_rce_over_the_group_looks_at_the_pool_only_where_little_of_it_was_scored(size: int, has_effect: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    table = torch.nn.functional.normalize(torch.randn(size, 6, generator=generator), dim=-1)
    pointers = torch.randperm(size, generator=generator)[:12].view(6, 2, 1)  # (Q, P, S)
    rewards = torch.tensor([[2.0, 0.0]] * 6)
    groups = Groups(
        torch.arange(6), torch.arange(size)[None], torch.ones(6, size, dtype=torch.bool), pointers, rewards, rewards
    )
    assert (groups.coverage < 0.05) == has_effect
    shares, states = [], []
    for weight in (0.0, 1.0):
        network, settings = made_network(), TrainSettings(rce_epochs=8, rce_lr=1e-2, rce_pool_weight=weight)
        states.append(run(network, table, groups, settings, groups).state)
        shares.append(log_probs(network, table, groups)[:, 0].exp().mean())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]) != has_effect
    assert (shares[1] > 2 * shares[0]) == has_effect  # the probability of the good pointers over the whole pool


def test_rce_weighs_by_raw_or_by_normalised_rewards() -> None:
    # One pointer is worth 2, its group's others 0. Raw weights at τ = 0.5 are softmax(4, 0, 0); normalised, the
    # same group becomes (2, -1, -1)/sqrt(3) and its weights softmax(2·2/√3, -2/√3, -2/√3). Over the group the policy is
    # renormalised over the three pointers, which adds the log of their sum to each loss.
    train = made_groups(1, seed=1, rewards=torch.tensor([2.0, 0.0, 0.0]))
    network = made_network(dropout=0.0, attn_dropout=0.0)
    losses = -log_probs(network, TABLE, train)[0, :3]  # of a pointer, the sum of its cross-entropies
    before = state_of(network)
    cases = ((False, [4.0, 0.0, 0.0]), (True, [4 / 3**0.5, -2 / 3**0.5, -2 / 3**0.5]))
    for (normalised, exponents), over in itertools.product(cases, ("pool", "group")):
        network.load_state_dict(before)
        settings = TrainSettings(rce_epochs=1, rce_normalized_reward=normalised, rce_over=over)
        result = run(network, TABLE, train, settings, VALIDATION)
        weights = torch.tensor(exponents).softmax(-1)
        expected = (weights * (losses if over == "pool" else -(-losses).log_softmax(-1))).sum().item()
        assert result.metrics("rce_loss") == pytest.approx([expected], rel=1e-5)


# --- GRPO -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["icdsel", "lever-plus"])
def test_a_frozen_backbone_stays_to_the_bit_and_the_head_moves(recipe: str) -> None:
    settings = TrainSettings(recipe=recipe, rce_epochs=1, grpo_epochs=2, freeze_backbone=True, grpo_lr=1e-3)
    network = made_network()
    start = state_of(network)
    result = run(network, TABLE, TRAIN, settings, VALIDATION)
    after_rce, end = result.states[0], result.state
    for name in end:
        moved_in_grpo = not torch.equal(after_rce[name], end[name])
        assert moved_in_grpo == (not name.startswith(FROZEN)), name
        if name.startswith(FROZEN):
            assert not torch.equal(start[name], after_rce[name])  # RCE trains all of it
    assert "query_update_gate.weight" in end  # and it moved
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_without_freezing_everything_moves() -> None:
    result = run(made_network(), TABLE, TRAIN, TrainSettings(rce_epochs=1, grpo_epochs=1), VALIDATION)
    assert not any(torch.equal(result.states[0][name], value) for name, value in result.state.items())


def test_nothing_is_learned_from_groups_without_a_signal() -> None:
    # All rewards of a query are equal, so all advantages are 0. Without a KL term the gradient is exactly 0 and
    # AdamW (weight decay 0.01) does no more than multiply the weights by 1 - lr · 0.01 at each of the 16 steps.
    flat = made_groups(8, seed=1, rewards=torch.full((4,), 1.6))
    settings = TrainSettings(rce_epochs=0, grpo_epochs=2, grpo_lr=1e-2, kl_beta=0.0)
    network = made_network()
    start = state_of(network)
    result = run(network, TABLE, flat, settings, VALIDATION)
    for name, value in result.state.items():
        torch.testing.assert_close(value, start[name] * (1 - 1e-4) ** 16, rtol=1e-5, atol=0)
    assert result.metrics("no_signal_share") == [1.0, 1.0]
    assert result.metrics("ppo_loss") == result.metrics("std_advantage") == [0.0, 0.0]
    # With signal the same settings move them.
    network.load_state_dict(start)
    learnt = run(network, TABLE, TRAIN, settings, VALIDATION).state
    assert (learnt["query_proj.weight"] - start["query_proj.weight"]).abs().max() > 0.01


def test_the_share_of_groups_without_signal_is_counted() -> None:
    # Two of eight groups say nothing.
    raw = TRAIN.raw.clone()
    raw[2:4] = torch.where(raw[2:4].isnan(), NAN, 1.3)
    train = Groups(TRAIN.query, TRAIN.pool, TRAIN.mask, TRAIN.pointers, raw, raw)
    for batch_size in (1, 2, 8):
        settings = TrainSettings(rce_epochs=0, grpo_epochs=1, batch_size=batch_size)
        assert run(made_network(), TABLE, train, settings, VALIDATION).metrics("no_signal_share") == [0.25]


def test_grpo_climbs_to_the_clip_and_no_further() -> None:
    # min(ρA, clip(ρ, 1 ± ε)A) is at most (1 + ε)A where A > 0 and (1 - ε)A where A < 0. Advantages of a group sum
    # to 0, so the policy term is at least -ε · mean |A|, and a network that can tell its groups apart gets there.
    settings = TrainSettings(rce_epochs=0, grpo_epochs=60, grpo_lr=1e-3, kl_beta=0.0, batch_size=8, clip_epsilon=0.1)
    network = made_network()
    before = evaluate(network, TABLE, TRAIN)["expected_reward"]
    result = run(network, TABLE, TRAIN, settings, TRAIN)
    spread = torch.stack([advantages(row[None])[0, ~row.isnan()].abs().mean() for row in TRAIN.normalized])
    bound = -0.1 * spread.mean().item()
    losses = result.metrics("ppo_loss")
    assert losses[0] == pytest.approx(0.0, abs=1e-6)  # all ratios are 1
    assert all(loss >= bound - 1e-6 for loss in losses)
    assert losses[-1] < 0.9 * bound
    assert result.metrics("expected_reward")[-1] > before


def test_the_recipes_take_the_old_log_probs_before_rce_or_before_grpo() -> None:
    # One query and one step of each: what the ratio of that step is relative to shows in its mean.
    train = made_groups(1, seed=1)
    network = made_network(dropout=0.0, attn_dropout=0.0)
    start = state_of(network)
    rewards = train.normalized[0, :3]
    for recipe in ("icdsel", "lever-plus"):
        network.load_state_dict(start)
        before_rce = log_probs(network, TABLE, train)[0, :3]
        settings = TrainSettings(recipe=recipe, rce_epochs=1, grpo_epochs=1, rce_lr=1e-2)
        result = run(network, TABLE, train, settings, VALIDATION)
        network.load_state_dict(result.states[0])
        before_grpo = log_probs(network, TABLE, train)[0, :3]
        ratio = 1.0 if recipe == "icdsel" else (before_grpo - before_rce).exp().mean().item()
        assert result.metrics("mean_ratio") == pytest.approx([ratio], rel=1e-5)
        if recipe == "icdsel":
            # Where all ratios are 1 the surrogate is the mean advantage, 0.
            assert result.metrics("ppo_loss") == pytest.approx([0.0], abs=1e-6)
        else:
            assert abs(ratio - 1) > 1e-2
            # Of at most three pointers Lever-Plus's cut leaves all. Advantages are z-scores of z-scores.
            advantage = (rewards - rewards.mean()) / rewards.std()
            ratios = (before_grpo - before_rce).exp()
            expected = -torch.minimum(ratios * advantage, ratios.clamp(0.8, 1.2) * advantage).mean().item()
            assert result.metrics("ppo_loss") == pytest.approx([expected], rel=1e-4)


def test_the_recipes_take_advantages_over_the_group_or_over_its_best() -> None:
    # Three of five pointers have the same best reward. Over the best three there is no advantage; in the second
    # epoch, over the best five, and over all of the group in both epochs, there is.
    raw = torch.tensor([[2.0, 0.0, 2.0, 1.3, 2.0]])
    pointers = torch.tensor([[[0, 1], [1, 0], [2, 3], [3, 4], [4, 0]]])
    train = Groups(
        torch.tensor([5]), torch.arange(10, 16)[None], torch.ones(1, 6, dtype=torch.bool), pointers, raw, raw
    )
    found = {
        recipe: run(
            made_network(),
            TABLE,
            train,
            TrainSettings(recipe=recipe, rce_epochs=0, grpo_epochs=2),
            VALIDATION,
        ).metrics("no_signal_share")
        for recipe in ("icdsel", "lever-plus")
    }
    assert found == {"icdsel": [0.0, 0.0], "lever-plus": [1.0, 0.0]}


def test_dropout_is_only_in_the_ratio_of_the_recipe_lever_plus() -> None:
    # With the same weights, the ratios are exp(0) = 1 unless dropout makes two policies of one.
    settings = {"rce_epochs": 0, "grpo_epochs": 1, "batch_size": 8}
    for recipe, equal in (("icdsel", True), ("lever-plus", False)):
        network = made_network(dropout=0.5)
        result = run(network, TABLE, TRAIN, TrainSettings(recipe=recipe, **settings), VALIDATION)
        assert (abs(result.metrics("mean_ratio")[0] - 1) < 1e-5) == equal


def test_beta_is_adapted_once_an_epoch() -> None:
    # The policy hardly moves, so that the KL stays below 0.01: β falls by 1.5 after each of three epochs of 8
    # steps, 0.15 / 1.5 = 0.1, 0.1 / 1.5, 0.1 / 2.25.
    settings = TrainSettings(rce_epochs=0, grpo_epochs=3, grpo_lr=1e-9)
    result = run(made_network(), TABLE, TRAIN, settings, VALIDATION)
    assert [epoch.kl_beta for epoch in result.epochs] == pytest.approx([0.1, 0.1 / 1.5, 0.1 / 2.25])
    # It moves far: β grows.
    settings = TrainSettings(rce_epochs=0, grpo_epochs=1, grpo_lr=1e-2)
    result = run(made_network(), TABLE, TRAIN, settings, VALIDATION)
    assert result.metrics("kl")[0] > 0.1
    assert result.epochs[0].kl_beta == pytest.approx(0.15 * 1.5)


def test_the_kl_of_an_epoch_is_that_of_its_end() -> None:
    network = made_network()
    old = log_probs(network, TABLE, TRAIN)
    settings = TrainSettings(rce_epochs=0, grpo_epochs=1, grpo_lr=1e-3)
    result = run(network, TABLE, TRAIN, settings, VALIDATION)
    # k3: the mean of x - 1 - log x, x = π_old / π_new; over a group's pointers, then over the groups.
    log_x = old - log_probs(network, TABLE, TRAIN)
    terms = torch.where(TRAIN.raw.isnan(), NAN, log_x.exp() - 1 - log_x)
    assert result.metrics("kl") == pytest.approx([terms.nanmean(-1).mean().item()], rel=1e-4)


def test_the_kl_term_is_that_of_the_recipe() -> None:
    # One query: the KL term of the second epoch's only step is that of the weights which the first epoch left.
    train = made_groups(1, seed=1)
    for recipe, sign in (("icdsel", -1), ("lever-plus", 1)):
        network = made_network(dropout=0.0, attn_dropout=0.0)
        old = log_probs(network, TABLE, train)[0, :3]
        settings = TrainSettings(recipe=recipe, rce_epochs=0, grpo_epochs=2, grpo_lr=3e-2, clip_epsilon=10)
        result = run(network, TABLE, train, settings, VALIDATION)
        network.load_state_dict(result.states[0])
        # x - 1 - log x: of x = π_old / π_new (k3), or of x = π_new / π_old (Lever-Plus).
        log_x = sign * (log_probs(network, TABLE, train)[0, :3] - old)
        divergence = (log_x.exp() - 1 - log_x).mean().item()
        assert divergence > 0.01
        assert result.metrics("kl_loss")[1] == pytest.approx(result.epochs[0].kl_beta * divergence, rel=1e-4)


def test_a_kl_weight_of_0_stays_0() -> None:
    # The rule's least β is 1e-3; a KL weight of 0 means no KL term, in the second epoch too.
    settings = TrainSettings(rce_epochs=0, grpo_epochs=3, kl_beta=0.0, grpo_lr=1e-3)
    result = run(made_network(), TABLE, TRAIN, settings, VALIDATION)
    assert [epoch.kl_beta for epoch in result.epochs] == [0.0] * 3
    assert result.metrics("kl_loss") == [0.0] * 3
    assert all(kl > 0 for kl in result.metrics("kl"))  # measured all the same


def test_phases_and_their_epochs_are_numbered() -> None:
    result = run(made_network(), TABLE, TRAIN, TrainSettings(rce_epochs=2, grpo_epochs=1), VALIDATION)
    assert [(epoch.phase, epoch.number) for epoch in result.epochs] == [("rce", 0), ("rce", 1), ("grpo", 0)]
    assert result.steps == [1] * 24
    only = run(made_network(), TABLE, TRAIN, TrainSettings(rce_epochs=0, grpo_epochs=1), VALIDATION)
    assert [epoch.phase for epoch in only.epochs] == ["grpo"]


# --- metrics ----------------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    # The cosine policy divides by 0.1: candidates whose cosines to the query (1, 0) are 0.3 + 0.1 · log w are
    # chosen with a probability proportional to w. Weights 4, 2, 1, and for the second query 4, 2 and padding:
    #     π(i, j) = w_i / W · w_j / (W - w_i)
    cosines = [0.3 + 0.1 * math.log(w) for w in (4.0, 2.0, 1.0)]
    candidates = [[c, math.sqrt(1 - c * c)] for c in cosines]
    table = torch.tensor([[1.0, 0.0], *candidates])
    raw = torch.tensor([[0.0, 2.0], [1.6, 2.0]])
    groups = Groups(
        query=torch.tensor([0, 0]),
        pool=torch.tensor([[1, 2, 3], [1, 2, 0]]),
        mask=torch.tensor([[True, True, True], [True, True, False]]),
        pointers=torch.tensor([[[1, 0], [2, 0]], [[0, 1], [1, 0]]]),
        raw=raw,
        normalized=raw,
    )
    found = evaluate(CosineNetwork(2), table, groups)
    # First query: π(1, 0) = 2/7 · 4/5 = 8/35 with reward 0, π(2, 0) = 1/7 · 4/6 = 2/21 with reward 2; the greedy
    # pointer (0, 1) was never scored. Second: π(0, 1) = 4/6 · 1 with 1.6, greedy, and π(1, 0) = 2/6 with 2.
    first = 2 * (2 / 21) / (8 / 35 + 2 / 21)
    second = (1.6 * 4 + 2.0 * 2) / 6
    # The loss weighs -log π by softmax(r): (1, e²) / (1 + e²) and (e^1.6, e²) / (e^1.6 + e²).
    loss_1 = -(math.log(8 / 35) + math.e**2 * math.log(2 / 21)) / (1 + math.e**2)
    loss_2 = -(math.e**1.6 * math.log(4 / 6) + math.e**2 * math.log(2 / 6)) / (math.e**1.6 + math.e**2)
    assert found == pytest.approx(
        {
            "val_loss": (loss_1 + loss_2) / 2,
            "expected_reward": (first + second) / 2,
            "oracle_reward": 2.0,
            "oracle_share": (first + second) / 4,
            "greedy_reward": 1.6,
            "greedy_known": 0.5,
        },
        rel=1e-5,
    )


def test_metrics_do_not_depend_on_dropout_or_on_other_queries() -> None:
    network = made_network(dropout=0.5).train()
    together = evaluate(network, TABLE, VALIDATION)
    assert evaluate(network, TABLE, VALIDATION) == together
    each = [evaluate(network, TABLE, VALIDATION[q : q + 1]) for q in range(len(VALIDATION))]
    for name in ("val_loss", "expected_reward", "oracle_reward", "greedy_known"):
        assert together[name] == pytest.approx(sum(one[name] for one in each) / len(each), rel=1e-5)


def test_metrics_of_many_queries_are_computed_in_parts() -> None:
    # 300 queries are more than are evaluated at once: twice the same 150 must give what 150 give.
    half = made_groups(150, seed=3)
    twice = half[torch.arange(300) % 150]
    network = made_network()
    assert evaluate(network, TABLE, twice) == pytest.approx(evaluate(network, TABLE, half), rel=1e-5)
    assert torch.allclose(log_probs(network, TABLE, twice)[150:], log_probs(network, TABLE, half), atol=1e-5)


def test_without_any_reward_the_share_is_0() -> None:
    nothing = made_groups(3, rewards=torch.zeros(4))
    found = evaluate(made_network(), TABLE, nothing)
    assert (found["expected_reward"], found["oracle_reward"], found["oracle_share"]) == (0.0, 0.0, 0.0)

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from icdsel.policy.config import PointerConfig
from icdsel.policy.losses import (
    BEST_TEMPERATURE,
    ROBUSTNESS,
    adapt_kl_beta,
    advantages,
    grpo_loss,
    rce_loss,
    rce_temperature,
)
from icdsel.policy.network import PointerNetwork

DATA = Path(__file__).parents[2] / "data"
CASES = [
    pytest.param(case, id=f"{name}-{number}")
    for name in ("pointer_cases", "pointer_cases_gated")
    for number, case in enumerate(json.loads((DATA / f"{name}.json").read_text()))
]
NAN = math.nan


def golden_policy(case: dict) -> PointerNetwork:
    config = case["config"]
    state = {name: torch.tensor(value) for name, value in case["state"].items()}
    policy = PointerNetwork(
        PointerConfig(
            d_model=config["d"],
            hidden_dim=config["hid"],
            num_layers=config["layers"],
            num_heads=config["heads"],
            gate="query_update_gate.weight" in state,
        )
    )
    policy.load_state_dict(state)
    return policy.eval()


def gradient_norm(policy: PointerNetwork, loss: Tensor) -> float:
    policy.zero_grad()
    loss.backward()
    # A gate has no gradient where a single shot follows no choice.
    return torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm().item()


# --- Lever-Plus's numbers ------------------------------------------------------------------------------------

# Lever-Plus encodes a query once per pointer, this package once: in float32 its log-probs and ours round
# differently, by some 1e-6, and a GRPO loss is a small difference of terms around 1.
ROUNDING = 1e-6


@pytest.mark.parametrize("case", CASES)
def test_rce_reproduces_lever_plus(case: dict) -> None:
    policy = golden_policy(case)
    query, candidates = torch.tensor(case["query"]), torch.tensor(case["candidates"])
    pointers, rewards = torch.tensor(case["pointers"]), torch.tensor(case["rewards"])
    for expected in case["rce"]:
        logits = policy.step_logits(query, candidates, pointers)
        loss = rce_loss(logits, pointers, rewards, expected["temperature"], case["config"]["ls"])
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
        assert gradient_norm(policy, loss) == pytest.approx(expected["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_grpo_reproduces_lever_plus(case: dict) -> None:
    policy = golden_policy(case)
    query, candidates = torch.tensor(case["query"]), torch.tensor(case["candidates"])
    pointers, rewards = torch.tensor(case["pointers"]), torch.tensor(case["rewards"])
    old = torch.tensor(case["old_log_probs"])
    torch.testing.assert_close(advantages(rewards), torch.tensor(case["advantages"]), rtol=1e-5, atol=1e-6)
    for expected in case["grpo"]:
        loss, report = grpo_loss(
            policy.log_prob(query, candidates, pointers),
            old,
            rewards,
            clip_epsilon=expected["clip_epsilon"],
            kl_beta=expected["kl_beta"],
            top_k=expected["top_k"],
            kl="seed",
        )
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-5, abs=ROUNDING)
        for name in ("ppo_loss", "kl_loss", "kl", "mean_ratio", "std_advantage", "max_advantage"):
            assert report[name].item() == pytest.approx(expected[name], rel=1e-5, abs=ROUNDING), name
        assert report["mean_advantage"].item() == pytest.approx(expected["mean_advantage"], abs=1e-6)
        assert report["no_signal_share"].item() == 0
        assert gradient_norm(policy, loss) == pytest.approx(expected["grad_norm"], rel=1e-5)


def test_schedules_reproduce_lever_plus() -> None:
    schedules = json.loads((DATA / "schedules.json").read_text())
    for step, total, temperature in schedules["rce_temperature"]:
        assert rce_temperature(step, total) == pytest.approx(temperature, rel=1e-12)
    for kl, before, after in schedules["kl_beta"]:
        assert adapt_kl_beta(before, kl) == pytest.approx(after, rel=1e-12)


# --- RCE in closed form -----------------------------------------------------------------------------------


def test_rce_of_one_pointer_is_its_cross_entropy() -> None:
    # Logits (log 2, 0, 0) give probabilities 1/2, 1/4, 1/4; with one pointer its weight is 1 whatever its
    # reward. Two such steps, labels 0 and 2: log 2 + log 4 = 3 log 2.
    logits = torch.tensor([math.log(2), 0.0, 0.0]).expand(1, 1, 2, 3)
    loss = rce_loss(logits, torch.tensor([[[0, 2]]]), torch.tensor([[-7.0]]), 0.5)
    assert loss.item() == pytest.approx(3 * math.log(2))


def test_rce_weighs_by_a_softmax_of_rewards() -> None:
    # Rewards τ·log 3 and 0 weigh 3/4 and 1/4. Pointers (0) and (1) under probabilities 1/2 and 1/4 cost log 2
    # and log 4: 3/4·log 2 + 1/4·2 log 2 = 5/4·log 2.
    logits = torch.tensor([math.log(2), 0.0, 0.0]).expand(1, 2, 1, 3)
    loss = rce_loss(logits, torch.tensor([[[0], [1]]]), torch.tensor([[2 * math.log(3), 0.0]]), 2.0)
    assert loss.item() == pytest.approx(1.25 * math.log(2))


def test_rce_gradient_is_the_weighted_error() -> None:
    # d CE / d logits = softmax - onehot; both pointers weigh 1/2.
    logits = torch.zeros(1, 2, 1, 2, requires_grad=True)
    rce_loss(logits, torch.tensor([[[0], [1]]]), torch.tensor([[1.0, 1.0]]), 1.0).backward()
    expected = torch.tensor([[[[-0.25, 0.25]], [[0.25, -0.25]]]])
    torch.testing.assert_close(logits.grad, expected)


def test_rce_label_smoothing() -> None:
    # Target 0.9 + 0.1/3 on the label and 0.1/3 on the two others; costs log 2, log 4, log 4. A fourth, masked
    # candidate takes no part in it.
    logits = torch.tensor([math.log(2), 0.0, 0.0, -torch.inf]).expand(1, 1, 1, 4)
    loss = rce_loss(logits, torch.tensor([[[0]]]), torch.tensor([[1.0]]), 1.0, label_smoothing=0.1)
    assert loss.item() == pytest.approx((0.9 + 0.1 / 3) * math.log(2) + 2 * (0.1 / 3) * math.log(4))


def test_rce_takes_a_temperature_on_the_device() -> None:
    logits, pointers = torch.randn(1, 3, 2, 4), torch.tensor([[[0, 1], [2, 3], [1, 0]]])
    rewards = torch.tensor([[1.0, 0.0, 2.0]])
    as_tensor = rce_loss(logits, pointers, rewards, torch.tensor(0.7))
    assert as_tensor.item() == pytest.approx(rce_loss(logits, pointers, rewards, 0.7).item())


def test_rce_over_the_group_asks_only_for_the_better_pointer() -> None:
    # Probabilities 1/2, 1/4, 1/4 in the pool; of the scored pointers (0) and (1) the policy takes 2/3 and 1/3. With
    # weights 3/4 and 1/4 the loss is 3/4·log(3/2) + 1/4·log 3; candidate 2, which was not scored, takes no part in it.
    logits = torch.tensor([math.log(2), 0.0, 0.0]).repeat(1, 2, 1, 1).requires_grad_()
    rewards = torch.tensor([[2 * math.log(3), 0.0]])
    loss = rce_loss(logits, torch.tensor([[[0], [1]]]), rewards, 2.0, over="group")
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(3))
    # d loss / d log π_i is the policy's share less the weight, ∓1/12; over the pool's softmax the unscored candidate
    # gets the shares' sum, 0.
    loss.backward()
    gradient = logits.grad.sum(1)  # the two pointers share the logits
    torch.testing.assert_close(gradient[0, 0], torch.tensor([-1 / 12, 1 / 12, 0.0]))


def test_rce_over_the_group_smooths_over_the_group() -> None:
    logits = torch.tensor([math.log(2), 0.0, 0.0]).expand(1, 2, 1, 3)
    rewards = torch.tensor([[2 * math.log(3), 0.0]])
    loss = rce_loss(logits, torch.tensor([[[0], [1]]]), rewards, 2.0, label_smoothing=0.2, over="group")
    assert loss.item() == pytest.approx((0.6 + 0.1) * math.log(1.5) + (0.2 + 0.1) * math.log(3))


def test_rce_over_the_group_leaves_out_groups_without_signal() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 3, 2, 4, generator=generator)
    pointers = torch.tensor([[[0, 1], [2, 3], [-1, -1]]]).repeat(3, 1, 1)
    rewards = torch.tensor([[1.0, 0.0, NAN], [0.5, 0.5, NAN], [1.0, NAN, NAN]])
    pointers[2, 1] = -1  # one pointer alone
    alone = rce_loss(logits[:1], pointers[:1], rewards[:1], 0.5, over="group")
    assert alone > 0
    assert rce_loss(logits, pointers, rewards, 0.5, over="group").item() == pytest.approx(alone.item())
    assert rce_loss(logits[1:], pointers[1:], rewards[1:], 0.5, over="group").item() == 0


# --- advantages in closed form ----------------------------------------------------------------------------


def test_advantage_by_hand() -> None:
    # Mean 1; the unbiased variance of (0, 2, 1) is (1 + 1 + 0) / 2 = 1.
    torch.testing.assert_close(advantages(torch.tensor([[0.0, 2.0, 1.0]])), torch.tensor([[-1.0, 1.0, 0.0]]))


def test_advantage_floor_and_clamp() -> None:
    # Deviation 0.01·√2 < 0.1: the floor divides ±0.01 into ±0.1.
    torch.testing.assert_close(advantages(torch.tensor([[0.0, 0.02]])), torch.tensor([[-0.1, 0.1]]))
    # 0 a hundred times and 1 once: the last is (1 - 1/101) / (1/√101) = 9.95 deviations off, clamped to 5.
    rewards = torch.cat([torch.zeros(1, 100), torch.ones(1, 1)], dim=1)
    assert advantages(rewards)[0, -1].item() == 5


def test_advantage_of_the_top_k() -> None:
    # The mean of (2, 1) is 1.5 and their deviation √(1/2): ±0.5·√2; at ratio 1 the gradient is -A/2, and the
    # others have none. The mean of all of the group would be 0.
    log_prob = torch.zeros(1, 4, requires_grad=True)
    rewards = torch.tensor([[0.0, 2.0, -3.0, 1.0]])
    loss, report = grpo_loss(log_prob, torch.zeros(1, 4), rewards, kl_beta=1.0, top_k=2)
    loss.backward()
    half = math.sqrt(0.5) / 2
    torch.testing.assert_close(log_prob.grad, torch.tensor([[0.0, -half, 0.0, half]]))
    assert report["max_advantage"].item() == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("row", [[1.6] * 3, [2.0], [1.6, 1.6, NAN], [2.0, NAN], [NAN, NAN]])
def test_no_signal_no_advantage(row: list[float]) -> None:
    # 1.6 has no exact float: a computed mean of equal rewards need not equal them, the advantage must be 0.
    assert advantages(torch.tensor([row])).tolist() == [[0.0] * len(row)]


def test_the_floor_sees_raw_rewards() -> None:
    # Two groups of the same z-scores: one of a spread of 1, the other of rounding errors.
    raw = torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.5 + 6e-8, 0.5 + 12e-8]])
    z_scores = torch.tensor([[-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]])
    found = advantages(z_scores, raw_rewards=raw)
    torch.testing.assert_close(found[0], advantages(z_scores)[0], rtol=0, atol=0)
    assert 0 < found[1].abs().max() < 1e-5
    log_prob = torch.zeros(2, 3, requires_grad=True)
    grpo_loss(log_prob, torch.zeros(2, 3), z_scores, kl_beta=0.0, raw_rewards=raw)[0].backward()
    assert log_prob.grad[1].abs().max() < 1e-5 < log_prob.grad[0].abs().max()


def test_a_spread_at_half_the_floor_counts_half() -> None:
    raw = torch.tensor([[0.0, 0.05, 0.1]])  # its standard deviation is 0.05
    z_scores = torch.tensor([[-1.0, 0.0, 1.0]])
    torch.testing.assert_close(advantages(z_scores, raw_rewards=raw), torch.tensor([[-0.5, 0.0, 0.5]]))
    # so do raw rewards themselves, which have the floor without being told
    torch.testing.assert_close(advantages(raw, raw_rewards=raw), advantages(raw))


def test_rewards_below_the_smallest_square_have_no_advantage() -> None:
    raw = torch.tensor([[0.0, 1e-30]])
    assert advantages(raw, raw_rewards=raw).abs().max() < 1e-20


def test_rce_over_the_group_hardly_learns_from_rounding_errors() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0]).repeat(2, 3, 1, 1)  # (B, P, S, K)
    logits.requires_grad_(True)
    pointers = torch.tensor([[[0], [1], [2]]] * 2)
    rewards = torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.5 + 6e-8, 0.5 + 12e-8]])
    rce_loss(logits, pointers, rewards, 1.0, over="group").backward()
    assert logits.grad[1].abs().max() < 1e-5 < logits.grad[0].abs().max()


def test_the_pool_term_by_hand() -> None:
    # Three candidates, two scored pointers of one ICD: v = (1, 0). The term is -log of the first one's probability.
    logits = torch.tensor([0.5, 1.0, 3.0]).repeat(1, 2, 1, 1).requires_grad_(True)  # (B, P, S, K)
    pointers, rewards = torch.tensor([[[0], [1]]]), torch.tensor([[1.6, 0.3]])
    without = rce_loss(logits, pointers, rewards, 1.0, over="group")
    with_term = rce_loss(logits, pointers, rewards, 1.0, over="group", pool_weight=0.5)
    expected = -0.5 * logits.detach()[0, 0, 0].log_softmax(-1)[0]
    assert (with_term - without).item() == pytest.approx(expected.item(), rel=1e-5)
    # The group alone says nothing about the third candidate, the most probable one. The term does.
    assert torch.autograd.grad(without, logits, retain_graph=True)[0].sum((1, 2))[0, 2].abs() < 1e-6
    assert torch.autograd.grad(with_term, logits)[0].sum((1, 2))[0, 2] > 0.1


def test_the_pool_term_counts_rewards_between_the_worst_and_the_best() -> None:
    logits = torch.randn(1, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    pointers, rewards = torch.tensor([[[0, 1], [1, 2], [3, 0]]]), torch.tensor([[0.0, 1.0, 2.0]])
    log_prob = logits.log_softmax(-1).gather(-1, pointers.unsqueeze(-1)).squeeze(-1).sum(-1)[0]
    term = rce_loss(logits, pointers, rewards, 1.0, over="group", pool_weight=1.0) - rce_loss(
        logits, pointers, rewards, 1.0, over="group"
    )
    torch.testing.assert_close(term, -(0.5 * log_prob[1].exp() + log_prob[2].exp()).log())


def test_the_pool_term_ignores_padding_and_groups_without_a_signal() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 3, 2, 5, generator=generator).requires_grad_(True)
    pointers = torch.tensor([[[0, 1], [1, 2], [-1, -1]], [[0, 1], [1, 2], [2, 0]], [[-1, -1]] * 3])
    rewards = torch.tensor([[0.0, 2.0, NAN], [1.6, 1.6, 1.6], [NAN, NAN, NAN]])
    loss = rce_loss(logits, pointers, rewards, 1.0, over="group", pool_weight=1.0)
    loss.backward()
    alone = rce_loss(logits[:1, :2], pointers[:1, :2], rewards[:1, :2], 1.0, over="group", pool_weight=1.0)
    torch.testing.assert_close(loss, alone)
    assert not logits.grad[1:].any() and not logits.grad[0, 2].any() and logits.grad.isfinite().all()


@pytest.mark.parametrize("kl", ["seed", "k3"])
@pytest.mark.parametrize("kl_beta", [0.0, 0.15, torch.tensor(0.0)])
@pytest.mark.parametrize("moved", [119.0, -119.0])
def test_ratios_that_overflow_leave_loss_and_gradient_finite(kl: str, kl_beta: float, moved: float) -> None:
    log_prob = torch.tensor([[moved, 0.0, 0.0], [moved, 0.0, 0.0], [moved, 0.0, 0.0]], requires_grad=True)
    # the moved pointer is the best, the worst, and one of a group without a signal
    rewards = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    loss, report = grpo_loss(log_prob, torch.zeros(3, 3), rewards, kl_beta=kl_beta, kl=kl)
    loss.backward()
    assert loss.isfinite() and log_prob.grad.isfinite().all()
    assert all(value.isfinite() for value in report.values())
    if moved > 0:
        assert log_prob.grad[1, 0] > 0  # a bad pointer that became likely is pushed down
    if kl_beta == 0.15 and (moved > 0) == (kl == "seed"):
        assert log_prob.grad[2, 0] * moved > 0  # and the KL term leads back to the reference


def test_without_weight_there_is_no_kl_term() -> None:
    log_prob = torch.tensor([[0.5, -0.5, 0.3]], requires_grad=True)
    rewards = torch.tensor([[1.0, 1.0, 1.0]])  # no signal: nothing but the KL term could move anything
    loss, report = grpo_loss(log_prob, torch.zeros(1, 3), rewards, kl_beta=0.0)
    loss.backward()
    assert loss.item() == 0 and log_prob.grad.tolist() == [[0.0, 0.0, 0.0]]
    assert report["kl"] > 0 and report["kl_loss"] == 0  # it is measured all the same


def test_top_k_takes_ties_as_torch_does_on_the_bare_row() -> None:
    row = torch.tensor([2.0, 0.0, 2.0, 2.0, 1.0, 2.0, 0.0, 2.0])
    kept = row.topk(3).indices
    spread = torch.full((1, 20), NAN)  # the same row with padding before, between and after
    places = torch.tensor([1, 2, 4, 7, 8, 11, 12, 15])
    spread[0, places] = row
    old = torch.zeros(1, 20)
    log_prob = torch.zeros(1, 20, requires_grad=True)
    grpo_loss(log_prob, old, spread, kl_beta=0.0, top_k=3)[0].backward()
    # All three rewards are 2: no signal. What was kept shows in the KL term alone, at a ratio of e.
    moved = torch.zeros(1, 20)
    moved[0, places[kept]] = 1.0
    _, report = grpo_loss(moved, old, spread, kl_beta=1.0, top_k=3)
    assert report["kl"].item() == pytest.approx(math.e - 2) and report["mean_ratio"].item() == pytest.approx(math.e)
    assert not log_prob.grad.any()


# --- GRPO on samples and scored pointers, against the exact gradient --------------------------------------


ALL_POINTERS = torch.tensor(list(itertools.permutations(range(5), 2)))  # (20, 2)


def cosine_with_the_exact_gradient(peakedness: float, by_old_policy: bool, seed: int) -> float:
    """Of one step of online GRPO, in a problem of 5 candidates and 2 shots: 6 scored pointers and 8 samples."""
    generator = torch.Generator().manual_seed(seed)
    first = (peakedness * torch.randn(5, generator=generator)).requires_grad_()
    second = (peakedness * torch.randn(5, 5, generator=generator)).requires_grad_()
    rewards = torch.tensor([0.0, 1.3, 1.6, 2.0])[torch.randint(4, (20,), generator=generator)]
    steps = second.masked_fill(torch.eye(5, dtype=torch.bool), -1e9).log_softmax(-1)
    log_prob = first.log_softmax(-1)[ALL_POINTERS[:, 0]] + steps[ALL_POINTERS[:, 0], ALL_POINTERS[:, 1]]  # (20,)
    exact = torch.autograd.grad((log_prob.exp() * rewards).sum(), [first, second], retain_graph=True)
    scored = torch.randperm(20, generator=generator)[:6]
    samples = torch.multinomial(log_prob.detach().exp(), 8, replacement=True, generator=generator)
    group = torch.cat([scored, samples]).unique()  # a pointer that was sampled twice is in the group once
    loss, _ = grpo_loss(
        log_prob[None, group], log_prob[None, group].detach(), rewards[None, group], kl_beta=0.0,
        by_old_policy=by_old_policy,
    )  # fmt: skip
    step = torch.autograd.grad(-loss, [first, second])
    flat = [torch.cat([part.flatten() for part in parts]) for parts in (exact, step)]
    return torch.nn.functional.cosine_similarity(*flat, dim=0).item()


@pytest.mark.parametrize(("peakedness", "alike", "weighted"), [(0.3, 0.69, 0.72), (1.0, 0.61, 0.82), (3.0, 0.41, 0.86)])
def test_weights_by_the_old_policy_lead_towards_the_exact_gradient(
    peakedness: float, alike: float, weighted: float
) -> None:
    # Mean cosines over 200 problems, for a flat, a usual and a peaked policy.
    found = [
        sum(cosine_with_the_exact_gradient(peakedness, by_old_policy, seed) for seed in range(200)) / 200
        for by_old_policy in (False, True)
    ]
    assert found == pytest.approx([alike, weighted], abs=0.03)


def test_weights_by_the_old_policy_are_those_of_its_probabilities() -> None:
    # π_old of 0.6 and 0.2: weights of 3/4 and 1/4 of the advantages ±1/√2, at a ratio of 1.
    old = torch.tensor([[0.6, 0.2, 1.0]]).log()
    log_prob = old.clone().requires_grad_(True)
    rewards = torch.tensor([[0.0, 1.0, NAN]])
    loss, report = grpo_loss(log_prob, old, rewards, kl_beta=0.0, by_old_policy=True)
    loss.backward()
    torch.testing.assert_close(log_prob.grad, torch.tensor([[0.75, -0.25, 0.0]]) * 0.5**0.5)
    assert loss.item() == pytest.approx(0.5 * 0.5**0.5) and report["mean_ratio"] == 1


# --- GRPO in closed form ----------------------------------------------------------------------------------


def test_grpo_policy_term_by_hand() -> None:
    # Rewards (0, 2, 1): advantages (-1, 1, 0). Ratios 2, 2, 1/2, clipped to 1.2, 1.2, 0.8:
    # min(-2, -1.2) + min(2, 1.2) + 0 = -0.8, so the term is 0.8/3. Only the first has a gradient (the second
    # is clipped, the third has advantage 0): d(-ρA/3)/d log π = 2/3.
    log_prob = torch.tensor([[0.0, 0.0, 0.0]], requires_grad=True)
    old = torch.tensor([[-math.log(2), -math.log(2), math.log(2)]])
    loss, report = grpo_loss(log_prob, old, torch.tensor([[0.0, 2.0, 1.0]]), kl_beta=0.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.8 / 3)
    torch.testing.assert_close(log_prob.grad, torch.tensor([[2 / 3, 0.0, 0.0]]))
    assert report["mean_ratio"].item() == pytest.approx(1.5)
    assert report["clipped_share"].item() == 1
    assert report["mean_advantage"].item() == pytest.approx(0, abs=1e-6)
    assert report["std_advantage"].item() == pytest.approx(1)
    assert report["max_advantage"].item() == pytest.approx(1)
    assert all(not value.requires_grad and value.dim() == 0 for value in report.values())


def test_grpo_kl_terms_by_hand() -> None:
    # One pointer twice as likely as under the reference, one half as likely.
    # seed: (2 - 1 - log 2) + (1/2 - 1 + log 2) = 1/2; k3 swaps the two: the mean is 1/4 either way.
    log_prob, old = torch.tensor([[math.log(2), -math.log(2)]]), torch.zeros(1, 2)
    rewards = torch.tensor([[1.0, 1.0]])
    for kl in ("seed", "k3"):
        _, report = grpo_loss(log_prob, old, rewards, kl_beta=0.5, kl=kl)
        assert report["kl"].item() == pytest.approx(0.25) and report["kl_loss"].item() == pytest.approx(0.125)
    # One pointer, twice as likely: seed 1 - log 2, k3 1/2 - 1 + log 2.
    values = [
        grpo_loss(log_prob[:, :1], old[:, :1], rewards[:, :1], kl_beta=1.0, kl=kl)[0].item() for kl in ("seed", "k3")
    ]
    assert values == pytest.approx([1 - math.log(2), math.log(2) - 0.5])


def test_k3_is_the_kl_divergence_on_average() -> None:
    # Under a uniform π_new over all four pointers the plain mean is the expectation, and k3 has
    # E[π_ref/π_new] - 1 - E[log π_ref - log π_new] = KL(π_new ‖ π_ref).
    new, ref = torch.full((1, 4), math.log(0.25)), torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    exact = sum(0.25 * math.log(0.25 / p) for p in (0.1, 0.2, 0.3, 0.4))
    _, report = grpo_loss(new, new, torch.ones(1, 4), kl_beta=1.0, kl="k3", ref_log_prob=ref)
    assert report["kl"].item() == pytest.approx(exact, rel=1e-5)


def test_the_reference_is_the_old_policy_by_default() -> None:
    log_prob, old, ref = (
        torch.tensor([[-1.0, -2.0]]),
        torch.tensor([[-1.5, -1.0]]),
        torch.tensor([[-3.0, -2.0]]),
    )
    rewards = torch.tensor([[0.0, 1.0]])
    for kl in ("seed", "k3"):
        default = grpo_loss(log_prob, old, rewards, kl_beta=1.0, kl=kl)[1]
        same = grpo_loss(log_prob, old, rewards, kl_beta=1.0, kl=kl, ref_log_prob=old)[1]
        other = grpo_loss(log_prob, old, rewards, kl_beta=1.0, kl=kl, ref_log_prob=ref)[1]
        assert default["kl"] == same["kl"] != other["kl"]
        assert default["ppo_loss"] == other["ppo_loss"]  # the ratio stays relative to the old policy


@pytest.mark.parametrize("kl", ["seed", "k3"])
def test_at_the_old_policy_the_loss_is_zero_with_the_advantage_as_gradient(kl: str) -> None:
    # ρ = 1: -mean(A) = 0, d loss / d log π_i = -A_i / P, and the KL term is at its minimum.
    rewards = torch.tensor([[0.0, 2.0, 1.0]])
    log_prob = torch.tensor([[-3.0, -1.0, -2.0]], requires_grad=True)
    loss, report = grpo_loss(log_prob, log_prob.detach(), rewards, kl_beta=3.0, kl=kl)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and report["clipped_share"].item() == 0
    torch.testing.assert_close(log_prob.grad, -advantages(rewards) / 3)


def test_groups_without_a_signal_do_not_dilute_the_others() -> None:
    log_prob = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    old = torch.zeros(4, 3)
    rewards = torch.tensor([[0.0, 2.0, 1.0], [1.6, 1.6, 1.6], [2.0, NAN, NAN], [NAN, NAN, NAN]])
    _, report = grpo_loss(log_prob, old, rewards, kl_beta=0.1)
    _, alone = grpo_loss(log_prob[:1], old[:1], rewards[:1], kl_beta=0.1)
    assert report["ppo_loss"].item() == pytest.approx(alone["ppo_loss"].item())
    # Equal rewards and a single pointer are without signal; a group of padding alone is no group.
    assert report["no_signal_share"].item() == pytest.approx(2 / 3)
    # The KL term is the mean over the three groups: over all of a group's pointers, signal or not.
    ratio = log_prob.exp()
    k = ratio - 1 - log_prob
    assert report["kl"].item() == pytest.approx((k[0].mean() + k[1].mean() + k[2, 0]).item() / 3, rel=1e-4)


@pytest.mark.parametrize("rewards", [[[1.0, 1.0], [2.0, NAN]], [[NAN, NAN], [NAN, NAN]]])
@pytest.mark.parametrize("top_k", [None, 1])
def test_nothing_to_learn_gives_no_nan(rewards: list[list[float]], top_k: int | None) -> None:
    log_prob = torch.zeros(2, 2, requires_grad=True)
    loss, report = grpo_loss(log_prob, torch.zeros(2, 2), torch.tensor(rewards), kl_beta=0.1, top_k=top_k)
    loss.backward()
    assert loss.item() == 0 and not log_prob.grad.any()
    assert all(value.isfinite() for value in report.values())


# --- padding ----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    extra=st.integers(1, 3),
    top_k=st.sampled_from([None, 1, 2, 3]),
    kl=st.sampled_from(["seed", "k3"]),
    smoothing=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**20),
)
def test_padding_has_no_weight(sizes, extra, top_k, kl, smoothing, seed) -> None:
    """A padded batch has the losses and gradients of its groups taken one by one, without padding."""
    generator = torch.Generator().manual_seed(seed)
    batch, width = len(sizes), max(sizes) + extra
    policy = PointerNetwork(PointerConfig(d_model=4, hidden_dim=4)).eval()
    query = torch.randn(batch, 4, generator=generator)
    candidates = torch.randn(batch, 6, 4, generator=generator)
    pointers = torch.rand(batch, width, 6, generator=generator).argsort(-1)[..., :2]
    rewards = torch.randint(0, 4, (batch, width), generator=generator) * 0.5
    old = policy.log_prob(query, candidates, pointers).detach()
    old += torch.randn(batch, width, generator=generator) * 0.3
    for b, size in enumerate(sizes):
        pointers[b, size:], rewards[b, size:], old[b, size:] = -1, NAN, NAN

    def results(rows: slice, columns: slice) -> tuple[Tensor, Tensor, list[Tensor]]:
        policy.zero_grad()
        logits = policy.step_logits(query[rows], candidates[rows], pointers[rows, columns])
        rce = rce_loss(logits, pointers[rows, columns], rewards[rows, columns], 0.7, smoothing)
        log_prob = policy.log_prob(query[rows], candidates[rows], pointers[rows, columns])
        grpo, report = grpo_loss(log_prob, old[rows, columns], rewards[rows, columns], kl_beta=0.3, top_k=top_k, kl=kl)
        (rce + grpo).backward()
        return rce.detach(), report, [p.grad.clone() for p in policy.parameters()]

    rce, report, gradients = results(slice(0, batch), slice(0, width))
    alone = [results(slice(b, b + 1), slice(0, size)) for b, size in enumerate(sizes)]
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(rce, torch.stack([a[0] for a in alone]).mean(), **close)
    torch.testing.assert_close(report["kl"], torch.stack([a[1]["kl"] for a in alone]).mean(), **close)
    signal = [a[1]["ppo_loss"] for a in alone if a[1]["no_signal_share"] == 0]
    expected = torch.stack(signal).mean() if signal else torch.tensor(0.0)
    torch.testing.assert_close(report["ppo_loss"], expected, **close)
    assert report["no_signal_share"].item() == pytest.approx(1 - len(signal) / batch)
    assert all(gradient.isfinite().all() for gradient in gradients)
    if len(signal) == batch:  # then both losses are plain means over the groups, and so are the gradients
        for n, gradient in enumerate(gradients):
            mean = torch.stack([a[2][n] for a in alone]).mean(0)
            torch.testing.assert_close(gradient, mean, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("over", ["pool", "group"])
def test_rce_ignores_the_values_at_padding(over: str) -> None:
    logits = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    pointers = torch.tensor([[[0, 1], [2, 3], [-1, -1]], [[-1, -1]] * 3])
    logits[1] = -torch.inf  # a query without candidates
    logits.requires_grad_()
    losses = []
    for rubbish in (0.0, 1e9, NAN):
        rewards = torch.full((2, 3), rubbish)
        rewards[0, :2] = torch.tensor([1.0, 2.0])
        losses.append(rce_loss(logits, pointers, rewards, 1.0, over=over))
    assert losses[0].isfinite() and losses[0] == losses[1] == losses[2]
    losses[0].backward()
    assert logits.grad.isfinite().all() and not logits.grad[1].any() and not logits.grad[0, 2].any()


# --- rejected arguments ------------------------------------------------------------------------------------


def test_shapes_that_would_broadcast_are_rejected() -> None:
    with pytest.raises(ValueError, match="the same shape"):
        grpo_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1, 3), kl_beta=0.1)
    with pytest.raises(ValueError, match="the same shape"):
        grpo_loss(torch.zeros(1, 3), torch.zeros(1, 1), torch.zeros(1, 3), kl_beta=0.1)
    with pytest.raises(ValueError, match="step_logits"):
        rce_loss(torch.zeros(2, 3, 1, 4), torch.zeros(2, 3, 1, dtype=torch.int64), torch.zeros(2, 1), 1.0)
    with pytest.raises(ValueError, match="rewards"):
        advantages(torch.zeros(3))


def test_unknown_choices_are_rejected() -> None:
    row = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="k2"):
        grpo_loss(row, row, row, kl_beta=0.1, kl="k2")
    with pytest.raises(ValueError, match="top_k"):
        grpo_loss(row, row, row, kl_beta=0.1, top_k=0)


# --- RCE over the best ------------------------------------------------------------------------------------


def missed(log_prob: float) -> float:
    """The loss of a group whose best pointers have this log-prob: (1 - P^q) / q."""
    return (1 - math.exp(ROBUSTNESS * float(log_prob))) / ROBUSTNESS


def test_rce_over_the_best_is_less_the_likelier_one_of_them_is_found() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0, 0.0]]).log_softmax(-1)  # (1, K)
    pointers = torch.tensor([[[0], [1], [2]]])  # (1, P, S)
    step_logits = logits.expand(1, 3, 1, 4).clone().requires_grad_()
    loss = rce_loss(step_logits, pointers, torch.tensor([[1.0, 0.0, 1.0]]), 1.0, over="best")
    found = math.log(logits[0, 0].exp() + logits[0, 2].exp())
    assert loss.item() == pytest.approx(missed(found), abs=1e-5)
    priced = rce_loss(step_logits, pointers, torch.tensor([[0.9, -0.1, 1.0]]), 1.0, over="best")
    weighted = math.exp(-0.1 / BEST_TEMPERATURE) * logits[0, 0].exp() + logits[0, 2].exp()
    assert priced.item() == pytest.approx(missed(math.log(weighted)), abs=1e-5)


def test_rce_over_the_best_learns_nothing_where_nothing_was_earned() -> None:
    step_logits = torch.randn(2, 2, 2, 4, requires_grad=True)
    pointers = torch.tensor([[[0, 1], [2, -1]], [[0, 1], [-1, -1]]])
    stop_logits = torch.randn(2, 2, 2, requires_grad=True)
    rewards = torch.tensor([[-0.2, -0.1], [0.8, 0.0]])
    loss = rce_loss(step_logits, pointers, rewards, 1.0, over="best", stop_logits=stop_logits)
    loss.backward()
    assert step_logits.grad is not None and stop_logits.grad is not None
    assert not step_logits.grad[0].any() and not stop_logits.grad[0].any() and step_logits.grad[1].any()
    going_on = torch.nn.functional.logsigmoid(-stop_logits[1, 0]).sum()
    chosen = step_logits[1, 0].log_softmax(-1)
    stopped = torch.nn.functional.logsigmoid(stop_logits[1, 1, 0]) - 0.8 / BEST_TEMPERATURE
    found = torch.logaddexp(chosen[0, 0] + chosen[1, 1] + going_on, stopped)  # one pointer of two ICDs: no signal
    assert loss.item() == pytest.approx(missed(found.item()), abs=1e-5)


def test_rce_over_the_best_teaches_every_length_what_is_best_of_it() -> None:
    step_logits, stop_logits = torch.randn(1, 5, 2, 4), torch.randn(1, 5, 2)
    pointers = torch.tensor([[[0, 1], [2, 3], [1, -1], [2, -1], [-1, -1]]])
    rewards = torch.tensor([[1.8, -0.2, 1.9, -0.1, 2.0]])  # the query is best answered alone
    loss = rce_loss(step_logits, pointers, rewards, 1.0, over="best", stop_logits=stop_logits)
    chosen = step_logits[0].log_softmax(-1)  # (P, S, K)
    pair, single = chosen[0, 0, 0] + chosen[0, 1, 1], chosen[2, 0, 1]
    log_sigmoid = torch.nn.functional.logsigmoid
    all_lengths = torch.stack(
        [
            pair + log_sigmoid(-stop_logits[0, 0]).sum() - 0.2 / BEST_TEMPERATURE,
            single + log_sigmoid(-stop_logits[0, 2, 0]) + log_sigmoid(stop_logits[0, 2, 1]) - 0.1 / BEST_TEMPERATURE,
            log_sigmoid(stop_logits[0, 4, 0]),
        ]
    )
    expected = sum(missed(float(found)) for found in (all_lengths.logsumexp(0), pair, single))
    assert loss.item() == pytest.approx(expected, abs=1e-4)


def test_rce_over_the_best_gives_up_on_pointers_that_stay_improbable() -> None:
    likely, unlikely = (torch.tensor([[score, 0.0, 0.0, 0.0]]) for score in (2.0, -8.0))
    step_logits = torch.stack([likely, unlikely])[:, None].expand(2, 2, 1, 4).clone().requires_grad_()  # (B, P, S, K)
    pointers, rewards = torch.tensor([[[0], [1]]] * 2), torch.tensor([[1.0, 0.0]] * 2)
    rce_loss(step_logits, pointers, rewards, 1.0, over="best").backward()
    assert step_logits.grad is not None
    sure, accidental = step_logits.grad[:, 0, 0, 0].abs().tolist()
    assert accidental < sure / 10  # -log P would pull harder at the improbable one


def test_padding_has_no_effect_on_rce_over_the_best() -> None:
    logits, pointers = torch.randn(1, 3, 1, 4), torch.tensor([[[0], [1], [-1]]])
    rewards = torch.tensor([[1.0, 0.0, math.nan]])
    padded = rce_loss(logits, pointers, rewards, 1.0, over="best")
    assert padded == rce_loss(logits[:, :2], pointers[:, :2], rewards[:, :2], 1.0, over="best")

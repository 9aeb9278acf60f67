"""A policy that may stop: its probabilities, its choices, and what it learns from pointers of different lengths."""

import itertools
import math

import pytest
import torch
from closeness import assert_close
from torch import Tensor

from icdsel.policy.config import PointerConfig
from icdsel.policy.losses import grpo_loss, rce_loss
from icdsel.policy.network import PointerNetwork, pointer_log_prob
from icdsel.policy.stopping import restricted_log_prob, stop_log_prob, stop_loss

NAN = math.nan
SHOTS = 2


def policy(seed: int = 0, **config: object) -> PointerNetwork:
    """A policy that may stop, with weights unlike those of a new one."""
    torch.manual_seed(seed)
    network = PointerNetwork(PointerConfig(6, **{"hidden_dim": 8, "stop": True} | config)).eval()
    for name, parameter in network.named_parameters():
        if name.startswith(("stop_head", "state_update")):
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def inputs(batch: int, size: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(batch, 6), torch.randn(batch, size, 6)


def every_pointer(size: int, shots: int) -> Tensor:
    """All pointers of 0 to `shots` ICDs [P, S]."""
    found = [p for n in range(shots + 1) for p in itertools.permutations(range(size), n)]
    return torch.tensor([[*p, *[-1] * (shots - len(p))] for p in found])


# --- probabilities ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"gate": False}, {"update": "residual"}, {"num_layers": 0, "query_tower": 4}])
def test_the_probabilities_of_all_pointers_sum_to_one(config: dict) -> None:
    query, candidates = inputs(3, 4)
    pointers = every_pointer(4, SHOTS).expand(3, -1, -1)
    log_prob = policy(**config).log_prob(query, candidates, pointers)
    assert_close(log_prob.exp().sum(-1), torch.ones(3))


def test_a_pointer_ends_with_stop_unless_it_has_the_maximum_length() -> None:
    stop = torch.tensor([[[1.0, -2.0]] * 3])
    going, stopping = (torch.tensor([1.0, -2.0]).mul(sign).sigmoid().log() for sign in (-1, 1))
    found = stop_log_prob(stop, torch.tensor([[[-1, -1], [3, -1], [3, 5]]]))
    assert_close(found, torch.stack([stopping[0], going[0] + stopping[1], going.sum()])[None])


def test_stopping_does_not_depend_on_the_number_of_candidates_without_cross_attention() -> None:
    query, candidates = inputs(3, 40)
    network, empty = policy(num_layers=0), torch.full((3, 1, SHOTS), -1)
    few, many = (network.log_prob(query, pool, empty) for pool in (candidates[:, :5], candidates))
    assert torch.equal(few, many)


def test_fixed_numbers_of_shots_are_chosen_as_without_stop() -> None:
    query, candidates = inputs(5, 7)
    network = policy()
    plain = PointerNetwork(PointerConfig(6, hidden_dim=8)).eval()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("stop_head")})
    assert torch.equal(network.greedy(query, candidates, 3, fixed=True), plain.greedy(query, candidates, 3))
    for one, other in zip(
        network.beam(query, candidates, 3, 4, fixed=True), plain.beam(query, candidates, 3, 4), strict=True
    ):
        assert torch.equal(one, other)
    pointers = plain.beam(query, candidates, 3, 4)[0]
    assert torch.equal(
        network.log_prob(query, candidates, pointers, fixed=True), plain.log_prob(query, candidates, pointers)
    )
    drawn = [
        net.sample(query, candidates, 3, 4, 1.3, torch.Generator().manual_seed(3), **more)
        for net, more in ((network, {"fixed": True}), (plain, {}))
    ]
    assert all(torch.equal(*pair) for pair in zip(*drawn, strict=True))


# --- choices ----------------------------------------------------------------------------------------------


def test_a_wide_beam_finds_every_pointer_in_the_order_of_its_log_prob() -> None:
    query, candidates = inputs(3, 4)
    network, everything = policy(), every_pointer(4, SHOTS)
    pointers, log_prob = network.beam(query, candidates, SHOTS, len(everything) + 2)
    for b in range(3):
        assert {tuple(p) for p in pointers[b, :-2].tolist()} == {tuple(p) for p in everything.tolist()}
    assert (log_prob[:, -2:] == -torch.inf).all() and (log_prob.diff(dim=-1)[:, :-2] <= 1e-6).all()
    expected = network.log_prob(query, candidates, pointers[:, :-2])
    torch.testing.assert_close(log_prob[:, :-2], expected, rtol=1e-5, atol=1e-5)


def test_samples_stop_as_often_as_their_probability_says() -> None:
    query, candidates = inputs(1, 4)
    network = policy()
    pointers, log_prob = network.sample(query, candidates, SHOTS, 4000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(log_prob, network.log_prob(query, candidates, pointers), rtol=1e-4, atol=1e-5)
    everything = every_pointer(4, SHOTS)
    expected = network.log_prob(query, candidates, everything[None])[0].exp()
    found = (pointers[0][:, None] == everything).all(-1).float().mean(0)
    assert found.sum() == pytest.approx(1)  # each is a pointer: nothing follows a STOP, no ICD is repeated
    assert (found - expected).abs().max() < 0.03


@pytest.mark.parametrize("shots", [1, 3])
def test_the_offset_moves_the_point_where_the_greedy_choice_stops(shots: int) -> None:
    query, candidates = inputs(40, 5)
    network = policy()
    margin = network.stop_margin(query, candidates)
    for offset in (-100.0, -0.2, 0.0, 0.3, 100.0):
        chosen = network.greedy(query, candidates, shots, stop_offset=offset)
        assert torch.equal(chosen[:, 0] < 0, margin + offset > 0)
        ended = chosen < 0
        assert not (ended[:, :-1] & ~ended[:, 1:]).any()
    full = network.greedy(query, candidates, shots, stop_offset=-100.0)
    assert torch.equal(full, network.greedy(query, candidates, shots, fixed=True))
    assert 0 < (margin > 0).float().mean() < 1


def test_a_policy_without_stop_has_no_margin() -> None:
    with pytest.raises(ValueError, match="without STOP"):
        policy(stop=False).stop_margin(*inputs(2, 4))


# --- the restricted policy --------------------------------------------------------------------------------


def test_the_restricted_policy_gives_each_length_the_probability_of_stopping_there() -> None:
    pointers = torch.tensor([[[-1, -1], [0, 1], [2, 3], [-1, -1]]])
    real = torch.tensor([[True, True, True, False]])
    log_prob = torch.tensor([[0.0, 0.02, 0.01, 0.0]]).log().nan_to_num(neginf=0.0)  # few of thousands of pairs
    stop = torch.tensor([0.25, 0.0]).logit(eps=1e-9).expand(1, 4, 2)  # stops with 1/4, and never after one ICD
    found = restricted_log_prob(log_prob, stop, pointers, real).exp()
    assert_close(found, torch.tensor([[0.25, 0.5, 0.25, 0.0]]))
    plain = restricted_log_prob(log_prob, None, pointers, torch.tensor([[False, True, True, False]])).exp()
    assert_close(plain, torch.tensor([[0.0, 2 / 3, 1 / 3, 0.0]]))


# --- learning ---------------------------------------------------------------------------------------------

GROUP = [[-1, -1], [0, -1], [1, -1], [0, 1], [2, 3], [3, 1], [-1, -1]]  # the last one is padding


def kinds(count: int, price: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries that are better without ICDs (even ones), and queries that only the pair (2, 3) helps."""
    torch.manual_seed(2)
    query, candidates = torch.randn(count, 6) * 0.3, torch.randn(count, 5, 6)
    alone = torch.arange(count) % 2 == 0
    query[:, 0] = torch.where(alone, 2.0, -2.0)
    query[:, 1:] += 0.7 * candidates[:, 2, 1:]
    candidates[:, 3] = candidates[:, 2] + 0.2 * torch.randn(count, 6)
    rewards = torch.zeros(count, len(GROUP))
    rewards[alone, 0] = 2.0
    rewards[~alone, 4] = 2.0
    rewards -= price * (torch.tensor(GROUP) >= 0).sum(-1)
    rewards[:, -1] = NAN
    return query, candidates, rewards, alone


@pytest.mark.parametrize("over", ["group", "pool"])
@pytest.mark.parametrize("update", ["gate", "residual"])
def test_a_policy_learns_zero_for_one_kind_of_query_and_two_for_another(over: str, update: str) -> None:
    query, candidates, rewards, alone = kinds(40)
    torch.manual_seed(0)
    network = PointerNetwork(PointerConfig(6, hidden_dim=8, tower=8, dropout=0.0, update=update, stop=True)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    pointers = torch.tensor(GROUP).expand(len(query), -1, -1)
    for _ in range(120):
        steps = network.steps(query, candidates, pointers)
        loss = rce_loss(steps.choice, pointers, rewards, 0.3, over=over, stop_logits=steps.stop)  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
    shown = (network.greedy(query, candidates, SHOTS) >= 0).sum(-1)
    assert (shown[alone] == 0).float().mean() > 0.9
    assert (shown[~alone] == 2).float().mean() > 0.9
    assert (network.greedy(query, candidates, SHOTS, fixed=True) >= 0).all()


def test_grpo_learns_to_stop_too() -> None:
    query, candidates, rewards, alone = kinds(40)
    torch.manual_seed(0)
    network = PointerNetwork(PointerConfig(6, hidden_dim=8, dropout=0.0, attn_dropout=0.0, stop=True)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    pointers = torch.tensor(GROUP).expand(len(query), -1, -1)
    for _ in range(60):
        log_prob = network.log_prob(query, candidates, pointers)
        loss, _ = grpo_loss(log_prob, log_prob.detach(), rewards, kl_beta=0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shown = (network.greedy(query, candidates, SHOTS) >= 0).sum(-1)
    assert shown[alone].float().mean() < 0.2 < 1.5 < shown[~alone].float().mean()


def test_with_a_price_a_policy_stops_where_icds_do_not_help() -> None:
    pointers = torch.tensor(GROUP)[None]
    for price, sign in ((0.0, 0), (0.5, -1)):
        stop = torch.zeros(1, len(GROUP), SHOTS, requires_grad=True)
        rewards = 1 - price * (torch.tensor(GROUP) >= 0).sum(-1)[None]
        rewards = rewards.float().index_fill(1, torch.tensor([6]), NAN)
        rce_loss(
            torch.zeros(1, len(GROUP), SHOTS, 5), pointers, rewards, 1.0, over="group", stop_logits=stop
        ).backward()
        assert stop.grad is not None and stop.grad[0, :, 0].sum().sign() == sign


def test_the_stop_loss_by_hand() -> None:
    pointers = torch.tensor([[[-1, -1], [0, -1], [0, 1], [2, 3], [-1, -1]]])
    rewards = torch.tensor([[1.0, 0.5, 2.0, 0.0, NAN]])
    real = ~rewards.isnan()
    stop = torch.zeros(1, 5, 2, requires_grad=True)  # stops with 1/2 everywhere
    log_prob = torch.tensor([[0.0, 0.1, 0.03, 0.01, 1.0]]).log().nan_to_num(neginf=0.0)
    loss = stop_loss(log_prob, stop, pointers, rewards, real)
    loss.backward()
    # Going on earns 0.5 by the single ICD and (3 · 2.0 + 1 · 0.0) / 4 = 1.5 by a pair, which are equally probable;
    # after the ICD 0 there is one pair, of 2.0.
    first, second = 1.0 - 1.0, 0.5 - 2.0
    assert loss.item() == pytest.approx((abs(first) + abs(second)) * math.log(2), abs=1e-6)
    assert stop.grad is not None
    expected = torch.zeros(1, 5, 2)
    expected[0, 1, 1] = -second / 2  # towards going on after the ICD 0
    torch.testing.assert_close(stop.grad, expected, rtol=1e-5, atol=1e-6)


def test_stakes_count_not_only_how_often() -> None:
    # One query in four loses 2 by stopping, the others gain the price of an ICD, 0.1.
    pointers = torch.tensor([[[-1], [0]]]).expand(4, -1, -1)
    rewards = torch.tensor([[0.0, 2.0], [0.0, -0.1], [0.0, -0.1], [0.0, -0.1]])
    stop = torch.zeros((), requires_grad=True)
    stop_loss(torch.zeros(4, 2), stop.expand(4, 2, 1), pointers, rewards, ~rewards.isnan()).backward()
    assert stop.grad is not None and stop.grad > 0  # descends towards going on


def test_padding_and_the_empty_pointer_differ_by_their_reward() -> None:
    stop, logits = torch.randn(1, 2, 2), torch.randn(1, 2, 2, 5)
    pointers = torch.tensor([[[-1, -1], [1, 2]]])
    rewards = torch.tensor([[1.0, 0.5]])
    wide = torch.cat([pointers, torch.full((1, 3, 2), -1)], dim=1)
    padded = torch.nn.functional.pad(rewards, (0, 3), value=NAN)
    more_stop, more_logits = torch.randn(1, 3, 2), torch.randn(1, 3, 2, 5)
    for over in ("group", "pool"):
        alone = rce_loss(logits, pointers, rewards, 1.0, over=over, stop_logits=stop)  # type: ignore[arg-type]
        together = rce_loss(
            torch.cat([logits, more_logits], 1),
            wide,
            padded,
            1.0,
            over=over,
            stop_logits=torch.cat([stop, more_stop], 1),
        )  # type: ignore[arg-type]
        assert_close(alone, together)


# --- the residual update ----------------------------------------------------------------------------------


def test_a_new_residual_update_leaves_the_state_as_it_is() -> None:
    torch.manual_seed(0)
    query, candidates = inputs(3, 6)
    network = PointerNetwork(PointerConfig(6, hidden_dim=8, update="residual")).eval()
    logits = network.step_logits(query, candidates, torch.tensor([[[1, 2]]]).expand(3, 1, 2))  # (3, 1, 2, 6)
    others = torch.tensor([0, 2, 3, 4, 5])
    assert_close(logits[:, 0, 0, others], logits[:, 0, 1, others])


def test_the_residual_update_learns_to_complete_the_first_icd_where_a_gate_cannot() -> None:
    # A query asks for one example of each of two properties; the candidates of a property are near one another.
    torch.manual_seed(1)
    axes = torch.eye(6)
    candidates = torch.cat([axes[:1] + 0.05 * torch.randn(4, 6), axes[1:2] + 0.05 * torch.randn(4, 6)]).expand(
        16, -1, -1
    )
    query = (axes[0] + 0.6 * axes[1]).expand(16, -1) + 0.05 * torch.randn(16, 6)
    pointers = torch.tensor([[0, 4], [1, 6], [0, 1], [2, 3], [4, 5], [1, 2], [3, 7]]).expand(16, -1, -1)
    rewards = torch.tensor([2.0, 2, 0, 0, 0, 0, 2]).expand(16, -1)
    completed = {}
    for update in ("gate", "residual"):
        torch.manual_seed(0)
        network = PointerNetwork(PointerConfig(6, hidden_dim=6, num_layers=0, dropout=0.0, update=update))
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
        for _ in range(60):
            loss = rce_loss(network.step_logits(query, candidates, pointers), pointers, rewards, 0.5, over="group")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        chosen = network.greedy(query, candidates, 2) // 4  # the property of each ICD
        completed[update] = float((chosen[:, 0] != chosen[:, 1]).float().mean())
    assert completed["gate"] < 0.5 < completed["residual"] == 1.0


def test_log_probs_are_those_of_the_steps() -> None:
    query, candidates = inputs(3, 5)
    network, pointers = policy(), every_pointer(5, SHOTS).expand(3, -1, -1)
    steps = network.steps(query, candidates, pointers)
    assert steps.stop is not None
    expected = pointer_log_prob(steps.choice, pointers) + stop_log_prob(steps.stop, pointers)
    assert torch.equal(network.log_prob(query, candidates, pointers), expected)


@pytest.mark.parametrize("config", [{}, {"num_layers": 0, "update": "residual"}, {"gate": False}])
def test_a_shared_pool_gives_the_same_choices(config: dict) -> None:
    query, pool = torch.randn(40, 6), torch.randn(30, 6)
    network = policy(**config)
    known = network.encode_candidates(pool)
    copies = pool.expand(40, -1, -1)
    assert_close(network.stop_margin(query, known), network.stop_margin(query, copies))
    for offset in (-100.0, 0.0, 0.2):
        expected = network.greedy(query, copies, 3, stop_offset=offset)
        found = network.choose(query, known, 3, scored=True, stop_offset=offset)
        assert torch.equal(found.positions, expected)
        assert found.log_probs is not None
        scores = network.log_prob(query, copies, expected.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(found.log_probs, scores, rtol=1e-4, atol=1e-4)
    fixed = network.choose(query, known, 3, scored=True, fixed=True)
    assert torch.equal(fixed.positions, network.greedy(query, copies, 3, fixed=True))
    assert torch.equal(network.greedy(query, known, 3), network.greedy(query, copies, 3))

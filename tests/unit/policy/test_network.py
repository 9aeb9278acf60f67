import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from icdsel.policy.config import PointerConfig
from icdsel.policy.encoding import TEMPERATURE
from icdsel.policy.network import CHOSEN_LOGIT, PointerNetwork, pointer_log_prob

DATA = Path(__file__).parents[2] / "data"
CASES = [
    pytest.param(case, id=f"{name}-{number}")
    for name in ("pointer_cases", "pointer_cases_gated")
    for number, case in enumerate(json.loads((DATA / f"{name}.json").read_text()))
]


def network(seed: int = 0, **config: object) -> PointerNetwork:
    """A network whose every weight matters: nothing is left at zero, one or the identity."""
    config = {"d_model": 6, "hidden_dim": 8, "dropout": 0.3, **config}
    made = PointerNetwork(PointerConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return made.eval()


def inputs(batch: int, size: int, seed: int = 0, d: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, d, generator=generator), torch.randn(batch, size, d, generator=generator)


def random_pointers(batch: int, count: int, size: int, shots: int, seed: int = 0) -> Tensor:
    noise = torch.rand(batch, count, size, generator=torch.Generator().manual_seed(seed))
    return noise.argsort(-1)[..., :shots]


def every_pointer(size: int, shots: int) -> Tensor:
    return torch.tensor(list(itertools.permutations(range(size), shots)))  # (P, S)


VARIANTS = [
    pytest.param({"gate": False}, id="no-gate"),
    pytest.param({"gate": True}, id="gate"),
    pytest.param({"gate": True, "num_layers": 2, "num_heads": 2, "tower": 12}, id="larger"),
]


# --- Lever-Plus's numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_reproduces_lever_plus(case: dict) -> None:
    sizes = case["config"]
    state = {name: torch.tensor(value) for name, value in case["state"].items()}
    config = PointerConfig(
        d_model=sizes["d"],
        hidden_dim=sizes["hid"],
        num_layers=sizes["layers"],
        num_heads=sizes["heads"],
        gate="query_update_gate.weight" in state,
    )
    policy = PointerNetwork(config)
    assert list(policy.state_dict()) == list(state)  # the very names, in the very order
    policy.load_state_dict(state)
    policy.eval()
    query, candidates = torch.tensor(case["query"]), torch.tensor(case["candidates"])
    pointers, greedy = torch.tensor(case["pointers"]), torch.tensor(case["greedy"])

    assert torch.equal(policy.greedy(query, candidates, sizes["S"]), greedy)
    logits = policy.step_logits(query, candidates, greedy.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(logits, torch.tensor(case["greedy_logits"]), rtol=1e-5, atol=5e-6)
    log_prob = policy.log_prob(query, candidates, pointers)
    torch.testing.assert_close(log_prob, torch.tensor(case["log_probs"]), rtol=1e-5, atol=0)


def test_has_as_many_parameters_as_lever_plus() -> None:
    # input 512·256, attention 4·(256² + 256), norm 2·256, projections 2·256², gate 2·256² + 256
    assert sum(p.numel() for p in PointerNetwork(PointerConfig(d_model=512)).parameters()) == 657_152


# --- closed forms -----------------------------------------------------------------------------------------


def plain_network(gate: bool) -> PointerNetwork:
    """Width 2, attention adding nothing, projections the identity, the gate (if any) at one half."""
    policy = PointerNetwork(PointerConfig(d_model=2, hidden_dim=2, gate=gate)).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "cross_attn" in name or "gate" in name:
                parameter.zero_()
        policy.query_proj.weight.copy_(torch.eye(2))
        policy.cand_proj.weight.copy_(torch.eye(2))
    return policy


QUERY = torch.tensor([[1.0, -1.0]])
CORNERS = torch.tensor([[[3.0, -3.0], [1.0, 1.0], [-2.0, 2.0]]])  # cosines with the query: 1, 0, -1


def test_log_prob_without_a_gate() -> None:
    # LN((1, -1)) = (1, -1), since mean 0 and variance 1; so the logits are 10, 0, -10 at every step.
    # Pointer (0, 1): 10 - log(e^10 + 1 + e^-10), then 0 - log(e^-100 + 1 + e^-10) with candidate 0 at -100.
    expected = 10 - math.log(math.exp(10) + 1 + math.exp(-10)) - math.log(1 + math.exp(-10) + math.exp(-100))
    log_prob = plain_network(gate=False).log_prob(QUERY, CORNERS, torch.tensor([[[0, 1]]]))
    assert log_prob.item() == pytest.approx(expected, abs=1e-6)


def test_the_gate_updates_the_state() -> None:
    # With g = 1/2, choosing (1, 1)/√2 moves the state (1, -1)/√2 to their mean, (1, 0): the cosines with the
    # candidates become 1/√2, 1/√2 and -1/√2, and the second one is chosen already.
    logits = plain_network(gate=True).step_logits(QUERY, CORNERS, torch.tensor([[[1, 0]]]))
    half = 10 / math.sqrt(2)
    expected = torch.tensor([[10.0, 0.0, -10.0], [half, CHOSEN_LOGIT, -half]])
    torch.testing.assert_close(logits[0, 0], expected, rtol=1e-4, atol=1e-4)


def test_the_shared_encoder_is_a_pre_norm_residual_of_queries_and_candidates() -> None:
    policy = network(tower=5, gate=False)
    query, candidates = inputs(2, 4)

    def tower(x: Tensor) -> Tensor:
        x = policy.input_proj(x)
        h = F.layer_norm(x, (8,), policy.tower.norm.weight, policy.tower.norm.bias)
        return (
            x
            + F.gelu(h @ policy.tower.up.weight.T + policy.tower.up.bias) @ policy.tower.down.weight.T
            + (policy.tower.down.bias)
        )

    q, c = tower(query).unsqueeze(1), tower(candidates)
    q = policy.attn_norms[0](policy.cross_attn_layers[0](q, c, c)[0] + q)
    projection = policy.query_proj.weight.T
    cosines = F.cosine_similarity(q @ projection, c @ projection, dim=-1)  # (B, K)
    logits = policy.step_logits(query, candidates, torch.zeros(2, 1, 1, dtype=torch.int64))
    assert_close(logits[:, 0, 0], cosines / TEMPERATURE)


def test_a_new_shared_encoder_changes_nothing_yet() -> None:
    with_tower = PointerNetwork(PointerConfig(d_model=6, hidden_dim=8, tower=16)).eval()
    without = PointerNetwork(PointerConfig(d_model=6, hidden_dim=8)).eval()
    without.load_state_dict(with_tower.state_dict(), strict=False)
    query, candidates = inputs(3, 5)
    pointers = random_pointers(3, 4, 5, 2)
    assert_close(with_tower.log_prob(query, candidates, pointers), without.log_prob(query, candidates, pointers))
    names = {name.split(".")[0] for name in with_tower.state_dict().keys() - without.state_dict().keys()}
    assert names == {"tower"}


def with_answers(candidates: Tensor, seed: int = 5, a: int = 3) -> Tensor:
    """Candidates [B, K, d + a], with random answers."""
    answers = torch.randn(*candidates.shape[:-1], a, generator=torch.Generator().manual_seed(seed))
    return torch.cat([candidates, answers], dim=-1)


def test_answers_change_nothing_yet_in_a_new_network() -> None:
    torch.manual_seed(3)
    seeing = PointerNetwork(PointerConfig(d_model=6, hidden_dim=8, tower=16, answer_dim=3)).eval()
    torch.manual_seed(3)
    blind = PointerNetwork(PointerConfig(d_model=6, hidden_dim=8, tower=16)).eval()
    query, candidates = inputs(3, 5)
    pointers = random_pointers(3, 4, 5, 2)
    assert_close(
        seeing.log_prob(query, with_answers(candidates), pointers), blind.log_prob(query, candidates, pointers)
    )  # up to the last digits: rows of another width may be multiplied by another kernel
    assert seeing.state_dict().keys() - blind.state_dict().keys() == {"answer_proj"}


def test_a_candidate_is_its_embedding_and_its_answer() -> None:
    # Inputs of width 2 + 1, W_a = (0, 4): the answer moves a candidate along the second axis, by four times its value.
    policy = PointerNetwork(PointerConfig(d_model=2, hidden_dim=2, gate=False, answer_dim=1)).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "cross_attn" in name:
                parameter.zero_()
        policy.query_proj.weight.copy_(torch.eye(2))
        policy.cand_proj.weight.copy_(torch.eye(2))
        policy.answer_proj.copy_(torch.tensor([[0.0], [4.0]]))
    query = torch.tensor([[1.0, -1.0]])  # the state is (1, -1) / √2
    candidates = torch.tensor([[[1.0, 3.0, -1.0], [1.0, -1.0, 0.5], [-1.0, -3.0, 1.0]]])
    # seen as (1, -1), (1, 1), (-1, 1): cosines with the state 1, 0, -1
    logits = policy.step_logits(query, candidates, torch.zeros(1, 1, 1, dtype=torch.int64))
    assert_close(logits[0, 0, 0], torch.tensor([10.0, 0.0, -10.0]))


@pytest.mark.parametrize("shared", [False, True], ids=["own pools", "one pool"])
def test_the_answer_of_a_query_is_never_looked_at(shared: bool) -> None:
    policy = network(answer_dim=3, tower=12)
    query, candidates = inputs(3, 5)
    candidates = with_answers(candidates[:1] if shared else candidates)
    rows = torch.cat([query, torch.full((3, 3), 99.0)], dim=-1)  # as in a table of examples with answers
    pointers = random_pointers(3, 4, 5, 2)
    assert_close(policy.log_prob(rows, candidates, pointers), policy.log_prob(query, candidates, pointers))
    assert torch.equal(policy.greedy(rows, candidates, 2), policy.greedy(query, candidates, 2))


def test_answers_of_another_width_or_without_use_are_an_error() -> None:
    query, candidates = inputs(2, 5)
    for policy, other in ((network(answer_dim=3), candidates), (network(), with_answers(candidates))):
        with pytest.raises(ValueError, match=r"candidates \[B, K, (9|6)\]"):
            policy.greedy(query, other, 2)


def test_the_weights_of_answers_learn_from_rewards() -> None:
    """Candidates that differ in nothing but their answers, of which one is right for every query."""
    torch.manual_seed(0)
    policy = PointerNetwork(
        PointerConfig(d_model=6, hidden_dim=8, tower=8, dropout=0.0, attn_dropout=0.0, answer_dim=3)
    )
    query, candidates = inputs(8, 1)
    candidates = torch.cat([candidates[:1].expand(8, 3, 6), torch.eye(3).expand(8, 3, 3)], dim=-1)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.02)
    right = torch.full((8, 1, 1), 1)
    for _ in range(60):
        loss = -policy.log_prob(query, candidates, right).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert policy.greedy(query, candidates, 1).tolist() == [[1]] * 8


def test_initialisation_is_near_the_identity() -> None:
    torch.manual_seed(0)
    policy = PointerNetwork(PointerConfig(d_model=32, hidden_dim=64))
    for projection in (policy.query_proj, policy.cand_proj):
        noise = projection.weight - torch.eye(64)
        assert noise.std().item() == pytest.approx(0.01, rel=0.1)
    assert policy.query_update_gate is not None and not policy.query_update_gate.bias.any()


# --- properties -------------------------------------------------------------------------------------------

SIZES = {
    "batch": st.integers(1, 3),
    "count": st.integers(1, 4),
    "size": st.integers(3, 7),
    "shots": st.integers(1, 3),
    "gate": st.booleans(),
    "seed": st.integers(0, 2**20),
}


@settings(max_examples=30, deadline=None)
@given(**SIZES)
def test_step_probabilities_sum_to_one(batch, count, size, shots, gate, seed) -> None:
    policy = network(seed, gate=gate)
    query, candidates = inputs(batch, size, seed)
    pointers = random_pointers(batch, count, size, shots, seed)
    logits = policy.step_logits(query, candidates, pointers)
    assert logits.shape == (batch, count, shots, size)
    assert_close(logits.softmax(-1).sum(-1), torch.ones(batch, count, shots))
    torch.testing.assert_close(
        policy.log_prob(query, candidates, pointers), pointer_log_prob(logits, pointers), rtol=0, atol=0
    )


@settings(max_examples=30, deadline=None)
@given(**SIZES)
def test_any_order_of_candidates_gives_the_same_choice(batch, count, size, shots, gate, seed) -> None:
    policy = network(seed, gate=gate)
    query, candidates = inputs(batch, size, seed)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    shuffled = candidates[:, order]
    assert torch.equal(order[policy.greedy(query, shuffled, shots)], policy.greedy(query, candidates, shots))
    pointers = random_pointers(batch, count, size, shots, seed)
    torch.testing.assert_close(
        policy.log_prob(query, shuffled, pointers),
        policy.log_prob(query, candidates, order[pointers]),
        rtol=1e-4,
        atol=1e-4,
    )


@settings(max_examples=30, deadline=None)
@given(**SIZES)
def test_a_batch_is_its_queries_one_by_one(batch, count, size, shots, gate, seed) -> None:
    policy = network(seed, gate=gate)
    query, candidates = inputs(batch, size, seed)
    pointers = random_pointers(batch, count, size, shots, seed)
    together = policy.step_logits(query, candidates, pointers)
    greedy = policy.greedy(query, candidates, shots)
    for b in range(batch):
        row = slice(b, b + 1)
        assert torch.equal(policy.greedy(query[row], candidates[row], shots), greedy[row])
        for p in range(count):
            alone = policy.step_logits(query[row], candidates[row], pointers[row, p : p + 1])
            torch.testing.assert_close(alone[0, 0], together[b, p], rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(**SIZES)
def test_a_masked_candidate_is_as_good_as_absent(batch, count, size, shots, gate, seed) -> None:
    policy = network(seed, gate=gate)
    query, candidates = inputs(batch, size, seed)
    pointers = random_pointers(batch, count, size, shots, seed)
    _, strangers = inputs(batch, 4, seed + 1)
    padded = torch.cat([candidates, strangers * 9], dim=1)
    mask = torch.arange(size + 4).expand(batch, -1) < size
    logits = policy.step_logits(query, padded, pointers, mask)
    assert (logits[..., size:] == -torch.inf).all()
    torch.testing.assert_close(
        logits[..., :size], policy.step_logits(query, candidates, pointers), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(policy.greedy(query, padded, shots, mask), policy.greedy(query, candidates, shots))
    beams, _ = policy.beam(query, padded, shots, 3, mask)
    samples, _ = policy.sample(query, padded, shots, 5, mask=mask)
    assert beams.max() < size and samples.max() < size


@settings(max_examples=30, deadline=None)
@given(temperature=st.floats(0.05, 50), **SIZES)
def test_no_icd_is_chosen_twice(batch, count, size, shots, gate, seed, temperature) -> None:
    policy = network(seed, gate=gate)
    query, candidates = inputs(batch, size, seed)
    generator = torch.Generator().manual_seed(seed)
    samples, _ = policy.sample(query, candidates, shots, count, temperature, generator)
    beams, _ = policy.beam(query, candidates, shots, count)
    for pointer in [
        *policy.greedy(query, candidates, shots).tolist(),
        *samples.flatten(0, 1).tolist(),
        *beams.flatten(0, 1).tolist(),
    ]:
        assert len(set(pointer)) == shots or set(pointer) == {-1}


@settings(max_examples=30, deadline=None)
@given(**SIZES)
def test_a_sample_has_the_log_prob_it_was_drawn_with(batch, count, size, shots, gate, seed) -> None:
    policy = network(seed, gate=gate)
    query, candidates = inputs(batch, size, seed)
    generator = torch.Generator().manual_seed(seed)
    pointers, log_prob = policy.sample(query, candidates, shots, count, generator=generator)
    torch.testing.assert_close(log_prob, policy.log_prob(query, candidates, pointers), rtol=1e-4, atol=1e-4)


# --- padding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_has_log_prob_zero_and_no_nan(variant: dict) -> None:
    policy = network(**variant).train()  # dropout too must not bring a NaN
    query, candidates = (x.requires_grad_() for x in inputs(3, 5))
    pointers = random_pointers(3, 4, 5, 2)
    pointers[0, 2:] = -1
    pointers[2] = -1
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 4] = False
    mask[2] = False  # a query of nothing but padding, in its pool and in its group
    pointers[0, :2] %= 4
    log_prob = policy.log_prob(query, candidates, pointers, mask)
    assert (log_prob[0, 2:] == 0).all() and (log_prob[2] == 0).all() and log_prob.isfinite().all()
    log_prob.sum().backward()
    for tensor in (query, candidates, *policy.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
    assert not query.grad[2].any() and not candidates.grad[2].any()
    assert not candidates.grad[0, 4].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_no_gradient(variant: dict) -> None:
    policy = network(**variant)
    query, candidates = inputs(2, 5)
    pointers = random_pointers(2, 3, 5, 2)
    padded = torch.cat([pointers, torch.full((2, 2, 2), -1)], dim=1)
    gradients = []
    for given_pointers in (pointers, padded):
        policy.zero_grad()
        policy.log_prob(query, candidates, given_pointers).sum().backward()
        gradients.append([p.grad.clone() for p in policy.parameters()])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_padded_step_ends_a_pointer() -> None:
    policy = network()
    query, candidates = inputs(1, 5)
    short = policy.log_prob(query, candidates, torch.tensor([[[3, 1]]]))
    padded = policy.log_prob(query, candidates, torch.tensor([[[3, 1, -1, -1]]]))
    assert_close(padded, short)


# --- beam and samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_beam_of_full_width_enumerates(variant: dict) -> None:
    policy = network(**variant)
    query, candidates = inputs(2, 5)
    pointers = every_pointer(5, 3)  # 60 of them
    exact = policy.log_prob(query, candidates, pointers.expand(2, -1, -1))
    assert torch.logsumexp(exact, -1).tolist() == pytest.approx([0, 0], abs=1e-5)
    found, log_prob = policy.beam(query, candidates, 3, 64)
    best, order = exact.sort(-1, descending=True)
    torch.testing.assert_close(log_prob[:, :60], best, rtol=1e-4, atol=1e-4)
    assert torch.equal(found[:, 0], pointers[order[:, 0]])
    for b in range(2):
        assert {tuple(p) for p in found[b, :60].tolist()} == {tuple(p) for p in pointers.tolist()}
    assert (found[:, 60:] == -1).all() and (log_prob[:, 60:] == -torch.inf).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_beam_of_width_one_is_greedy(variant: dict) -> None:
    policy = network(**variant)
    query, candidates = inputs(4, 6)
    found, log_prob = policy.beam(query, candidates, 3, 1)
    assert torch.equal(found.squeeze(1), policy.greedy(query, candidates, 3))
    torch.testing.assert_close(log_prob, policy.log_prob(query, candidates, found), rtol=1e-4, atol=1e-4)


def test_a_narrow_beam_keeps_the_best_prefixes() -> None:
    policy = network(seed=3)
    query, candidates = inputs(1, 6, seed=3)
    found, log_prob = policy.beam(query, candidates, 2, 4)
    assert (log_prob[:, :-1] >= log_prob[:, 1:]).all()
    torch.testing.assert_close(log_prob, policy.log_prob(query, candidates, found), rtol=1e-4, atol=1e-4)
    # By hand: the four best first choices, each extended by all others, and the four best of those.
    first = policy.step_logits(query, candidates, found[:, :1])[0, 0, 0].topk(4).indices.tolist()
    extended = torch.tensor([[a, b] for a in first for b in range(6) if a != b])
    exact = policy.log_prob(query, candidates, extended.unsqueeze(0))[0]
    assert torch.equal(found[0], extended[exact.topk(4).indices])


def test_ties_are_broken_by_the_lowest_position() -> None:
    policy = network()
    query, _ = inputs(1, 1)
    same = torch.zeros(1, 4, 6)  # the cosine of a zero vector is exactly 0, without any rounding
    assert policy.greedy(query, same, 3).tolist() == [[0, 1, 2]]
    assert policy.beam(query, same, 2, 4)[0].tolist() == [[[0, 1], [0, 2], [0, 3], [1, 0]]]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_samples_follow_the_tempered_policy(temperature: float) -> None:
    policy = network(seed=1)
    query, candidates = inputs(1, 4, seed=1)
    pointers = every_pointer(4, 2).unsqueeze(0)  # 12 of them
    logits = policy.step_logits(query, candidates, pointers)
    chosen = logits == CHOSEN_LOGIT
    tempered = pointer_log_prob((logits / temperature).masked_fill(chosen, -torch.inf), pointers)[0]
    count = 20_000
    generator = torch.Generator().manual_seed(0)
    samples, log_prob = policy.sample(query, candidates, 2, count, temperature, generator)
    which = (samples[0].unsqueeze(1) == pointers[0]).all(-1)  # (count, 12)
    torch.testing.assert_close(log_prob[0], tempered.expand(count, -1)[which], rtol=1e-4, atol=1e-4)
    # A share of n draws has the standard deviation √(p(1-p)/n); 5 of them are missed once in 10^6.
    share, p = which.float().mean(0), tempered.exp()
    assert ((share - p).abs() <= 5 * (p * (1 - p) / count).sqrt() + 1e-4).all()


def test_samples_are_repeatable_and_leave_the_global_generator_alone() -> None:
    policy = network()
    query, candidates = inputs(2, 6)
    before = torch.get_rng_state()
    first, second = (
        policy.sample(query, candidates, 2, 8, generator=torch.Generator().manual_seed(5))[0] for _ in range(2)
    )
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), before)


# --- how it works -----------------------------------------------------------------------------------------


def test_encodes_a_query_once_for_all_its_pointers() -> None:
    policy = network()
    calls = []
    policy.input_proj.register_forward_hook(lambda *_: calls.append("proj"))
    policy.cross_attn_layers[0].register_forward_hook(lambda *_: calls.append("attention"))
    query, candidates = inputs(2, 6)
    policy.log_prob(query, candidates, random_pointers(2, 9, 6, 3))
    assert calls == ["proj", "proj", "attention"]


def test_decides_without_dropout_in_training_mode() -> None:
    policy = network(dropout=0.6, attn_dropout=0.6)
    query, candidates = inputs(3, 6)
    greedy = policy.greedy(query, candidates, 3)
    beams = policy.beam(query, candidates, 3, 4)
    policy.train()
    assert torch.equal(policy.greedy(query, candidates, 3), greedy)
    assert all(torch.equal(a, b) for a, b in zip(policy.beam(query, candidates, 3, 4), beams, strict=True))
    assert policy.training and policy.dropout.training and policy.cross_attn_layers[0].training
    pointers = beams[0]
    first, second = (policy.log_prob(query, candidates, pointers) for _ in range(2))
    assert not torch.equal(first, second)  # what is trained on does have dropout


def test_forward_is_step_logits() -> None:
    policy = network()
    query, candidates = inputs(1, 4)
    pointers = random_pointers(1, 2, 4, 2)
    assert torch.equal(policy(query, candidates, pointers), policy.step_logits(query, candidates, pointers))


# --- rejected arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("decide", ["greedy", "beam", "sample"])
@pytest.mark.parametrize("shots", [0, 4, 6])
def test_more_shots_than_candidates_are_rejected(decide: str, shots: int) -> None:
    policy = network()
    query, candidates = inputs(2, 5)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False  # 3 candidates remain for the second query
    more = {"greedy": [], "beam": [2], "sample": [2]}[decide]
    with pytest.raises(ValueError, match="3 available candidates"):
        getattr(policy, decide)(query, candidates, shots, *more, mask=mask)


@pytest.mark.parametrize(
    "call",
    [
        lambda p, q, c: p.beam(q, c, 2, 0),
        lambda p, q, c: p.sample(q, c, 2, 0),
        lambda p, q, c: p.sample(q, c, 2, 1, temperature=0.0),
        lambda p, q, c: p.greedy(q[:, :-1], c, 2),
        lambda p, q, c: p.greedy(q[:1], c, 2),
        lambda p, q, c: p.greedy(q, c[0], 2),
        lambda p, q, c: p.greedy(q, c, 2, torch.ones(2, 5)),
        lambda p, q, c: p.greedy(q, c, 2, torch.ones(2, 4, dtype=torch.bool)),
        lambda p, q, c: p.log_prob(q, c, torch.zeros(2, 2, dtype=torch.int64)),
        lambda p, q, c: p.log_prob(q, c, torch.zeros(1, 2, 2, dtype=torch.int64)),
    ],
)
def test_shapes_that_do_not_match_are_rejected(call) -> None:
    with pytest.raises(ValueError, match="must be"):
        call(network(), *inputs(2, 5))


@pytest.mark.parametrize(
    "wrong",
    [
        {"d_model": 0},
        {"hidden_dim": 0},
        {"num_layers": -1},
        {"num_heads": 3},
        {"dropout": 1.0},
        {"attn_dropout": -0.1},
        {"tower": -1},
    ],
)
def test_impossible_sizes_are_rejected(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PointerConfig(**{"d_model": 4, "hidden_dim": 8, **wrong})


# --- one pool for all queries -----------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("heads", [1, 4])
def test_a_shared_pool_gives_what_a_copy_for_each_query_gives(layers: int, heads: int) -> None:
    torch.manual_seed(3)
    config = PointerConfig(12, hidden_dim=16, num_layers=layers, num_heads=heads, tower=8)
    network = PointerNetwork(config).eval()
    torch.nn.init.normal_(network.tower.down.weight)  # zero at first: the block would be off
    query, pool = torch.randn(5, 12), torch.randn(1, 30, 12)
    mask = torch.rand(5, 30) < 0.7
    mask[:, :3] = True
    copies = pool.expand(5, -1, -1).contiguous()
    pointers = torch.stack([torch.randperm(3)[:2] for _ in range(20)]).view(5, 4, 2)
    for valid in (None, mask):
        shared, own = (network.step_logits(query, candidates, pointers, valid) for candidates in (pool, copies))
        torch.testing.assert_close(shared, own, rtol=1e-5, atol=1e-5)
        assert torch.equal(network.greedy(query, pool, 3, valid), network.greedy(query, copies, 3, valid))
        assert torch.equal(network.beam(query, pool, 2, 4, valid)[0], network.beam(query, copies, 2, 4, valid)[0])
        drawn = [
            network.sample(query, c, 2, 3, 1.0, torch.Generator().manual_seed(1), valid)[0] for c in (pool, copies)
        ]
        assert torch.equal(*drawn)


def test_a_shared_pool_trains_as_copies_do() -> None:
    torch.manual_seed(4)
    network = PointerNetwork(PointerConfig(6, hidden_dim=8)).eval()
    query, pool = torch.randn(3, 6), torch.randn(1, 9, 6)
    pointers = torch.tensor([[[0, 1]], [[2, 3]], [[8, 0]]])
    gradients = []
    for candidates in (pool, pool.expand(3, -1, -1)):
        network.zero_grad()
        network.log_prob(query, candidates, pointers).sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for shared, own in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, own, rtol=1e-4, atol=1e-5)


def test_without_cross_attention_the_state_does_not_depend_on_the_pool() -> None:
    torch.manual_seed(6)
    query, pool = torch.randn(3, 6), torch.randn(3, 9, 6)
    for layers in (0, 1):
        policy = PointerNetwork(PointerConfig(6, hidden_dim=8, num_layers=layers))
        states = [policy.encode(query, candidates).state for candidates in (pool, pool[:, :4])]
        assert torch.equal(*states) == (layers == 0)

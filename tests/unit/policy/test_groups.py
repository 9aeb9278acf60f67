import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from icdsel.errors import RlDataError
from icdsel.policy.config import PointerConfig
from icdsel.policy.groups import Groups, make_groups, split_groups
from icdsel.policy.losses import advantages, grpo_loss, rce_loss
from icdsel.policy.network import PointerNetwork
from icdsel.policy.rewards import NORMALIZATIONS, REWARD_MODES
from icdsel.records import QueryGroup, ScoredPointer
from icdsel.settings.presets import RECIPES, STD_FLOOR
from icdsel.settings.tables import RewardSettings

DATA = Path(__file__).parents[2] / "data"
NAN = math.nan


def group(question_id: int, pool: tuple[int, ...], scored: Mapping[tuple[int, ...], float]) -> QueryGroup:
    candidates = [ScoredPointer(pointer, correct=int(score > 0), score=score) for pointer, score in scored.items()]
    return QueryGroup(question_id, question_id, "?", ("yes",), pool, tuple(candidates))


# Rows of the table of embeddings are question_ids divided by ten.
ROWS = {10 * row: row for row in range(20)}
SMALL = group(10, (50, 30, 70), {(30, 50): 0.6, (70, 30): 0.0})
LARGE = group(20, (90, 10, 60, 30, 80), {(10, 60): 1.0, (90, 80): 0.3, (30, 90): 0.0, (60, 10): 0.9})


def test_the_coverage_is_the_share_of_candidates_in_a_scored_pointer() -> None:
    assert make_groups([SMALL, LARGE], ROWS, RewardSettings()).coverage == 1.0
    few = group(20, (90, 10, 60, 30, 80), {(10, 60): 1.0, (60, 10): 0.9})
    assert make_groups([SMALL, few], ROWS, RewardSettings()).coverage == pytest.approx((1 + 2 / 5) / 2)


# --- a part of a shared pool ------------------------------------------------------------------------------


def shared_groups() -> Groups:
    pointers = torch.tensor([[[3, 17], [5, -1]], [[9, 3], [-1, -1]]])
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, 4] = mask[1, 9] = False
    rewards = torch.tensor([[1.0, 0.0], [1.0, NAN]])
    return Groups(torch.tensor([4, 6]), torch.arange(20)[None] + 100, mask, pointers, rewards, rewards)


def test_a_narrowed_pool_keeps_what_was_scored_and_draws_the_rest() -> None:
    groups = shared_groups()
    narrow = groups.narrowed(3, torch.Generator().manual_seed(0))
    assert {103, 105, 109, 117} <= set(narrow.pool[0].tolist()) and narrow.pool.shape[1] <= 7
    assert narrow.mask.equal(groups.mask[:, narrow.pool[0] - 100])
    for old, new in zip(groups.pointers.flatten().tolist(), narrow.pointers.flatten().tolist(), strict=True):
        assert (new == -1) if old == -1 else narrow.pool[0, new] == 100 + old
    other = groups.narrowed(3, torch.Generator().manual_seed(1))
    assert other.pool.tolist() != narrow.pool.tolist()


def test_pools_that_are_small_or_differ_by_query_stay_as_they_are() -> None:
    groups = shared_groups()
    assert groups.narrowed(20, torch.Generator()) is groups
    own = make_groups([SMALL, LARGE], ROWS, RewardSettings())
    assert own.narrowed(1, torch.Generator()) is own


# --- rewards that hardly differ ---------------------------------------------------------------------------


def nearly_equal(spread: float) -> QueryGroup:
    """Three pointers whose scores of every kind differ by `spread` at most."""
    candidates = [
        ScoredPointer(pointer, correct=1, score=score, reference_prob=score, relevance=score, margin=score)
        for pointer, score in {(30, 50): 0.5, (70, 30): 0.5 + spread / 2, (50, 70): 0.5 + spread}.items()
    ]
    return QueryGroup(10, 10, "?", ("yes",), (50, 30, 70), tuple(candidates))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("mode", REWARD_MODES)
def test_differences_of_rounding_have_no_weight(mode: str, normalization: str) -> None:
    settings = RewardSettings(mode=mode, normalization=normalization)
    made = make_groups([nearly_equal(2.4e-7)], ROWS, settings, STD_FLOOR)
    assert advantages(made.normalized, raw_rewards=made.raw).abs().max() < 1e-4
    # RCE by normalised rewards: all three pointers get the same weight
    assert (made.normalized[0] - made.normalized[0].mean()).abs().max() < 1e-4
    logits = torch.tensor([3.0, 0.0, -1.0]).repeat(1, 3, 2, 1).requires_grad_(True)  # (B, P, S, K)
    for rewards in (made.raw, made.normalized):
        (gradient,) = torch.autograd.grad(rce_loss(logits, made.pointers, rewards, 0.5, over="group"), logits)
        assert gradient.abs().max() < 1e-4


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_real_differences_keep_their_weight(normalization: str) -> None:
    settings = RewardSettings(mode="soft_only", normalization=normalization)
    floored, as_lever_plus = (make_groups([nearly_equal(0.5)], ROWS, settings, floor) for floor in (STD_FLOOR, 0.0))
    assert torch.equal(floored.normalized, as_lever_plus.normalized)
    assert torch.equal(advantages(floored.normalized, raw_rewards=floored.raw), advantages(as_lever_plus.normalized))


def test_lever_plus_normalises_rewards_of_any_spread() -> None:
    settings = RewardSettings(mode="soft_only")
    made = make_groups([nearly_equal(2.4e-7)], ROWS, settings, RECIPES["lever-plus"].std_floor)
    torch.testing.assert_close(made.normalized, torch.tensor([[-1.0, 0.0, 1.0]]), rtol=0, atol=1e-3)


# --- the split --------------------------------------------------------------------------------------------


def numbered(count: int) -> list[QueryGroup]:
    return [group(10 * i, (0, 10), {(0, 10): 1.0}) for i in range(count)]


@pytest.mark.parametrize(
    ("count", "train"), [(2, 1), (3, 2), (4, 3), (5, 4), (6, 4), (9, 7), (10, 8), (15, 12), (640, 512), (800, 640)]
)
def test_the_first_four_fifths_by_question_id_train(count: int, train: int) -> None:
    groups = numbered(count)
    first, rest = split_groups(groups[::-1])
    assert first == groups[:train]
    assert rest == groups[train:]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_queries_cannot_be_split(count: int) -> None:
    with pytest.raises(RlDataError, match="--queries 2 or more"):
        split_groups(numbered(count))


# --- tensors ----------------------------------------------------------------------------------------------


def test_groups_by_hand() -> None:
    made = make_groups([SMALL, LARGE], ROWS, RewardSettings())
    assert len(made) == 2
    assert made.query.tolist() == [1, 2]
    assert made.pool.tolist() == [[5, 3, 7, 0, 0], [9, 1, 6, 3, 8]]
    assert made.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    # Places in the pool: 30 is the second of (50, 30, 70), and so on.
    assert made.pointers.tolist() == [
        [[1, 0], [2, 1], [-1, -1], [-1, -1]],
        [[1, 2], [0, 4], [3, 0], [2, 1]],
    ]
    # hard + soft: 1.6 and 0; 2, 1.3, 0 and 1.9.
    torch.testing.assert_close(
        made.raw, torch.tensor([[1.6, 0.0, NAN, NAN], [2.0, 1.3, 0.0, 1.9]]), equal_nan=True, rtol=0, atol=1e-6
    )
    # Of two rewards 1.6 and 0 the mean is 0.8, the unbiased deviation 0.8 · sqrt(2), so they are ±1/sqrt(2).
    # Of 2, 1.3, 0, 1.9 the mean is 1.3, the squared deviations 0.49, 0, 1.69, 0.36 sum to 2.54: sd = sqrt(2.54/3).
    sd = math.sqrt(2.54 / 3)
    expected = [[0.5**0.5, -(0.5**0.5), NAN, NAN], [0.7 / sd, 0.0, -1.3 / sd, 0.6 / sd]]
    torch.testing.assert_close(made.normalized, torch.tensor(expected), equal_nan=True, rtol=0, atol=1e-6)


def test_the_reward_settings_reach_the_rewards() -> None:
    settings = RewardSettings(mode="separated", hard_weight=0.5, soft_weight=2.0, normalization="rank")
    made = make_groups([LARGE], ROWS, settings)
    # 2 · 0.5 · hard + 2 · soft: 3, 1.6, 0 and 2.8, whose ranks from the best are 0, 2, 3 and 1: 1 - 2 · rank / 3.
    assert made.raw[0].tolist() == pytest.approx([3.0, 1.6, 0.0, 2.8])
    assert made.normalized[0].tolist() == pytest.approx([1, -1 / 3, -1, 1 / 3])
    clamped = make_groups([LARGE], ROWS, RewardSettings(clamp=0.25)).normalized[0]
    assert clamped.tolist() == pytest.approx([0.25, 0.0, -0.25, 0.25], abs=1e-6)


def test_rows_are_taken_like_a_tensor() -> None:
    made = make_groups([SMALL, LARGE], ROWS, RewardSettings())
    turned = made[torch.tensor([1, 0])]
    assert turned.query.tolist() == [2, 1]
    assert torch.equal(turned.pointers, made.pointers.flip(0))
    assert made[1:].pool.tolist() == [[9, 1, 6, 3, 8]]


def test_question_ids_of_another_dataset_are_rejected() -> None:
    with pytest.raises(RlDataError, match=r"2 question_ids .* \[15, 25\].*another dataset"):
        make_groups([SMALL, group(15, (25, 30), {(25, 30): 1.0})], ROWS, RewardSettings())


def test_shorter_pointers_and_the_empty_one_are_padded_behind_their_end() -> None:
    mixed = group(30, (10, 20, 40), {(10, 40): 1.0, (20,): 0.0, (): 0.5})
    groups = make_groups([mixed], ROWS, RewardSettings())
    assert groups.pointers.tolist() == [[[0, 2], [1, -1], [-1, -1]]]
    assert groups.raw.tolist() == [[2.0, 0.0, 1.5]]
    wider = make_groups([group(30, (10, 20), {(10,): 1.0})], ROWS, RewardSettings(), shots=2)
    assert wider.pointers.tolist() == [[[0, -1]]]


def test_a_pool_from_which_nothing_was_shown_is_rejected() -> None:
    with pytest.raises(RlDataError, match="all pointers of the RL data are empty"):
        make_groups([group(30, (10, 20, 40), {(): 1.0})], ROWS, RewardSettings())


def test_a_price_teaches_nothing_where_no_pointer_helped() -> None:
    groups = make_groups(
        [group(30, (10, 20), {(10, 20): 0.0, (): 0.0}), group(40, (10, 20), {(10, 20): 1.0, (): 1.0})],
        ROWS,
        RewardSettings(price=0.25),
    )
    assert groups.raw.tolist() == [[0.0, 0.0], [1.5, 2.0]]


def test_a_price_of_tokens_needs_their_number() -> None:
    with pytest.raises(RlDataError, match=r"2 candidates of the RL data have no prompt_tokens.*--price"):
        make_groups([group(30, (10, 20), {(10,): 1.0, (20,): 0.0})], ROWS, RewardSettings(token_price=0.001))


# --- padding weighs nothing -------------------------------------------------------------------------------


def network() -> PointerNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = PointerNetwork(PointerConfig(6, hidden_dim=8, num_heads=2, tower=16))
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return made.eval()


def losses(policy: PointerNetwork, table: torch.Tensor, groups: Groups) -> dict[str, torch.Tensor]:
    query, pool = table[groups.query], table[groups.pool]
    logits = policy.step_logits(query, pool, groups.pointers, groups.mask)
    log_prob = policy.log_prob(query, pool, groups.pointers, groups.mask)
    old = torch.where(groups.raw.isnan(), 0.0, log_prob.detach() - 0.1 * groups.raw)
    return {
        "rce": rce_loss(logits, groups.pointers, groups.raw, 0.7, 0.1),
        "rce, normalized": rce_loss(logits, groups.pointers, groups.normalized, 2.0),
        "grpo": grpo_loss(log_prob, old, groups.normalized, kl_beta=0.3)[0],
        "grpo, best 2": grpo_loss(log_prob, old, groups.normalized, kl_beta=0.3, top_k=2, kl="k3")[0],
    }


@pytest.mark.parametrize("name", ["rce", "rce, normalized", "grpo", "grpo, best 2"])
def test_a_group_has_the_same_loss_alone_and_padded(name: str) -> None:
    policy = network()
    table = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))

    def result(groups: Groups) -> tuple[float, torch.Tensor]:
        policy.zero_grad()
        loss = losses(policy, table, groups)[name]
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    padded = make_groups([SMALL, LARGE], ROWS, RewardSettings())
    alone = [result(make_groups([made], ROWS, RewardSettings())) for made in (SMALL, LARGE)]
    for q, (loss, gradient) in enumerate(alone):
        padded_loss, padded_gradient = result(padded[q : q + 1])
        assert padded_loss == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(padded_gradient, gradient, rtol=1e-4, atol=1e-5)
    # A batch of groups that all have a signal is their mean.
    batch_loss, batch_gradient = result(padded)
    assert batch_loss == pytest.approx((alone[0][0] + alone[1][0]) / 2, rel=1e-5)
    torch.testing.assert_close(batch_gradient, (alone[0][1] + alone[1][1]) / 2, rtol=1e-4, atol=1e-5)
    assert abs(alone[0][0] - alone[1][0]) > 1e-3  # they could be distinguished


# --- Lever-Plus's numbers ------------------------------------------------------------------------------------


def test_golden_rl_data_give_lever_pluss_tensors() -> None:
    parsed = json.loads((DATA / "rl_data_parsed.json").read_text())
    written = json.loads((DATA / "rl_data_global_pointer.json").read_text())
    groups = []
    for key, value in written.items():
        # Lever-Plus leaves out what was not scored by the VQA accuracy.
        kept = [c for c in value["pointer_candidates"] if c["vqa_eval_mode"] != "fallback"]
        candidates = tuple(ScoredPointer.from_json(candidate, (0, 1)) for candidate in kept)
        groups.append(QueryGroup(int(key), int(key), "", (), tuple(range(60)), candidates))
    train, validation = split_groups(groups)
    assert [made.question_id for made in train] == parsed["train_query_ids"]
    assert len(validation) == parsed["n_val"]
    made = make_groups(train, {row: row for row in range(60)}, RewardSettings())
    for q, item in enumerate(parsed["items"]):
        count = len(item["pointers"])
        assert made.query[q] == item["query_id"]
        assert made.pointers[q, :count].tolist() == item["pointers"]
        assert (made.pointers[q, count:] == -1).all()
        assert made.raw[q, :count].tolist() == pytest.approx(item["rewards_raw"], rel=1e-6)
        assert made.normalized[q, :count].tolist() == pytest.approx(item["rewards_normalized"], rel=1e-5, abs=1e-6)
        assert made.raw[q, count:].isnan().all() and made.normalized[q, count:].isnan().all()


# --- the whole split as one pool --------------------------------------------------------------------------


def test_pools_of_the_whole_split_are_one_row_with_a_mask_for_each_query() -> None:
    scored = (ScoredPointer((50, 30), correct=1, score=1.0),)
    without_pool = [
        QueryGroup(q, q, "?", ("yes",), None, scored, excluded) for q, excluded in ((10, (10, 70)), (20, (20,)))
    ]
    groups = make_groups(without_pool, ROWS, RewardSettings())
    assert groups.pool.tolist() == [list(range(20))]
    assert (~groups.mask).nonzero().tolist() == [[0, 1], [0, 7], [1, 2]]
    assert groups.pointers.tolist() == [[[5, 3]], [[5, 3]]]
    part = groups[torch.tensor([1])]
    assert part.pool.shape == (1, 20) and part.mask.shape == (1, 20) and part.query.tolist() == [2]
    assert groups[torch.tensor([1, 0])].pool.shape == (1, 20)
    with pytest.raises(RlDataError, match="--pool-size all"):
        make_groups([*without_pool, SMALL], ROWS, RewardSettings())


def test_a_score_that_the_reward_needs_must_be_there() -> None:
    with pytest.raises(RlDataError, match=r"2 candidates.*vqa_gt_prob.*hard01_plus_gtprob"):
        make_groups([SMALL], ROWS, RewardSettings(mode="hard01_plus_gtprob"))

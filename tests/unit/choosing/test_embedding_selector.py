from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close

from icdsel.artefacts.checkpoint_writing import save_policy
from icdsel.choosing.embedding_selector import EmbeddingSelector
from icdsel.errors import CheckpointError
from icdsel.policy.config import PointerConfig
from icdsel.policy.network import PointerNetwork


def make_network(seed: int = 0, **config: Any) -> PointerNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PointerNetwork(PointerConfig(d_model=6, hidden_dim=8, **config))


def save(path: Path, seed: int = 0) -> Path:
    save_policy(path, make_network(seed), epoch=0, phase="rce", metrics={}, kl_beta=0.1)
    return path


def embeddings(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def same_policy(a: PointerNetwork, b: PointerNetwork) -> bool:
    return torch.equal(a.query_proj.weight, b.query_proj.weight)


def test_the_policy_is_read_from_a_checkpoint_or_from_the_last_one_of_a_run(tmp_path: Path) -> None:
    path = save(tmp_path / "run" / "rce_epoch1.pt", seed=1)
    save(tmp_path / "run" / "rce_epoch2.pt", seed=2)
    assert same_policy(EmbeddingSelector.load(path).network, make_network(1))
    assert same_policy(EmbeddingSelector.load(tmp_path / "run").network, make_network(2))
    with pytest.raises(CheckpointError, match="does not exist"):
        EmbeddingSelector.load(tmp_path / "other.pt")


def test_positions_are_greedy_choices_and_come_with_their_log_probs() -> None:
    network = make_network().train()
    query, candidates = embeddings(4, 6), embeddings(4, 9, 6)
    positions, log_probs = EmbeddingSelector(network).choose(query, candidates, shots=3)
    assert torch.equal(positions, network.greedy(query, candidates, 3))
    assert_close(log_probs, network.log_prob(query, candidates, positions[:, None])[:, 0])
    assert positions.dtype == torch.int64 and positions.shape == (4, 3) and log_probs.shape == (4,)
    assert (log_probs < 0).all() and not log_probs.requires_grad
    assert EmbeddingSelector(network).choose(query, candidates).positions.shape == (4, 2)


def test_one_pool_serves_all_queries() -> None:
    selector = EmbeddingSelector(make_network())
    query, pool = embeddings(4, 6), embeddings(9, 6)
    shared, apart = selector.choose(query, pool), selector.choose(query, pool.expand(4, 9, 6))
    assert torch.equal(shared.positions, apart.positions)
    assert_close(shared.log_probs, apart.log_probs)


def test_a_shared_pool_is_encoded_once_until_it_or_the_policy_changes() -> None:
    network = make_network()
    selector, query, pool, encoded = EmbeddingSelector(network), embeddings(4, 6), embeddings(9, 6), []
    network.input_proj.register_forward_hook(lambda _module, _args, output: encoded.append(len(output)))

    def choose(pool: torch.Tensor) -> int:
        """How many candidates are encoded for a choice, which must be that of a new selector."""
        encoded.clear()
        choice, count = selector.choose(query, pool), sum(encoded) - len(query)
        expected = EmbeddingSelector(network).choose(query, pool)
        assert torch.equal(choice.positions, expected.positions)
        assert torch.equal(choice.log_probs, expected.log_probs)
        return count

    assert [choose(pool), choose(pool)] == [9, 0]
    pool.mul_(-1)
    assert [choose(pool), choose(pool)] == [9, 0]
    other = pool[:5].clone()
    assert [choose(other), choose(pool), choose(pool)] == [5, 9, 0]
    with torch.no_grad():
        network.cand_proj.weight.mul_(torch.arange(1.0, 9.0))
    assert [choose(pool), choose(pool)] == [9, 0]


def test_masked_candidates_are_not_chosen() -> None:
    selector = EmbeddingSelector(make_network())
    query, pool = embeddings(4, 6), embeddings(9, 6)
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[:, [2, 7]] = True
    assert selector.choose(query, pool, 2, mask).positions.sort().values.tolist() == [[2, 7]] * 4


def test_embeddings_of_other_dtypes_are_converted() -> None:
    choice = EmbeddingSelector(make_network()).choose(embeddings(2, 6).double(), embeddings(5, 6).half())
    assert choice.positions.shape == (2, 2) and choice.log_probs.dtype == torch.float32


@pytest.mark.parametrize(
    ("query", "candidates", "shots", "message"),
    [
        ((2, 5), (9, 6), 2, r"query must be \[B, 6\]"),
        ((2, 6), (3, 9, 6), 2, r"candidates \[B, K, 6\]"),
        ((2, 6), (9, 5), 2, r"candidates must be \[N, 6\], not \[9, 5\]"),
        ((2, 6), (9, 6), 10, "shots must be between 1 and the 9 available candidates"),
    ],
)
def test_shapes_that_do_not_fit_are_an_error(query: tuple, candidates: tuple, shots: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingSelector(make_network()).choose(embeddings(*query), embeddings(*candidates), shots)


def test_a_policy_that_sees_answers_takes_them_beside_the_candidates() -> None:
    network = make_network(answer_dim=3)
    torch.nn.init.normal_(network.answer_proj, generator=torch.Generator().manual_seed(2))
    selector = EmbeddingSelector(network)
    query, pool, answers = embeddings(4, 6), embeddings(9, 6), embeddings(9, 3)
    chosen = selector.choose(query, pool, candidate_answers=answers)
    assert torch.equal(chosen.positions, network.greedy(query, torch.cat([pool, answers], -1)[None], 2))
    apart = selector.choose(query, pool.expand(4, 9, 6), candidate_answers=answers.expand(4, 9, 3).half())
    assert torch.equal(chosen.positions, apart.positions)
    assert not torch.equal(chosen.positions, selector.choose(query, pool, candidate_answers=-answers).positions)


@pytest.mark.parametrize(
    ("answer_dim", "answers", "message"),
    [
        (3, None, "sees answers: give candidate_answers of width 3"),
        (0, (9, 3), "sees no answers"),
        (3, (9, 4), r"must be \[9, 3\], not \[9, 4\]"),
        (3, (8, 3), r"must be \[9, 3\], not \[8, 3\]"),
        (3, (2, 9, 3), r"must be \[9, 3\]"),
    ],
)
def test_answers_must_fit_policy_and_candidates(answer_dim: int, answers: tuple | None, message: str) -> None:
    selector = EmbeddingSelector(make_network(answer_dim=answer_dim))
    with pytest.raises(ValueError, match=message):
        selector.choose(
            embeddings(2, 6), embeddings(9, 6), candidate_answers=None if answers is None else embeddings(*answers)
        )


@pytest.mark.parametrize("shared", [True, False])
def test_a_policy_that_may_stop_decides_how_many(shared: bool) -> None:
    network = make_network(stop=True).eval()
    assert network.stop_head is not None
    torch.nn.init.normal_(network.stop_head.weight, generator=torch.Generator().manual_seed(2))
    query, pool = embeddings(40, 6), embeddings(1, 9, 6)
    candidates = pool[0] if shared else pool.expand(40, -1, -1)
    selector = EmbeddingSelector(network)
    auto = selector.choose(query, candidates, "auto", max_shots=3)
    assert torch.equal(auto.positions, network.greedy(query, pool, 3))
    assert {int(n) for n in (auto.positions >= 0).sum(-1)} > {0, 3}
    expected = network.log_prob(query, pool, auto.positions.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(auto.log_probs, expected, rtol=1e-4, atol=1e-4)
    never = selector.choose(query, candidates, "auto-1000", max_shots=3)
    fixed = selector.choose(query, candidates, 3)
    assert torch.equal(never.positions, fixed.positions) and (fixed.positions >= 0).all()
    assert (selector.choose(query, candidates, "auto+1000").positions == -1).all()


def test_auto_needs_a_policy_that_may_stop() -> None:
    with pytest.raises(ValueError, match="without STOP: give a number"):
        EmbeddingSelector(make_network()).choose(embeddings(2, 6), embeddings(5, 6), "auto")
    with pytest.raises(ValueError, match="neither auto nor auto with an offset"):
        EmbeddingSelector(make_network(stop=True)).choose(embeddings(2, 6), embeddings(5, 6), "many")

"""Choosing from a pool that is encoded once and read in chunks: the same choices, in bounded memory."""

import pytest
import torch
from closeness import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from icdsel.policy import encoding, scan, shared_pool
from icdsel.policy.config import PointerConfig
from icdsel.policy.network import CosineNetwork, PointerNetwork


def network(layers: int = 1, gate: bool = True, heads: int = 2) -> PointerNetwork:
    """A network whose every weight matters."""
    with torch.random.fork_rng():  # the same network in every run
        torch.manual_seed(layers)
        made = PointerNetwork(PointerConfig(6, 8, num_layers=layers, num_heads=heads, gate=gate, tower=8))
    generator = torch.Generator().manual_seed(layers)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return made.eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masked(*shape: int) -> Tensor:
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(9)) < 0.6
    mask[0, :60] = False  # whole chunks without a candidate
    mask[:, 60:66] = True
    return mask


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("gate", [False, True])
def test_an_encoded_pool_gives_the_choices_of_as_many_pools_as_queries(layers: int, gate: bool) -> None:
    policy, query, pool, mask = network(layers, gate), normal(4, 6), normal(90, 6, seed=1), masked(4, 90)
    own = pool.expand(4, -1, -1)
    known = policy.encode_candidates(pool)
    for shared, apart in zip(policy.encode(query, known, mask), policy.encode(query, own, mask), strict=True):
        assert_close(shared.expand_as(apart), apart)
    choice = policy.choose(query, known, 5, mask, scored=True)
    assert torch.equal(choice.positions, policy.greedy(query, own, 5, mask))
    assert_close(choice.log_probs, policy.log_prob(query, own, choice.positions.unsqueeze(1), mask).squeeze(1))
    beams, expected = policy.beam(query, known, 2, 5, mask), policy.beam(query, own, 2, 5, mask)
    assert torch.equal(beams[0], expected[0])


@pytest.mark.parametrize("layers", [0, 2])
def test_the_size_of_chunks_changes_nothing(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, query, pool, mask = network(layers), normal(5, 6), normal(300, 6, seed=1), masked(5, 300)
    known = policy.encode_candidates(pool)
    whole, state = policy.choose(query, known, 6, mask, scored=True), policy.shared_state(query, known, mask)
    monkeypatch.setattr(scan, "_VALUES", 70)  # 23 candidates of 3 queries, half as many with two heads
    monkeypatch.setattr(encoding, "_ROWS", 11)
    monkeypatch.setattr(shared_pool, "QUERIES", 3)
    known = policy.encode_candidates(pool.unsqueeze(0))
    assert_close(policy.shared_state(query, known, mask), state)
    parts = policy.choose(query, known, 6, mask, scored=True)
    assert torch.equal(parts.positions, whole.positions)
    assert_close(parts.log_probs, whole.log_probs)


def test_no_tensor_holds_a_number_for_each_query_and_candidate() -> None:
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            self.size = max([self.size, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
            return result

    policy, query = network(), normal(64, 6)
    known = policy.encode_candidates(normal(20_000, 6, seed=1))
    with Largest() as largest:
        policy.choose(query, known, 2, scored=True)
    assert 0 < largest.size <= scan._VALUES < 64 * 20_000


def test_equal_candidates_are_chosen_in_their_order_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_VALUES", 6)
    policy = CosineNetwork(6)
    assert policy.choose(normal(3, 6), torch.ones(7, 6), 4).positions.tolist() == [[0, 1, 2, 3]] * 3


def test_a_pool_that_another_network_encoded_is_rejected() -> None:
    policy = network()
    other = PointerNetwork(PointerConfig(6, hidden_dim=4)).encode_candidates(normal(5, 6))
    with pytest.raises(ValueError, match="encoded by a network of width 4, not 8"):
        policy.greedy(normal(2, 6), other, 2)
    with pytest.raises(ValueError, match=r"one pool of candidates must be \[N, 6\], not \[2, 5, 6\]"):
        policy.encode_candidates(normal(2, 5, 6))

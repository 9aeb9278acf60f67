import pytest
import torch

from icdsel.policy.config import PointerConfig
from icdsel.policy.network import PointerNetwork
from icdsel.policy.question_gate import QuestionGate

CONFIG = PointerConfig(d_model=6, hidden_dim=4, num_layers=0, dropout=0.0, question_gate=5)


def made(config: PointerConfig = CONFIG) -> PointerNetwork:
    torch.manual_seed(0)
    return PointerNetwork(config).eval()


def test_the_question_scales_and_shifts_the_image() -> None:
    gate = QuestionGate(CONFIG).eval()
    question = torch.randn(3)
    zero, one, two = (gate.of_queries(torch.cat([k * torch.ones(3), question])) for k in (0.0, 1.0, 2.0))
    assert torch.allclose(two - zero, 2 * (one - zero), atol=1e-5)  # linear in the image for a given question
    other = [gate.of_queries(torch.cat([k * torch.ones(3), question.roll(1)])) for k in (0.0, 1.0)]
    assert not torch.allclose(other[1] - other[0], one - zero)  # another question scales it otherwise


def test_the_same_question_means_something_else_in_a_query_and_in_a_candidate() -> None:
    gate, x = QuestionGate(CONFIG).eval(), torch.randn(2, 6)
    assert not torch.allclose(gate.of_queries(x), gate.of_candidates(x))


def test_a_gated_policy_chooses_alike_from_encoded_candidates_and_learns_in_every_part() -> None:
    policy = made()
    query, pool = torch.randn(3, 6), torch.randn(1, 7, 6)
    assert policy.choose(query, policy.encode_candidates(pool), 2).positions.equal(policy.greedy(query, pool, 2))
    policy.log_prob(query, pool, torch.tensor([[[1, 2]], [[0, 3]], [[4, 5]]])).sum().backward()
    untouched = [name for name, p in policy.named_parameters() if p.grad is None]
    assert untouched == [] and policy.query_proj is policy.cand_proj


def test_embeddings_of_an_odd_width_have_no_two_parts() -> None:
    with pytest.raises(ValueError, match="two equal parts"):
        PointerConfig(d_model=5, question_gate=4)

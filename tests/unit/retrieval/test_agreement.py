import pytest
import torch
from torch.nn.functional import normalize

from icdsel.retrieval import agreement as module
from icdsel.retrieval.agreement import agreement


def on_circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def standardised(*shares: float) -> torch.Tensor:
    share = torch.tensor(shares)
    return (share - share.mean()) / share.std(correction=0)


def test_an_answer_is_compared_with_those_of_the_nearest_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEIGHBOURS", 2)
    # Two clusters, (0°, 2°, 5°) and (90°, 93°, 97°), in each of which the two nearest are the other two members.
    found = agreement(on_circle(0, 2, 5, 90, 93, 97), ["red", " Red", "blue", "red", "red", "red "])
    torch.testing.assert_close(found, standardised(0.5, 0.5, 0.0, 1.0, 1.0, 1.0))


def test_wrong_answers_agree_less_than_right_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randint(8, (400,), generator=generator)
    embeddings = normalize(torch.eye(8)[value] + 0.05 * torch.randn(400, 8, generator=generator), dim=-1)
    wrong = torch.rand(400, generator=generator) < 0.2
    answers = [f"code {(v + 1) % 8 if w else v}" for v, w in zip(value.tolist(), wrong.tolist(), strict=True)]
    found = agreement(embeddings, answers)
    assert found.mean().abs() < 1e-5 and abs(found.std(correction=0) - 1) < 1e-5
    assert found[wrong].quantile(0.9) < found[~wrong].quantile(0.1)


def test_a_large_set_is_compared_with_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEIGHBOURS", 1)
    monkeypatch.setattr(module, "MOST_REFERENCES", 3)
    # Rows 0, 2 and 4 are references; a reference is not its own neighbour.
    found = agreement(on_circle(0, 1, 30, 32, 58, 60), ["a", "a", "b", "b", "b", "a"])
    torch.testing.assert_close(found, standardised(0.0, 1.0, 1.0, 1.0, 1.0, 0.0))


def test_answers_that_all_agree_say_nothing() -> None:
    assert not agreement(on_circle(0, 10, 20), ["a", "a", "a"]).any()

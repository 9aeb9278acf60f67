"""Attention, ranking and normalisation in chunks."""

import pytest
import torch
from closeness import assert_close
from hypothesis import given
from hypothesis import strategies as st

from icdsel.policy import scan
from icdsel.policy.scan import RunningLogSum, RunningTop, attend, cosines


@given(
    rows=st.integers(1, 5),
    size=st.integers(1, 60),
    count=st.integers(1, 9),
    step=st.integers(1, 70),
    seed=st.integers(0, 999),
)
def test_the_running_top_is_the_head_of_a_stable_sort(rows: int, size: int, count: int, step: int, seed: int) -> None:
    # Small integers and infinities: most values are tied.
    values = torch.randint(-2, 3, (rows, size), generator=torch.Generator().manual_seed(seed)).float()
    values[values == -2] = -torch.inf
    top = RunningTop(count)
    for start in range(0, size, step):
        top.add(start, values[:, start : start + step].clone())
    ranked, order = values.sort(dim=1, descending=True, stable=True)
    assert torch.equal(top.values, ranked[:, :count])
    assert torch.equal(top.positions, order[:, :count])


def test_the_running_log_sum_is_that_of_all_values() -> None:
    values = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 30
    values[:, :10] = -torch.inf
    total = RunningLogSum()
    for chunk in values.split(7, dim=1):
        total.add(chunk)
    assert_close(total.value, values.logsumexp(-1))


@pytest.mark.parametrize("scale", [0.1, 1.0, 60.0])  # up to weights of all or nothing
def test_attention_in_chunks_is_a_softmax(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_VALUES", 100)  # 16 candidates
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(2, n, 4, generator=generator) for n in (3, 75, 75))
    mask = torch.rand(3, 75, generator=generator) < 0.5
    mask[0, :40], mask[1, 20:] = False, False
    query *= scale
    weights = (query @ keys.transpose(1, 2)).masked_fill(~mask, -torch.inf).softmax(-1)
    assert_close(attend(query, keys, values, mask), weights @ values)
    mask[2] = False
    assert attend(query, keys, values, mask).isfinite().all()


def test_candidates_that_may_not_be_chosen_have_no_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_VALUES", 6)  # 3 candidates
    states, candidates = torch.eye(2), torch.arange(14.0).view(7, 2)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4] = False
    taken = torch.tensor([[5, 0], [-1, 6]])
    found = list(cosines(states, candidates, mask, taken))
    assert [start for start, _ in found] == [0, 3, 6]
    inf = torch.inf
    assert torch.cat([chunk for _, chunk in found], dim=1).tolist() == [
        [-inf, 2, 4, 6, 8, -inf, 12],
        [1, 3, 5, 7, -inf, 11, -inf],
    ]

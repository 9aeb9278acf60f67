"""The largest values of each row, ties to the lower index."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from icdsel.retrieval.topk import stable_topk


@given(rows=st.integers(1, 5), size=st.integers(1, 60), count=st.integers(1, 70), seed=st.integers(0, 9999))
def test_it_is_the_head_of_a_stable_sort(rows: int, size: int, count: int, seed: int) -> None:
    # Small integers and infinities: most values are tied.
    values = torch.randint(-2, 3, (rows, size), generator=torch.Generator().manual_seed(seed)).float()
    values[values == -2] = -torch.inf
    ranked, order = values.sort(dim=1, descending=True, stable=True)
    found, indices = stable_topk(values, count)
    assert torch.equal(found, ranked[:, :count])
    assert torch.equal(indices, order[:, :count])

"""Selectors that choose ICDs which are similar to the query and complete each other: MMR, k-DPP, facility location."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from icdsel.records import Pointer
from icdsel.selection.selector import Selector

if TYPE_CHECKING:
    from torch import Tensor

    from icdsel.selection.context import Context

SHORTLIST = 100
"""How many candidates are weighed against each other: those most similar to the query, found exactly.

CEIL (Ye et al., ICML 2023) shortlists as many for its DPP. With it, a choice among 443,757 candidates costs hardly more
than that of the nearest neighbours, whereas similarities of all pairs would be 1.6 terabytes.
"""
_DIGITS = 9  # of cosines: equal ones must be equal, wherever the processor rounds differently


class Subset(Selector):
    """Weighs the candidates most similar to the query by image and question against each other."""

    needs_similarity = True

    @abstractmethod
    def pick(self, relevance: "Tensor", similarity: "Tensor", shots: int) -> list[int]:
        """The places of the chosen candidates, in the order of choosing.

        Args:
            relevance: Cosines of the candidates with the query, float64 (n), the most similar first.
            similarity: Cosines of the candidates with each other, float64 (n, n).
            shots: How many to choose, at most n.
        """

    def choose(self, context: "Context", shots: int) -> list[Pointer | None]:
        """The chosen rows, the first choice last: next to the query in the prompt."""
        return context.pointers(self._rows(context, shots))

    def _rows(self, context: "Context", shots: int) -> Iterator[list[int]]:
        queries, train = (embeddings.both for embeddings in context.similar)  # (Q, d), (N, d)
        shortlists = context.nearest("both", max(SHORTLIST, shots))
        for query, rows in zip(queries.double(), shortlists, strict=True):
            vectors = train[rows].double()  # (n, d)
            relevance, similarity = vectors @ query, vectors @ vectors.T  # (n), (n, n)
            places = self.pick(relevance.round(decimals=_DIGITS), similarity.round(decimals=_DIGITS), shots)
            yield [rows[place] for place in reversed(places)]


class Mmr(Subset):
    """Maximal marginal relevance: similar to the query, unlike those chosen before.

    Carbonell and Goldstein, "The use of MMR, diversity-based reranking for reordering documents and producing
    summaries", SIGIR 1998; for ICDs: Ye et al., "Complementary explanations for effective in-context learning", 2023.

    Args:
        name: What users type.
        weight: Of the similarity to the query, λ in the paper; 1 − λ is that of the similarity to those chosen before.
    """

    def __init__(self, name: str, weight: float) -> None:
        self.name, self.weight = name, weight

    def pick(self, relevance: "Tensor", similarity: "Tensor", shots: int) -> list[int]:
        """One by one, argmax λ · cos(candidate, query) − (1 − λ) · max cos(candidate, chosen)."""
        from icdsel.retrieval.subsets import maximal_marginal_relevance

        return maximal_marginal_relevance(relevance, similarity, shots, self.weight)


class KDpp(Subset):
    """The greedy MAP of a k-DPP: a determinant that grows with the similarity to the query and with diversity.

    Kulesza and Taskar, "k-DPPs: fixed-size determinantal point processes", ICML 2011; the greedy choice: Chen et al.,
    "Fast greedy MAP inference for determinantal point process", NeurIPS 2018; the kernel, for ICDs: Ye et al.,
    "Compositional exemplars for in-context learning" (CEIL), ICML 2023, before its training.

    Args:
        name: What users type.
        scale: Of the similarity to the query, λ in CEIL: the smaller, the more it counts against diversity.
    """

    def __init__(self, name: str, scale: float) -> None:
        self.name, self.scale = name, scale

    def pick(self, relevance: "Tensor", similarity: "Tensor", shots: int) -> list[int]:
        """One by one, argmax Σ r / λ + log det S over the chosen; r and S are cosines moved to [0, 1]."""
        from icdsel.retrieval.subsets import map_of_k_dpp

        return map_of_k_dpp(relevance, similarity, shots, self.scale)


class FacilityLocation(Subset):
    """Coverage of what is similar to the query: each near candidate should have a similar one among the chosen.

    Lin and Bilmes, "A class of submodular functions for document summarization", ACL 2011. The set that it chooses from
    all candidates would be the same for every query; the shortlist, and weights by similarity to the query, make it a
    choice for the query. Vote-k (Su et al., "Selective annotation makes language models better few-shot learners", ICLR
    2023), which covers a whole set too, decides what to annotate before any query is known, so it is none of these.

    Args:
        name: What users type.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def pick(self, relevance: "Tensor", similarity: "Tensor", shots: int) -> list[int]:
        """One by one, argmax Σᵢ cos(i, query)₊ · maxⱼ cos(i, j)₊ over the shortlist i and the chosen j."""
        from icdsel.retrieval.subsets import facility_location

        return facility_location(relevance, similarity, shots)

"""What statistics are computed from: scores by seed and query, and the images that queries share."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_Query = TypeVar("_Query", bound=Hashable)


class Interval(NamedTuple):
    """An estimate and its confidence interval; the bounds are NaN if the data say nothing about them."""

    mean: float
    low: float
    high: float


def interval(mean: float, centre: float, width: float, bounds: tuple[float, float]) -> Interval:
    """`centre` ± `width`, cut at the bounds of what is possible; NaN stays NaN."""
    low, high = np.clip([centre - width, centre + width], *bounds)
    return Interval(mean, float(low), float(high))


class SeedScores:
    """The scores of one row of a table: by one seed, or by several of which the row is the mean.

    Attributes:
        values: (S, n): a line for each seed, in the order of the queries.
        labels: What identifies each seed, [S]; the same label in another row is the same seed.
    """

    def __init__(self, values: ArrayLike, labels: Sequence[Hashable] = ()) -> None:
        """Checks the scores.

        Args:
            values: (S, n), or [n] for a single seed.
            labels: Of the seeds; by default each seed is one of its own.

        Raises:
            ValueError: There is no score, one is not finite, or the labels do not fit.
        """
        self.values = np.atleast_2d(np.asarray(values, dtype=np.float64))
        self.labels = tuple(labels) or tuple((id(self), i) for i in range(len(self.values)))
        if self.values.ndim != 2 or self.values.size == 0:
            raise ValueError(f"scores must be (S, n) with at least one query, not {list(self.values.shape)}")
        if not np.isfinite(self.values).all():
            raise ValueError("scores must be finite; leave out the queries without a score, in all rows")
        if len(set(self.labels)) != len(self.values):
            raise ValueError(f"{len(self.values)} seeds need as many distinct labels, not {list(self.labels)}")

    @property
    def seeds(self) -> int:
        """The number of seeds, S."""
        return len(self.values)

    @property
    def by_query(self) -> Floats:
        """The mean over the seeds [n]."""
        mean: Floats = self.values.mean(axis=0)
        return mean


class Clusters:
    """Which queries belong together, because they share an image.

    Attributes:
        of_query: [n], the cluster of each query, from 0.
        sizes: [G], the number of queries of each cluster.
    """

    def __init__(self, labels: Sequence[Hashable]) -> None:
        """Takes a label for each query, [n]; equal labels are one cluster."""
        numbers: dict[Hashable, int] = {}
        self.of_query = np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.intp)
        self.sizes = np.bincount(self.of_query)

    @classmethod
    def independent(cls, n: int) -> "Clusters":
        """N queries, none of which belong together."""
        return cls(range(n))

    @property
    def n(self) -> int:
        """The number of queries."""
        return len(self.of_query)

    @property
    def count(self) -> int:
        """The number of clusters, G."""
        return len(self.sizes)

    @property
    def singletons(self) -> bool:
        """Whether all queries are independent."""
        return self.count == self.n

    @property
    def mean_size(self) -> float:
        """The mean number of queries of a cluster."""
        return self.n / self.count

    @property
    def effective(self) -> float:
        """How many clusters of equal size are worth as much as these: n² / Σ size² (Kish 1965), at most G."""
        return float(self.n**2 / (self.sizes.astype(np.float64) ** 2).sum())

    def sums(self, values: Floats) -> Floats:
        """Sums [G] of values [n] by cluster."""
        totals: Floats = np.bincount(self.of_query, weights=values, minlength=self.count).astype(np.float64)
        return totals

    def variance(self, contributions: Floats) -> float:
        """The variance of a sum of contributions [n] over drawing clusters, by leaving out each in turn.

        It is the jackknife's (Efron 1981; for clusters, MacKinnon, Nielsen and Webb 2023). With clusters of one size it
        is the usual variance. A cluster much larger than the others pulls the mean towards itself, which makes its own
        deviation too small; leaving it out takes that into account. For a single cluster the variance is infinite.
        """
        if self.count == 1:
            return np.inf
        sums = self.sums(contributions - contributions.mean()) / (1 - self.sizes / self.n)
        return float(sums @ sums) * (self.count - 1) / self.count


def mean_by_query(scores: Sequence[Mapping[_Query, float]]) -> dict[_Query, float]:
    """The mean of several rows, query by query; all must have the same queries."""
    queries = list(scores[0])
    # Rounded, so that the order of the seeds does not change the value.
    means = np.mean([[own[i] for i in queries] for own in scores], axis=0).round(12)  # (seeds, n) to (n,)
    return dict(zip(queries, means.tolist(), strict=True))


def sample(values: ArrayLike, name: str) -> Floats:
    """Values as [n].

    Raises:
        ValueError: There is none, or one is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} must be a list of at least one number, not of shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite; leave out the queries without a score, in both selectors")
    return array


def pair(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    """Two samples of the same queries.

    Raises:
        ValueError: As for `sample`, or the lengths differ.
    """
    first, second = sample(a, "a"), sample(b, "b")
    if len(first) != len(second):
        raise ValueError(f"the scores are not paired: {len(first)} queries against {len(second)}")
    return first, second


def require_fraction(value: float, name: str) -> None:
    """Raises ValueError unless 0 < value < 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1, not {value}")

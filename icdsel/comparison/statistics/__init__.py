"""Paired statistics: is one selector better than another, on other queries and with other seeds?

A table is read as a statement about queries that nobody asked yet and, for means over seeds, about seeds that nobody
trained yet. So everything here treats the rows as a sample of both:

* `samples`: scores by seed and query, and the images that queries share;
* `variance`: the variance of a mean or difference, by its sources (queries, seeds);
* `scores`: the interval of a row's score;
* `differences`: a paired difference with its interval, p-value and the smallest effect that it would detect;
* `resampling`: bootstrap and permutation tests, for scores that are no means, and for exact p-values;
* `counts`: wins and losses, McNemar's test, Holm's correction;
* `certificates`: which policies are not worse than a baseline by more than a tolerance.

Selectors are compared on the same queries: what makes a query difficult cancels in the difference. Queries about one
image are one cluster: whole images are drawn, and their signs are flipped together.

`docs/guide.md` has the measured coverage and error rates, and the command that measures them.
"""

from icdsel.comparison.statistics.certificates import Certified, betting_p_values, certify
from icdsel.comparison.statistics.counts import Tally, holm, mcnemar, wins_losses_ties
from icdsel.comparison.statistics.differences import PairedDifference
from icdsel.comparison.statistics.resampling import (
    aggregate_difference,
    aggregate_score,
    permutation_pvalue,
    swap_pvalue,
)
from icdsel.comparison.statistics.samples import Clusters, Floats, Interval, SeedScores, mean_by_query
from icdsel.comparison.statistics.scores import score_interval
from icdsel.comparison.statistics.variance import Variance, variance_of_means

__all__ = [
    "Certified",
    "Clusters",
    "Floats",
    "Interval",
    "PairedDifference",
    "SeedScores",
    "Tally",
    "Variance",
    "aggregate_difference",
    "aggregate_score",
    "betting_p_values",
    "certify",
    "holm",
    "mcnemar",
    "mean_by_query",
    "permutation_pvalue",
    "score_interval",
    "swap_pvalue",
    "variance_of_means",
    "wins_losses_ties",
]

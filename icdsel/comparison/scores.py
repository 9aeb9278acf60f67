"""The accuracies of a row, query by query, and the mean over several of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from icdsel.comparison.statistics import mean_by_query


@dataclass(frozen=True)
class Scores:
    """Accuracies in [0, 1] by question_id, of one row at one number of shots.

    A row that is the mean over seeds holds the seeds' rows in `seeds`, any other the file that it is from in `path`.
    """

    name: str
    selector: str
    shots: int
    by_query: Mapping[int, float]
    by_other_metric: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """The same by the metrics that the row is not judged by, under their names."""
    metric: str = "official"
    place: str = ""
    """What sets the row apart from others of its name: the model, say."""
    seeds: tuple["Scores", ...] = ()
    path: Path | None = None

    @property
    def title(self) -> str:
        """The row's name in a table: `name`, or `name @ place`."""
        return f"{self.name} @ {self.place}" if self.place else self.name

    @property
    def files(self) -> tuple[Path, ...]:
        """The predictions files behind the row: of a mean those of its seeds."""
        if self.seeds:
            return tuple(path for row in self.seeds for path in row.files)
        return (self.path,) if self.path else ()

    @property
    def correct(self) -> dict[int, float]:
        """Hard correctness by question_id: 1 where the accuracy is above 0; of a mean the share of its seeds."""
        if self.seeds:
            return mean_by_query([row.correct for row in self.seeds])
        return {i: float(score > 0) for i, score in self.by_query.items()}


def mean_over_seeds(name: str, seeds: Sequence[Scores]) -> Scores:
    """The row of this name that is the mean of `seeds`, query by query; all must hold the same queries."""
    return replace(
        seeds[0],
        name=name,
        by_query=mean_by_query([row.by_query for row in seeds]),
        by_other_metric={m: mean_by_query([row.by_other_metric[m] for row in seeds]) for m in shared_metrics(seeds)},
        seeds=tuple(seeds),
        path=None,
    )


def shared_metrics(rows: Sequence[Scores]) -> list[str]:
    """The other metrics that all rows have, by name."""
    return sorted(set.intersection(*(set(row.by_other_metric) for row in rows)))

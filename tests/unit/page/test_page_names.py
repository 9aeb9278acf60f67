from icdsel.comparison.compare import comparison_rows
from icdsel.comparison.scores import Scores
from icdsel.page.names import row_labels, without_pool


def scores(name: str, pool: str | None, place: str = "") -> Scores:
    return Scores(name, name.split("-")[0], 1, {1: 0.0, 2: 1.0}, "official", place=place, pool=pool)


def test_the_pool_is_named_once_and_only_where_it_distinguishes_rows() -> None:
    rows = comparison_rows(
        [
            scores("oracle", "64", "pool 64"),
            scores("majority", "64", "pool 64"),
            scores("majority", "all", "pool all"),
            scores("nearest-both-all", "all"),
        ],
        seed=42,
    )
    labels = row_labels(rows, [])
    assert labels == {
        "oracle @ pool 64": "oracle",
        "majority @ pool 64": "majority, pool 64",
        "majority @ pool all": "majority, pool all",
        "nearest-both-all": "nearest-both-all",
    }
    assert {without_pool(labels[row.name], row.pool) for row in rows} == {"oracle", "majority", "nearest-both-all"}

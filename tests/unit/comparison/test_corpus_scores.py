import numpy as np
import pytest

from icdsel.comparison.compare import comparison_rows
from icdsel.comparison.scores import Scores, mean_over_seeds
from icdsel.comparison.tables import write_csv
from icdsel.tasks.corpus import macro_f1

CLASSES = ("ant", "cat", "dog")
FEW = {"resamples": 400, "permutations": 400}


def classified(name: str, right: float, seed: int, n: int = 120, selector: str = "random") -> Scores:
    """A row whose predictions are right with a probability, of classes of unequal size."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(9).choice(CLASSES, size=n, p=[0.1, 0.3, 0.6])
    guess = np.where(rng.random(n) < right, truth, rng.choice(CLASSES, size=n))
    statistics = {"macro-F1": {i: (str(guess[i]), str(truth[i])) for i in range(n)}}
    by_query = {i: float(guess[i] == truth[i]) for i in range(n)}
    return Scores(name, selector, 2, by_query, "accuracy", statistics=statistics, task="classify")


def f1_of(row: Scores) -> float:
    pairs = list(row.statistics["macro-F1"].values())
    return 100 * float(macro_f1(pairs, np.ones((1, len(pairs))))[0])


def rows_of(*scores: Scores) -> dict:
    return {row.name: row for row in comparison_rows(scores, scores[0].name, seed=1, **FEW)}


def test_the_score_has_an_interval_and_a_paired_test() -> None:
    poor, good = classified("poor", 0.2, 1), classified("good", 0.8, 2)
    rows = rows_of(poor, good)
    [own], [other] = rows["poor"].corpus, rows["good"].corpus
    assert (own.score, own.difference, own.p_value) == (pytest.approx(f1_of(poor), abs=1e-3), None, None)
    assert own.low < own.score < own.high and other.low < other.score < other.high
    assert other.difference == pytest.approx(f1_of(good) - f1_of(poor), abs=1e-3)
    assert 0 < other.difference_low < other.difference < other.difference_high and other.p_value < 0.01


def test_rows_that_are_equally_good_do_not_differ() -> None:
    [figure] = rows_of(classified("one", 0.5, 1), classified("other", 0.5, 2))["other"].corpus
    assert figure.difference_low < 0 < figure.difference_high and figure.p_value > 0.05


def test_intervals_cover_the_truth() -> None:
    truth = f1_of(classified("all", 0.6, 0, n=200_000))
    figures = [rows_of(classified("row", 0.6, seed, n=300))["row"].corpus[0] for seed in range(60)]
    # 95 % of 60 are 57; fewer than 52 have a probability of 1 %.
    assert sum(figure.low <= truth <= figure.high for figure in figures) >= 52


def test_a_mean_over_seeds_is_the_mean_of_its_seeds() -> None:
    seeds = [classified(f"random-{seed}", 0.5, seed) for seed in (1, 2, 3)]
    combined = mean_over_seeds("random (mean)", seeds)
    rows = comparison_rows([*seeds, classified("zero-shot", 0.2, 7, selector="zero-shot")], "zero-shot", seed=1, **FEW)
    [mean] = [row for row in rows if row.seeds == 3]
    assert mean.corpus[0].score == pytest.approx(np.mean([f1_of(seed) for seed in combined.seeds]), abs=1e-3)


def test_a_row_without_statistics_has_no_corpus_score(tmp_path) -> None:
    known, unknown = classified("known", 0.5, 1), classified("unknown", 0.5, 2)
    unknown = Scores("unknown", "random", 2, unknown.by_query, "accuracy", task="classify")
    rows = rows_of(unknown, known)
    assert not rows["unknown"].corpus and rows["known"].corpus[0].difference is None
    assert "corpus" not in rows["unknown"].to_json() and "corpus" in rows["known"].to_json()
    write_csv(list(rows.values()), tmp_path / "t.csv")
    header, *lines = (tmp_path / "t.csv").read_text().splitlines()
    assert "macro-F1_score" in header and len(lines) == 2

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as reference

from icdsel.records import Example
from icdsel.tasks.corpus import AUROC, MACRO_F1, Judged, auroc, macro_f1, positive_score, prediction_and_class

QUERY = Example(1, 1, Path("1.png"), "Hateful?", "yes", ("yes",), options=("no", "yes"))
CLASSES = ("cat", "dog", "cow", "ant")


def resampled(n: int, samples: int, seed: int) -> np.ndarray:
    """The queries of each sample, [R, n]; the first sample is all of them."""
    rng = np.random.default_rng(seed)
    return np.concatenate([np.arange(n)[None], rng.integers(n, size=(samples, n))])


def counts_of(queries: np.ndarray, n: int) -> np.ndarray:
    return np.stack([np.bincount(row, minlength=n) for row in queries]).astype(float)


@pytest.mark.parametrize("n", [2, 7, 60])
def test_macro_f1_is_that_of_scikit_learn_in_every_sample(n: int) -> None:
    rng = np.random.default_rng(n)
    truth = rng.choice(CLASSES, size=n, p=[0.6, 0.3, 0.08, 0.02])
    guess = np.where(rng.random(n) < 0.5, truth, rng.choice([*CLASSES, "a cat, I think"], size=n))
    queries = resampled(n, 40, seed=n)
    found = macro_f1(list(zip(guess, truth, strict=True)), counts_of(queries, n))
    expected = [reference.f1_score(truth[own], guess[own], average="macro") for own in queries]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("n", [2, 9, 80])
def test_auroc_is_that_of_scikit_learn_in_every_sample_ties_included(n: int) -> None:
    rng = np.random.default_rng(n)
    positive = (np.arange(n) % 3 == 0).astype(float)
    scores = np.round(rng.normal(size=n) + positive, 1)
    queries = resampled(n, 40, seed=n)
    found = auroc(list(zip(scores.tolist(), positive.tolist(), strict=True)), counts_of(queries, n))
    for value, own in zip(found, queries, strict=True):
        one_class = len(set(positive[own])) == 1
        expected = 0.5 if one_class else reference.roc_auc_score(positive[own], scores[own])
        assert value == pytest.approx(expected, abs=1e-12)


def test_statistics_of_a_query() -> None:
    assert prediction_and_class(Judged("Yes."), QUERY) == ("yes", "yes")
    assert positive_score(Judged("yes", (-2.0, -0.5)), QUERY) == (1.5, 1.0)
    assert positive_score(Judged("yes", (-2.0, -0.5)), replace(QUERY, answers=("no",))) == (1.5, 0.0)


@pytest.mark.parametrize(
    ("judged", "changes"),
    [(Judged("yes"), {}), (Judged("x", (-1.0, -2.0, -3.0)), {}), (Judged("yes", (-1.0, -2.0)), {"answers": ()})],
)
def test_without_log_probs_of_two_options_there_is_no_score(judged: Judged, changes: dict) -> None:
    assert positive_score(judged, replace(QUERY, **changes)) is None


def test_a_statistic_of_another_form_is_recognised() -> None:
    assert MACRO_F1.fits(("cat", "dog")) and AUROC.fits((0.5, 1.0)) and AUROC.fits((1, 0))
    assert not any(MACRO_F1.fits(wrong) for wrong in [(), ("cat",), ("cat", 1.0), ("a", "b", "c")])

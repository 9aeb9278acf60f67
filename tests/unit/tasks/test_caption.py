"""Captions: scores as pycocoevalcap gives them (tests/coco_captions.py), tokens, and the corpus that scores need."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icdsel.errors import DataError
from icdsel.records import Example
from icdsel.tasks import TASKS
from icdsel.tasks.bleu import bleu, bleu_counts
from icdsel.tasks.cider import DocumentFrequencies, cider_d
from icdsel.tasks.ngrams import Tokens, tokens
from icdsel.tasks.rouge import rouge_l
from icdsel.tasks.scoring import Scorer

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "data" / "captions.json").read_text("utf-8"))
QUERIES: list[tuple[Tokens, list[Tokens]]] = [
    (tuple(query["prediction"].split()), [tuple(text.split()) for text in query["references"]])
    for query in GOLDEN["queries"]
]
CORPUS = DocumentFrequencies.of(references for _, references in QUERIES)
NOT_LIKE_PTB = {"y'all": "y' all"}


def example(number: int, *captions: str, written: tuple[str, ...] = ()) -> Example:
    return Example(number, number, Path(f"{number}.png"), "Describe it.", (captions or ("",))[0], captions, written)


def test_cider_d_is_that_of_coco_caption() -> None:
    ours = [cider_d(prediction, references, CORPUS) for prediction, references in QUERIES]
    assert ours == pytest.approx([query["cider_d"] for query in GOLDEN["queries"]], abs=1e-9)
    assert min(ours) == 0 and max(ours) > 9


def test_rouge_l_is_that_of_coco_caption() -> None:
    ours = [rouge_l(prediction, references) for prediction, references in QUERIES]
    assert ours == pytest.approx([query["rouge_l"] for query in GOLDEN["queries"]], abs=1e-9)


@pytest.mark.parametrize(("first", "end", "score"), GOLDEN["bleu"])
def test_bleu_of_summed_counts_is_that_of_coco_caption(first: int, end: int, score: float) -> None:
    counts = [bleu_counts(prediction, references) for prediction, references in QUERIES[first:end]]
    assert bleu([sum(place) for place in zip(*counts, strict=True)]) == pytest.approx(score, abs=1e-9)


def test_the_counts_of_bleu() -> None:
    # The closest reference has 2 tokens, the shorter of two; "a" counts twice, as in the other reference.
    counts = bleu_counts(("a", "a", "a"), [("a", "cat"), ("a", "b", "a", "c")])
    assert counts == (3, 2, 2, 0, 0, 0, 3, 2, 1, 0)


@pytest.mark.parametrize(("text", "expected"), GOLDEN["tokens"])
def test_tokens_are_those_of_the_penn_treebank_but_for_a_known_difference(text: str, expected: str) -> None:
    ours = " ".join(tokens(text))
    for one, other in NOT_LIKE_PTB.items():
        ours = ours.replace(one, other)
    assert ours == expected


@given(st.text())
def test_any_text_has_tokens_without_white_space(text: str) -> None:
    assert all(token and not any(map(str.isspace, token)) for token in tokens(text))


_SOME = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8).map(tuple)


@given(_SOME, st.lists(_SOME, min_size=1, max_size=3), st.lists(st.lists(_SOME), min_size=1, max_size=3))
def test_scores_stay_within_their_bounds(prediction: Tokens, references: list[Tokens], others: Any) -> None:
    frequencies = DocumentFrequencies.of([references, *others])
    assert 0 <= cider_d(prediction, references, frequencies) <= 10 + 1e-9
    assert 0 <= rouge_l(prediction, references) <= 1 + 1e-9
    assert 0 <= bleu(bleu_counts(prediction, references)) <= 1 + 1e-9


@pytest.mark.parametrize(
    "score", [lambda: cider_d((), [], CORPUS), lambda: rouge_l((), []), lambda: bleu_counts((), [])]
)
def test_without_a_reference_there_is_no_score(score: Any) -> None:
    with pytest.raises(ValueError, match="at least one caption is needed"):
        score()


SPLIT = [
    example(1, "A man rides a horse.", "A man on a horse"),
    example(2, "Two dogs in the snow."),
    example(3, "A cat on a bench, asleep."),
    example(4),
]


def test_a_prepared_scorer_knows_the_references_of_its_split() -> None:
    scorer = Scorer.named("caption", None, "strip").prepared(SPLIT)
    frequencies = DocumentFrequencies.of([tokens(text) for text in query.answers] for query in SPLIT[:3])
    assert frequencies.documents == 3 and dict(frequencies.counts) == {("a",): 2, ("on",): 2, ("on", "a"): 2}
    expected = cider_d(("a", "man"), [tokens(text) for text in SPLIT[0].answers], frequencies)
    assert scorer.metric.score("A man!", SPLIT[0]) == expected > 0
    assert scorer.metric.score("Two dogs in the snow", SPLIT[1]) == pytest.approx(10)
    assert scorer.task.text(1.0321) == "103.2"
    # The task that everybody shares is as before, and other tasks need no preparation.
    with pytest.raises(ValueError, match=r"prepared\(examples\)"):
        TASKS["caption"].metrics["cider-d"].score("A man!", SPLIT[0])
    vqa = Scorer.named("vqa", None, "strip")
    assert vqa.prepared(SPLIT) is vqa


def test_the_metric_that_was_named_stays_the_one_of_a_prepared_scorer() -> None:
    scorer = Scorer.named("caption", "rouge-l", "strip").prepared(SPLIT)
    assert scorer.metric.name == "rouge-l"
    assert scorer.metric.score("two dogs in the snow", SPLIT[1]) == 1


def test_one_query_with_captions_is_no_corpus() -> None:
    scorer = Scorer.named("caption", None, "strip").prepared(SPLIT[:1] + SPLIT[3:])
    with pytest.raises(DataError, match="captions for a single query"):
        scorer.metric.score("A man!", SPLIT[0])


def test_nothing_is_right_or_wrong_and_references_share_the_weight() -> None:
    task = TASKS["caption"]
    assert task.is_correct(10.0) is None
    assert task.references(example(1, "a", "b", "a", written=("A", "B", "A"))) == {"A": 0.5, "B": 0.5}
    assert task.references(SPLIT[3]) == {}
    near = task.relevance("a man walks", SPLIT[0])
    assert near is not None and 0 < near.score < 1
    assert task.normalize("A man's horse!") == "a man 's horse"
    assert task.heading == "CIDEr-D"

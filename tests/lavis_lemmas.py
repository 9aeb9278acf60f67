"""How far `icdsel.tasks.lemmas` is from LAVIS's lemmas.

`python -m tests.lavis_lemmas` prints the distance over `tests/data/lavis_lemmas.json`: answers written for this
purpose, each with what LAVIS's rule makes of it. Where spaCy and a model are installed, `--renew MODEL` writes these
again, and `--answers FILE --renew MODEL` measures the answers in another file (a JSON list, for LXMERT's its
data/vqa/trainval_label2ans.json) without writing anything.
MODEL is the name or folder of a spaCy model: en_core_web_sm is LAVIS's.
"""

import argparse
import json
from pathlib import Path

from icdsel.tasks.lemmas import lemmatise
from icdsel.tasks.normalisation import comparable
from icdsel.tasks.vqa_accuracy import vqa_accuracy

FIGURES = Path(__file__).parent / "data" / "lavis_lemmas.json"


def differing(expected: dict[str, str]) -> dict[str, tuple[str, str]]:
    """The answers whose lemmas differ once normalised, with LAVIS's and ours."""
    pairs = {answer: (lemmas, lemmatise(answer)) for answer, lemmas in expected.items()}
    return {answer: pair for answer, pair in pairs.items() if len(set(map(comparable, pair))) > 1}


def scored_otherwise(expected: dict[str, str]) -> list[str]:
    """The answers that the metric `lemmatised` scores below 1 where ten people gave LAVIS's form; LAVIS gives 1."""
    return [a for a, lemmas in expected.items() if vqa_accuracy(a, [comparable(lemmas)] * 10, "lemmatised") < 1]


def by_spacy(answers: list[str], model: str) -> dict[str, str]:
    """LAVIS's rule: the lemmas of nouns and verbs, all other tokens as they are, joined by spaces."""
    import spacy

    tagger = spacy.load(model)
    return {
        answer: " ".join(token.lemma_ if token.pos_ in ("NOUN", "VERB") else token.text for token in tagger(answer))
        for answer in answers
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--renew", metavar="MODEL")
    options = parser.parse_args()
    expected = json.loads(FIGURES.read_text())
    if options.renew:
        answers = json.loads(options.answers.read_text()) if options.answers else list(expected)
        expected = by_spacy(answers, options.renew)
        if not options.answers:
            FIGURES.write_text(json.dumps(expected, indent=0, ensure_ascii=False) + "\n")
    found = differing(expected)
    for answer, (theirs, ours) in found.items():
        print(f"{answer}: {theirs} (LAVIS), {ours} (icdsel)")
    print(f"{len(found)} of {len(expected)} answers differ: {len(found) / len(expected):.1%}")
    wrong = len(scored_otherwise(expected))
    print(f"{wrong} of {len(expected)} score differently where LAVIS's form is stored: {wrong / len(expected):.1%}")


if __name__ == "__main__":
    main()

import json

import pytest
from lavis_lemmas import FIGURES, differing, scored_otherwise

from icdsel.tasks.lemmas import lemmatise


@pytest.mark.parametrize(
    ("text", "lemmas"),
    [
        ("riding", "ride"),
        ("Riding bikes.", "ride bike."),
        ("t-shirts", "t-shirt"),
        ("3 dogs", "3 dog"),
        ("", ""),
        ("école", "école"),
        # Nouns and verbs only, and no word is broken.
        ("playing", "play"),
        ("sitting", "sit"),
        ("cola", "cola"),
        ("better", "better"),
        ("glasses", "glass"),
        ("children's feet", "children's foot"),
        ("don't know", "don't know"),
        ("feed", "feed"),
        ("bus", "bus"),
        ("s", "s"),
        ("are they tall", "are they tall"),
        ("seagulls", "seagull"),
    ],
)
def test_lemmas(text: str, lemmas: str) -> None:
    assert lemmatise(text) == lemmas


def test_the_distance_to_lavis_is_the_one_that_the_documentation_states() -> None:
    expected = json.loads(FIGURES.read_text())
    assert len(expected) == 929
    assert len(scored_otherwise(expected)) == 34
    assert len(differing(expected)) == 75  # docs/quickstart.md, departures.md

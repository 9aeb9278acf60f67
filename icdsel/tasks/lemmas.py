"""Reduces English words to their dictionary form, as LAVIS does before it scores OK-VQA."""

import re
from functools import lru_cache

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


@lru_cache(maxsize=1 << 16)
def lemmatise(text: str) -> str:
    """Returns the text in lower case, with nouns and verbs in their dictionary form ("riding bikes": "ride bike").

    LAVIS's rule: spaCy's tagger finds the nouns and verbs of an answer, all other words stay ("better"). A dictionary
    (lemminflect's) cannot tell a noun from a verb; answers are mostly nouns, so a word that could be either is a plural
    if it ends in s, and a verb if it ends in ing or ed. docs/quickstart.md gives the measured distance.
    """
    return _WORD.sub(lambda word: _lemma(word[0]), text.lower())


@lru_cache(maxsize=1 << 14)
def _lemma(word: str) -> str:
    from lemminflect import getAllLemmas, getAllLemmasOOV  # imported here because it takes a third of a second

    known = getAllLemmas(word)
    if "AUX" in known or len(word) < 3:  # the dictionary makes nothing of "s"
        return word
    nouns, verbs = known.get("NOUN", ()), known.get("VERB", ())
    if word.endswith("s") and (singular := [noun for noun in nouns if noun != word]):
        return str(singular[0])
    if word.endswith(("ing", "ed")) and word not in verbs and verbs:
        return str(verbs[0])
    if not known and len(word) > 4 and word.endswith("s") and not word.endswith(("ss", "us", "is", "as", "'s")):
        nouns = getAllLemmasOOV(word, "NOUN").get("NOUN", ())  # by its rules, as for "seagulls"
    return word if word in (*nouns, *verbs) else str((*nouns, *verbs, word)[0])

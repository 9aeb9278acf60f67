"""Names of splits: those that datasets use, and the names used here."""

import re

SPLITS = ("train", "validation", "tuning", "test")
"""The splits that commands take. Demonstrations come from the first."""

_NAMES = {
    "train": ("train", "training", "trainset"),
    "validation": ("validation", "val", "valid", "dev", "development", "eval", "evaluation", "valset", "devset"),
    "tuning": ("tuning", "tune"),
    "test": ("test", "testing", "testset", "testdev", "teststd", "test-dev", "test_dev"),
}
_STANDARD = {name: standard for standard, names in _NAMES.items() for name in names}
_YEAR = re.compile(r"[-_]?(?:19|20)\d\d$")
_WORD = re.compile(r"test[-_]dev(?:(?:19|20)\d\d)?|[A-Za-z]+(?:(?:19|20)\d\d)?", re.IGNORECASE)


def standard_split(name: str) -> str:
    """The name used here for a split that a dataset calls `name`; a name that is not known stays as it is.

    Case does not matter, nor does a year at the end: "val2014", "Dev" and "validation" are "validation".
    """
    return _STANDARD.get(_YEAR.sub("", name.strip()).lower(), name)


def split_word(text: str) -> str:
    """The word that names a split in a file's or folder's name, as "val2014" in "my_val2014-00000-of-00002".

    The last such word counts: "test_set_train.csv" has "train". It is "" if there is none.
    """
    return next((word for word in reversed(_WORD.findall(text)) if standard_split(word) in SPLITS), "")


def split_in(text: str) -> str:
    """The split that a file's or folder's name contains as a word; "" without one."""
    return standard_split(split_word(text))

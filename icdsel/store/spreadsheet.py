"""Texts for cells of tables that people open in spreadsheets."""

import re

_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # characters that start a formula in spreadsheets
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)


def harmless(text: str) -> str:
    """The text; an apostrophe keeps spreadsheets from reading it as a formula. Plain numbers stay as they are."""
    starts = text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text)
    return f"'{text}" if starts else text

import pytest

from icdsel.store.spreadsheet import harmless


@pytest.mark.parametrize("text", ["=1+1", "+a", "-a", "@SUM(A1)", "  =1", "\t=1", "＝1", "-1+cmd|'/c calc'!A1", "-5\n"])
def test_formulas_get_an_apostrophe(text: str) -> None:
    assert harmless(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "red", "a=b", "-5", "+3.25", "10-12", "'a"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert harmless(text) == text

"""How many ICDs a row shows: numbers, and `auto` with offsets."""

import pytest

from icdsel.records import auto_shots, parsed_shots, shots_order, shots_text, stop_offset
from icdsel.records.shots import is_shots


@pytest.mark.parametrize(
    ("offset", "name"),
    [(0.0, "auto"), (-0.0, "auto"), (1.0, "auto+1"), (-0.5, "auto-0.5"), (10.0, "auto+10"), (1 / 3, "auto+0.333333")],
)
def test_an_offset_has_one_name(offset: float, name: str) -> None:
    assert auto_shots(offset) == name
    assert is_shots(name)
    assert stop_offset(name) == pytest.approx(offset, abs=1e-6)


@pytest.mark.parametrize("name", ["Auto", "auto1", "auto+", "auto+01", "auto+1.50", "auto-0", "auto+12345", "2", ""])
def test_other_texts_are_none(name: str) -> None:
    assert not is_shots(name)


@pytest.mark.parametrize("value", [True, 1.0, -1, 10_001, None, [1]])
def test_other_values_are_none(value: object) -> None:
    assert not is_shots(value)


def test_what_is_typed_is_read() -> None:
    assert [parsed_shots(text) for text in ("2", " 0", "auto", "auto+1.50 ")] == [2, 0, "auto", "auto+1.5"]
    for text in ("many", "-1", "1.5", "auto+x"):
        with pytest.raises(ValueError, match="auto"):
            parsed_shots(text)


def test_numbers_come_first_and_what_stops_least_readily_last() -> None:
    shots = ["auto", 10, "auto-1", 0, "auto+2", 2]
    assert sorted(shots, key=shots_order) == [0, 2, 10, "auto+2", "auto", "auto-1"]
    assert [shots_text(count) for count in (0, 1, 2, "auto+2")] == ["0 shots", "1 shot", "2 shots", "auto+2"]

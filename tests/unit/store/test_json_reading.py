import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icdsel.errors import DataError
from icdsel.store.json_reading import read_lines, read_list

MARK = b"\xef\xbb\xbf"

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=3), inside, max_size=3),
    max_leaves=6,
)
spaces = st.sampled_from([None, 0, 2, "\t"])


def refusal(reader: Any, path: Path, *key: str) -> str:
    with pytest.raises(DataError) as error:
        list(reader(path, *key))
    assert str(path) in str(error.value)
    return str(error.value)


# --- a list in an object ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "file.json"


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), values, max_size=3), st.lists(values, min_size=1, max_size=4), st.data())
def test_the_same_as_the_standard_library(
    path: Path, rest: dict[str, Any], wanted: list[Any], data: st.DataObject
) -> None:
    names = [*rest, "wanted"]
    content = {name: wanted if name == "wanted" else rest[name] for name in data.draw(st.permutations(names))}
    text = json.dumps(content, indent=data.draw(spaces), ensure_ascii=data.draw(st.booleans()))
    path.write_bytes(data.draw(st.sampled_from([b"", MARK])) + text.encode())
    read = list(read_list(path, "wanted"))
    assert [value for _, value in read] == wanted
    assert [place for place, _ in read] == [f'number {n} of "wanted"' for n in range(1, len(wanted) + 1)]


def test_every_truncation_is_noticed(path: Path) -> None:
    whole = json.dumps(
        {"a": ["é", {"b": 1.5}], "wanted": [{"c": "🐈"}, [2], True], "d": None}, indent=1, ensure_ascii=False
    )
    content = whole.encode()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        error = refusal(read_list, path, "wanted")
        assert "is not valid JSON: line " in error or "is not UTF-8: byte " in error or "is empty" in error


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty (0 bytes)"),
        (b" \n", "is empty (2 bytes)"),
        (b"x", "line 1, byte 0: Expecting value"),
        (b'{"l": [1], 2: 3}', "line 1, byte 11: Expecting a name"),
        (b'{"l": [1]} {}', "line 1, byte 11: Extra data"),
        (b'{"l": [1]}\n]', "line 2, byte 11: Extra data"),
        (b'{"l": [1, ]}', "line 1, byte 10: Expecting value"),
        (b'{"l": [1 2]}', "line 1, byte 9: Expecting ',' or ']'"),
        (b'{"l": [1]', "line 1, byte 9: Expecting ',' or '}'"),
        (b'{"l" [1]}', "line 1, byte 5: Expecting ':'"),
        (b'{"l": [1],}', "line 1, byte 10: Expecting a name"),
        (b"{,}", "line 1, byte 1: Expecting a name"),
        ('{"é": "猫🐈",\n "l": [x'.encode(), "line 2, byte 25: Expecting value"),
        (MARK + '{"é": "猫🐈",\n "l": [x'.encode(), "line 2, byte 28: Expecting value"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8: byte 0"),
        (MARK + b'{"l": ["\xff"]}', "is not UTF-8: byte 11"),
        (b'{"l": [' + b"9" * 5000 + b"]}", "line 1, byte 7: Exceeds the limit"),
        (b'{"l": ' + b"[" * 100_000, "line 1, byte 7: maximum recursion depth"),
        (b'{"l": []}', 'the list "l" is missing or is empty'),
        (b'{"l": {"l": [1]}}', 'the list "l" is missing or is empty'),
        (b"[1]", 'the list "l" is missing or is empty'),
        (b'{"info": 1, "m": [1]}', "(at its top level there are: info, m)"),
    ],
)
def test_what_is_no_such_file_is_named_with_the_place(path: Path, content: bytes, part: str) -> None:
    path.write_bytes(content)
    assert part in refusal(read_list, path, "l")


def test_numbers_that_json_does_not_know_are_read(path: Path) -> None:
    path.write_text('{"l": [NaN, -Infinity, 1e999, 12345678901234567890]}')
    first, *others = [value for _, value in read_list(path, "l")]
    assert math.isnan(first) and others == [-math.inf, math.inf, 12345678901234567890]


@pytest.mark.parametrize("reader", [read_list, read_lines])
def test_files_that_cannot_be_opened(tmp_path: Path, reader: Any) -> None:
    key = ("l",) if reader is read_list else ()
    assert "No such file" in refusal(reader, tmp_path / "nowhere.json", *key)
    assert "cannot be read: Is a directory" in refusal(reader, tmp_path, *key)


# --- lines ------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(values, max_size=5), st.data())
def test_lines(path: Path, wanted: list[Any], data: st.DataObject) -> None:
    lines, places = [], []
    for value in wanted:
        lines += data.draw(st.lists(st.sampled_from(["", "  ", "\r"]), max_size=2))
        lines.append(json.dumps(value, ensure_ascii=data.draw(st.booleans())))
        places.append(f"line {len(lines)}")
    ending = data.draw(st.sampled_from(["", "\n", "\r\n", "\n\n"]))
    path.write_bytes(data.draw(st.sampled_from([b"", MARK])) + ("\n".join(lines) + ending).encode())
    assert list(read_lines(path)) == list(zip(places, wanted, strict=True))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ('{"é": 1}\n{"a": '.encode(), "line 2, byte 15: Expecting value"),
        (MARK + '{"é": 1}\n\n{"a": x}\n'.encode(), "line 3, byte 20: Expecting value"),
        (b"1\n2 3\n", "line 2, byte 4: Extra data"),
        (MARK + b"1\n22\xff\n", "is not UTF-8: byte 7"),
        (b"1\n" + b"9" * 5000, "line 2, byte 2: Exceeds the limit"),
        (b"{\n}\n", "line 1, byte 1: Expecting"),
        (b"1\n" + MARK + b"2\n", "line 2, byte 2: Expecting value"),  # a mark belongs to the beginning
    ],
)
def test_damaged_lines_are_named_with_the_place(path: Path, content: bytes, part: str) -> None:
    path.write_bytes(content)
    assert part in refusal(read_lines, path)

"""JSON from files: values, and large files as records one after the other; what is damaged is named by its place."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from icdsel.errors import DataError, Refuse, UserError, stop
from icdsel.records.values import are_ids as are_ids
from icdsel.records.values import is_id as is_id
from icdsel.records.values import is_number as is_number
from icdsel.store.reading import read_bytes_lines, read_whole

LARGEST_FILE = 2 * 2**30
"""Bytes of a file that is one JSON value, at most; the largest of VQAv2 has 0.4 GB."""
DEEPEST = 64
"""Lists and objects within one another, at most."""
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def parsed(
    content: bytes | str,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    names_of_files: bool = False,
) -> Any:
    """The value of a JSON text, as `json.loads` reads it, whose texts can all be written and printed again.

    A byte order mark is passed over.

    Args:
        content: The text.
        object_pairs_hook: That of `json.loads`.
        names_of_files: Whether texts may be names that are no UTF-8, as Python holds them (`files.write_json`).

    Raises:
        ValueError: It is no JSON in UTF-8, has lists more than `DEEPEST` deep in one another, a number of thousands of
            digits, or a text with half of a pair of code units.
    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    try:
        value = json.loads(text, object_pairs_hook=object_pairs_hook)
        _require_shallow(value, text, 0, len(text))
    except RecursionError as error:
        raise ValueError(str(error)) from None
    _require_whole_texts(value, text, "surrogateescape" if names_of_files else "strict")
    return value


def _require_whole_texts(value: Any, text: str, errors: str = "strict") -> None:
    """Raises UnicodeEncodeError where a value, read from `text`, holds half of a pair of code units."""
    if _HALF_PAIR.search(text):
        json.dumps(value, ensure_ascii=False).encode(errors=errors)


def _require_shallow(value: Any, text: str, start: int, end: int) -> None:
    """Raises RecursionError where a value, read from `text[start:end]`, is deeper than `DEEPEST`."""
    if text.count("[", start, end) + text.count("{", start, end) <= DEEPEST:
        return
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = [held.values() if isinstance(held, dict) else held for held in level if isinstance(held, dict | list)]
        level = list(chain.from_iterable(inner))
    if level:
        raise RecursionError(f"lists and objects are more than {DEEPEST} deep in one another")


def read_list(path: Path, key: str) -> Iterator[tuple[str, Any]]:
    """The elements of a list at the top level of a JSON file, each parsed when it is asked for.

    The file's text is held, its records are not: those of VQAv2 would take several GB.

    Args:
        path: A UTF-8 file that holds an object; a byte order mark is passed over.
        key: The name of the list in it.

    Yields:
        Where the element stands ('number 3 of "annotations"'), and the element.

    Raises:
        DataError: The file cannot be read, is damaged anywhere, or has no such list or an empty one.
    """
    try:
        content = read_whole(path, LARGEST_FILE)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not content.strip():
        raise DataError(f"{path} is empty ({len(content)} bytes): copy or download it again")
    mark = _mark(content)
    text = _decoded(path, content, mark)
    del content  # as large as the text
    at = _Place(text)
    found, others = 0, []
    try:
        if at.peek() == "{":
            for _ in at.inside("{", "}"):
                name = at.name()
                if name != key or at.peek() != "[":
                    others.append(name)
                    at.value()
                    continue
                for _ in at.inside("[", "]"):
                    found += 1
                    yield f'number {found} of "{key}"', at.value()
        else:
            at.value()
        at.end()
    except json.JSONDecodeError as error:
        raise _damaged(path, error, 1, mark) from None
    if not found:
        names = ", ".join(name[:40] for name in others[:8])
        held = f" (at its top level there are: {names})" if others else ""
        raise DataError(f'{path}: the list "{key}" is missing or is empty{held}')


def read_lines(path: Path, refuse: Refuse = stop, whole_texts: bool = False) -> Iterator[tuple[str, Any]]:
    """The values of a file of JSON lines; empty lines and a byte order mark are passed over.

    Args:
        path: A UTF-8 file.
        refuse: Gets the error of a damaged line, which is then passed over too.
        whole_texts: Take a line for damaged too where a text in it has half of a pair of code units, as `parsed` does.

    Yields:
        Where the value stands ("line 3"), and the value.

    Raises:
        DataError: The file cannot be read, or a line is damaged.
    """
    try:
        start = 0
        for number, line in enumerate(read_bytes_lines(path), 1):
            mark = _mark(line) if number == 1 else 0
            begin, start = start, start + len(line)
            try:
                text = _decoded(path, line, mark, begin).rstrip(" \t\r\n")
                if not text:
                    continue
                at = _Place(text)
                value = at.value()
                at.end()
                if whole_texts:
                    _require_whole_texts(value, text)
            except DataError as error:
                refuse(error)
            except json.JSONDecodeError as error:
                refuse(_damaged(path, error, number, begin + mark))
            except UnicodeEncodeError as error:
                refuse(DataError(f"{path}: line {number}: {error}"))
            else:
                yield f"line {number}", value
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def whole_lines(path: Path, error: type[UserError]) -> Iterator[tuple[bytes, Any]]:
    """The lines of a journal and their values, up to the first that is torn or damaged; none where there is no file.

    Raises:
        UserError: of the class `error`: the file cannot be read.
    """
    if not path.exists():
        return
    try:
        for line in read_bytes_lines(path):
            try:
                value = parsed(line)
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            yield line, value
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from None


class _Place:
    """A place in a JSON text, which moves on as values are read; JSONDecodeError says where something is wrong."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def peek(self) -> str:
        """The next character that is no space, empty at the end."""
        self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches nothing too
        return self._text[self._at : self._at + 1]

    def take(self, *signs: str) -> str:
        """Move past one of `signs`."""
        sign = self.peek()
        if sign not in signs:
            raise json.JSONDecodeError(f"Expecting {' or '.join(map(repr, signs))}", self._text, self._at)
        self._at += 1
        return sign

    def name(self) -> str:
        """Move past a name in an object and its colon."""
        if self.peek() != '"':
            raise json.JSONDecodeError("Expecting a name in double quotes", self._text, self._at)
        name = str(self.value())
        self.take(":")
        return name

    def inside(self, opened: str, closed: str) -> Iterator[None]:
        """Move past a list or object; stops before each of its elements, which the caller moves past."""
        self.take(opened)
        if self.peek() == closed:
            self.take(closed)
            return
        while True:
            yield
            if self.take(",", closed) == closed:
                return

    def value(self) -> Any:
        """Move past a value and return it."""
        self.peek()
        start = self._at
        try:
            value, self._at = _DECODER.raw_decode(self._text, start)
            _require_shallow(value, self._text, start, self._at)
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:  # an integer of thousands of digits, thousands of brackets
            raise json.JSONDecodeError(str(error), self._text, start) from None
        return value

    def end(self) -> None:
        """Make sure that nothing follows."""
        if self.peek():
            raise json.JSONDecodeError("Extra data", self._text, self._at)


def _mark(content: bytes) -> int:
    """Bytes of the byte order mark."""
    return len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0


def _decoded(path: Path, content: bytes, mark: int, start: int = 0) -> str:
    try:
        return str(memoryview(content)[mark:], "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {start + mark + error.start}") from None


def _damaged(path: Path, error: json.JSONDecodeError, line: int, start: int) -> DataError:
    """`error` stands in a text that begins in line `line`, at byte `start` of the file (both counted as in files)."""
    byte = start + len(error.doc[: error.pos].encode())
    return DataError(
        f"{path} is not valid JSON: line {line + error.lineno - 1}, byte {byte}: {error.msg}. "
        f"If it was cut short, copy or download it again"
    )

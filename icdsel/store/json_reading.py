"""Reading JSON: values, and large files record by record; errors name the place of the damage."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from icdsel.errors import DataError, Refuse, stop
from icdsel.store.reading import read_bytes_lines, read_whole

LARGEST_FILE = 2 * 2**30
"""The maximum size of a file that is one JSON value, in bytes; the largest of VQAv2 has 0.4 GB."""
DEEPEST = 64
"""The maximum nesting of lists and objects."""
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def parsed(
    content: bytes | str,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    names_of_files: bool = False,
) -> Any:
    """The value of a JSON text, as `json.loads` reads it; all of its strings can be written and printed again.

    A byte order mark is skipped.

    Args:
        content: The text.
        object_pairs_hook: That of `json.loads`.
        names_of_files: Whether strings may be file names that are not UTF-8, as `files.write_json` escapes them.

    Raises:
        ValueError: It is not JSON in UTF-8, or is nested more than `DEEPEST` deep, or has a number with thousands of
            digits, or a string with half of a surrogate pair.
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
    """Raises UnicodeEncodeError if a value that was read from `text` has half of a surrogate pair."""
    if _HALF_PAIR.search(text):
        json.dumps(value, ensure_ascii=False).encode(errors=errors)


def _require_shallow(value: Any, text: str, start: int, end: int) -> None:
    """Raises RecursionError if a value that was read from `text[start:end]` is nested more than `DEEPEST` deep."""
    if text.count("[", start, end) + text.count("{", start, end) <= DEEPEST:
        return
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = [held.values() if isinstance(held, dict) else held for held in level if isinstance(held, dict | list)]
        level = list(chain.from_iterable(inner))
    if level:
        raise RecursionError(f"lists and objects are nested more than {DEEPEST} deep")


def read_list(path: Path, key: str) -> Iterator[tuple[str, Any]]:
    """The elements of a list at the top level of a JSON file, parsed one by one.

    The text of the file is kept in memory, its records are not: those of VQAv2 would take several GB.

    Args:
        path: A UTF-8 file that holds an object; a byte order mark is skipped.
        key: The name of the list in it.

    Yields:
        The place of the element ('number 3 of "annotations"'), and the element.

    Raises:
        DataError: The file cannot be read, is damaged anywhere, or has no such list or an empty one.
    """
    text, mark = _opened(path)
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


def read_top(path: Path) -> Iterator[tuple[str, str, Any]]:
    """The parts of a JSON file's top level, parsed one by one: the elements of lists, and other values.

    As for `read_list`, only the text is kept in memory.

    Yields:
        The name of the list or value ("" for a file that is a list), its place ('number 3 of "data"', '"data"', or
        "number 3"), and the element or value.

    Raises:
        DataError: The file cannot be read, or is damaged anywhere.
    """
    text, mark = _opened(path)
    at = _Place(text)

    def elements(name: str) -> Iterator[tuple[str, str, Any]]:
        of = f' of "{name}"' if name else ""
        for number, _ in enumerate(at.inside("[", "]"), 1):
            yield name, f"number {number}{of}", at.value()

    try:
        if at.peek() == "[":
            yield from elements("")
        elif at.peek() == "{":
            for _ in at.inside("{", "}"):
                name = at.name()
                if at.peek() == "[":
                    yield from elements(name)
                else:
                    yield name, f'"{name}"', at.value()
        else:
            at.value()
        at.end()
    except json.JSONDecodeError as error:
        raise _damaged(path, error, 1, mark) from None


def _opened(path: Path) -> tuple[str, int]:
    """The text of a file, without its byte order mark, and the length of that mark in bytes.

    Raises:
        DataError: The file cannot be read, is empty or is not UTF-8.
    """
    try:
        content = read_whole(path, LARGEST_FILE)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not content.strip():
        raise DataError(f"{path} is empty ({len(content)} bytes): copy or download it again")
    mark = _mark(content)
    return _decoded(path, content, mark), mark


def read_lines(path: Path, refuse: Refuse = stop, whole_texts: bool = False) -> Iterator[tuple[str, Any]]:
    """The values of a file of JSON lines; empty lines and a byte order mark are skipped.

    Args:
        path: A UTF-8 file.
        refuse: Called with the error for a damaged line; if it returns, the line is skipped.
        whole_texts: Whether a line with half of a surrogate pair counts as damaged, as in `parsed`.

    Yields:
        The place of the value ("line 3"), and the value.

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


class _Place:
    """A position in a JSON text, which advances as values are read; JSONDecodeError names the place of an error."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def peek(self) -> str:
        """The next character that is not whitespace; empty at the end."""
        self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # it also matches an empty text
        return self._text[self._at : self._at + 1]

    def take(self, *signs: str) -> str:
        """Advances past one of `signs`."""
        sign = self.peek()
        if sign not in signs:
            raise json.JSONDecodeError(f"Expecting {' or '.join(map(repr, signs))}", self._text, self._at)
        self._at += 1
        return sign

    def name(self) -> str:
        """Advances past a name in an object and its colon."""
        if self.peek() != '"':
            raise json.JSONDecodeError("Expecting a name in double quotes", self._text, self._at)
        name = str(self.value())
        self.take(":")
        return name

    def inside(self, opened: str, closed: str) -> Iterator[None]:
        """Advances past a list or object; yields before each element; the caller advances past it."""
        self.take(opened)
        if self.peek() == closed:
            self.take(closed)
            return
        while True:
            yield
            if self.take(",", closed) == closed:
                return

    def value(self) -> Any:
        """Advances past a value and returns it."""
        self.peek()
        start = self._at
        try:
            value, self._at = _DECODER.raw_decode(self._text, start)
            _require_shallow(value, self._text, start, self._at)
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:  # thousands of digits or brackets
            raise json.JSONDecodeError(str(error), self._text, start) from None
        return value

    def end(self) -> None:
        """Checks that nothing follows."""
        if self.peek():
            raise json.JSONDecodeError("Extra data", self._text, self._at)


def _mark(content: bytes) -> int:
    """The length of the byte order mark, in bytes."""
    return len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0


def _decoded(path: Path, content: bytes, mark: int, start: int = 0) -> str:
    try:
        return str(memoryview(content)[mark:], "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {start + mark + error.start}") from None


def _damaged(path: Path, error: json.JSONDecodeError, line: int, start: int) -> DataError:
    """The message for an error in a text that begins in line `line`, at byte `start`, of the file."""
    byte = start + len(error.doc[: error.pos].encode())
    remedy = "If it was cut short, copy or download it again"
    if error.msg == "Extra data" and error.lineno > 1:  # of a text of several lines
        remedy = "If it holds one object per line, give it the ending .jsonl"
    elif path.suffix == ".jsonl" and line == 1 and error.doc.lstrip().startswith("["):
        remedy = "If it is one list over several lines, give it the ending .json"
    return DataError(f"{path} is not valid JSON: line {line + error.lineno - 1}, byte {byte}: {error.msg}. {remedy}")

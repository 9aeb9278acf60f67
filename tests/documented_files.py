"""What docs/files.md says, for the tests that compare it with what lies on disk."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from icdsel.settings.tables import TABLES

PAGE = Path(__file__).parent.parent / "docs/files.md"

# Names that go with any file: they are listed under "Temporary files, locks and backups".
_PASSING = [r"\.old-\d+(?=/|$)", r"\.part$"]
_LOCK = re.compile(r"\.(.+)\.lock")


class Section:
    """A chapter of the page: the files that it lists, and all the names that stand in it in backticks."""

    def __init__(self, text: str) -> None:
        listed = [line for line in text.splitlines() if line.startswith(("* `", "  `"))]
        listed = [name for line in listed for name in re.findall(r"`([^`]+)`", line.split("`: ")[0] + "`")]
        self.patterns = [_pattern(name) for name in listed if "/" in name]
        self.names = set(re.findall(r"`([^`\n]+)`", text))

    def lists(self, path: str) -> bool:
        """Whether a file of this path, relative to the working directory, is one of its files."""
        return any(pattern.fullmatch(path) for pattern in self.patterns)


def sections() -> dict[str, Section]:
    """The chapters of the page by title."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {title: Section(text) for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def undocumented(folder: Path) -> list[str]:
    """What lies under `results/` and `data/` of a working directory and is not on the page: files, and their fields."""
    chapters = sections().values()
    problems: dict[str, None] = {}
    for top in ("results", "data"):
        for path in sorted((folder / top).rglob("*")):
            if not path.is_file():
                continue
            name = path.relative_to(folder).as_posix()
            if _LOCK.fullmatch(path.name):
                continue  # its own name says what it is
            for suffix in _PASSING:
                name = re.sub(suffix, "", name)
            listing = [chapter for chapter in chapters if chapter.lists(name)]
            if not listing:
                problems[f"{name}: no such file on the page"] = None
            names = set().union(*(chapter.names for chapter in listing))
            for field in _fields(path, name):
                if listing and field not in names:
                    problems[f"{re.sub('[0-9]+', 'N', name)}: {field}"] = None
    return list(problems)


def _pattern(name: str) -> re.Pattern[str]:
    parts = re.split(r"<([^>]+)>", name)
    kinds = {"N": r"\d+"}
    texts = [re.escape(part) if i % 2 == 0 else kinds.get(part, r"[^/]+?") for i, part in enumerate(parts)]
    return re.compile("".join(texts))


def _fields(path: Path, name: str) -> Iterable[str]:
    """The names that a file's content has for what it holds."""
    if name.endswith(".jsonl"):
        return {key for line in path.read_text().splitlines() for key in _keys(json.loads(line))}
    if name.endswith((".meta.json", "run.json")):
        return set(_side_keys(json.loads(path.read_text())))
    if name.endswith((".pt", ".ckpt")):
        return set(_checkpoint_keys(torch.load(path, weights_only=True)))
    return ()


def _keys(value: Any) -> Iterator[str]:
    """Of all objects, those within one another too."""
    if isinstance(value, Mapping):
        yield from value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _keys(item)


def _side_keys(content: Mapping[str, Any]) -> Iterator[str]:
    settings = {f"{table}.{name}" for table, kind in TABLES.items() for name in kind.model_fields}
    assert content["settings"].keys() == TABLES.keys()
    yield from content
    yield from content["identity"].keys() - settings
    yield from content["environment"]
    yield from _keys(content.get("work", {}))


def _checkpoint_keys(content: Mapping[str, Any]) -> Iterator[str]:
    yield from content
    if "model_state_dict" in content:  # else in Lever-Plus's form, whose parts are described where they are ours
        yield from content["config"]
        yield from (weight.split(".")[0] for weight in content["model_state_dict"])

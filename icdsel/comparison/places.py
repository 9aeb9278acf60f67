"""Distinct names for rows: what distinguishes the place of each, such as its model or pool."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from icdsel.comparison.sources import AS_TEXT, HOW_CHOSEN, HOW_POOLED, Answered, Source
from icdsel.records import Shots
from icdsel.selection import selector_named
from icdsel.store.files import digest_of

# Entries that the names of rows already show, and the entries that distinguish places best, best first.
_IN_NAMES = {"selector", "checkpoint", "rl_data"}
_DISTINCTIVE = (
    *("model", "data.metric", "data.dataset", "dataset", "split"),
    *("data.sampler", "data.pool_size", "data.embed"),
)
_CALLED = {"data.pool_size": "pool"}
_LONGEST = 24  # characters of a setting in a name


def _distinctive(source: Source) -> dict[str, Any]:
    """The entries of a source's identity that may distinguish its place, without those that its selector ignores."""
    selector, silent = selector_named(source.selector), set(_IN_NAMES)
    if not selector.shows_icds:
        silent |= HOW_CHOSEN
    elif selector.whole_split:
        silent |= HOW_POOLED
    return {key: value for key, value in source.identity.items() if key not in silent}


def distinctly_named(rows: Sequence[Answered]) -> list[Answered]:
    """The rows with their places, without duplicates (such as zero-shot with two samplers)."""
    once: list[Answered] = []
    for row in rows:
        if not any(_same(row, other) for other in once):
            once.append(row)
    sources = list({row.source.path: row.source for row in once}.values())
    places = _places(sources)
    for more in (_by_set, _by_path):
        taken: dict[tuple[str, str, Shots], list[Source]] = {}
        for row in once:
            taken.setdefault((row.source.name, places[row.source.path], row.scores.shots), []).append(row.source)
        added = {path: words for same in taken.values() if len(same) > 1 for path, words in more(same).items()}
        for path, words in added.items():
            places[path] = f"{places[path]}, {words}" if places[path] else words
    return [replace(row, scores=replace(row.scores, place=places[row.source.path])) for row in once]


def _same(one: Answered, other: Answered) -> bool:
    """Whether two rows have the same choice and scores."""
    return (
        (_choice(one.source), one.scores.shots) == (_choice(other.source), other.scores.shots)
        and one.source.identity.get("checkpoint") == other.source.identity.get("checkpoint")
        and one.scores.by_query == other.scores.by_query
    )


def _choice(source: Source) -> tuple[str, dict[str, Any]]:
    """What decides a source's choice: `nearest-both-all` is `nearest-both` with `--pool-size all`."""
    selector, entries = selector_named(source.selector), _distinctive(source)
    if source.pool != "all":
        return source.name, entries
    bare = selector.over("all").name + source.name.removeprefix(selector.name)
    return bare, {key: value for key, value in entries.items() if key not in HOW_POOLED}


def _places(sources: Sequence[Source]) -> dict[Path, str]:
    """What distinguishes each file's place from the others', as briefly as possible; empty if nothing does."""
    entries = {source.path: _distinctive(source) for source in sources}
    places: dict[Path, str] = {source.path: "" for source in sources}
    for key in keys_of(sources):
        described = [source for source in sources if key in entries[source.path]]
        seen: dict[str, set[str]] = {}
        for source in described:
            seen.setdefault(places[source.path], set()).add(repr(source.identity[key]))
        if any(len(values) > 1 for values in seen.values()):  # it distinguishes sources that had the same place so far
            for source, words in zip(described, _words(described, key), strict=True):
                places[source.path] += f", {words}" if places[source.path] else words
    return places


def _words(sources: Sequence[Source], key: str) -> list[str]:
    """A setting of each source in short: `tiny-vlm`, `layout turns`, `no-exclude-same-image`."""
    name = key.split(".")[-1].replace("_", "-")
    table, setting = AS_TEXT.get(key, ("", ""))
    words: dict[str, str] = {}
    for source in sources:
        value = source.identity[key]
        if isinstance(value, bool):
            words[repr(value)] = name if value else f"no-{name}"
            continue
        named = source.settings.get(table, {}).get(setting)
        text = str(value) if named is None or key == "dtype" else Path(str(named)).name
        short = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
        words[repr(value)] = short if key == "model" else f"{_CALLED.get(key, name)} {short}"
    if len(set(words.values())) < len(words):  # the same name for two: a model trained further, a long prompt
        words = {value: f"{short} {digest_of(value)[:6]}" for value, short in words.items()}
    return [words[repr(source.identity[key])] for source in sources]


def _by_set(sources: Sequence[Source]) -> dict[Path, str]:
    """The sets of queries, if they differ."""
    several = len({source.subset for source in sources}) > 1
    return {source.path: source.subset for source in sources} if several else {}


def _by_path(sources: Sequence[Source]) -> dict[Path, str]:
    """The parts in which the paths differ."""
    parts = {source.path: source.path.absolute().with_suffix("").parts for source in sources}
    fewest = min(map(len, parts.values()))
    ends = [len(set(column)) == 1 for column in zip(*(reversed(segments) for segments in parts.values()), strict=False)]
    starts = [len(set(column)) == 1 for column in zip(*parts.values(), strict=False)]
    first, last = _leading(starts), min(_leading(ends), fewest - _leading(starts))
    return {path: "/".join(segments[first : len(segments) - last]) or str(path) for path, segments in parts.items()}


def _leading(flags: Sequence[bool]) -> int:
    """How many are True before the first that is False."""
    return flags.index(False) if False in flags else len(flags)


def keys_of(sources: Sequence[Source]) -> list[str]:
    """The entries of all identities, the most distinctive first."""
    keys = sorted(set().union(*(source.identity for source in sources)))
    return sorted(keys, key=lambda key: _DISTINCTIVE.index(key) if key in _DISTINCTIVE else len(_DISTINCTIVE))

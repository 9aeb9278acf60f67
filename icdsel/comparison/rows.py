"""Files of predictions as rows of a comparison: found, read, checked for comparability, and given distinct names."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from icdsel.artefacts.predictions import read_predictions
from icdsel.comparison.scores import Scores, mean_over_seeds
from icdsel.errors import RunError, SettingsError
from icdsel.records import DEFAULT_TASK, QuestionId
from icdsel.selection import selector_named
from icdsel.store.files import digest_of
from icdsel.store.metadata import read_metadata
from icdsel.tasks.base import TASKS

# Rows may always differ in how their ICDs were chosen: that is what a comparison is about.
_HOW_CHOSEN = {"selector", "checkpoint", "rl_data", "sampler_encoder", "encoder", "train_embeddings", "data.seed"}
_HOW_CHOSEN |= {f"data.{name}" for name in ("sampler", "pool_size", "pool_rules", "exclude_same_image", "embed")}
_HOW_POOLED = {"data.sampler", "data.pool_size", "data.pool_rules"}
# Entries that the names of rows already show, and the entries that distinguish places best, best first.
_IN_NAMES = {"selector", "checkpoint", "rl_data"}
_DISTINCTIVE = (
    *("model", "data.metric", "data.dataset", "dataset", "split"),
    *("data.sampler", "data.pool_size", "data.embed"),
)
# Fingerprints, and the settings that describe the same things as text.
_AS_TEXT = {"model": ("vlm", "model"), "dataset": ("data", "dataset"), "dtype": ("vlm", "dtype")}
_AS_TEXT |= {name: ("data", name) for name in ("encoder", "sampler_encoder", "train_embeddings")}
_SHOWN = 4  # names of rows in a message
_LONGEST = 24  # characters of a setting in a name


@dataclass(frozen=True)
class Source:
    """A file of predictions.

    Attributes:
        path: The file.
        name: The name of its row.
        selector: The selector.
        subset: The set of queries.
        identity: Everything that decided its content.
        settings: The resolved settings of the `infer` that wrote it, by table; empty if unknown.
        checkpoint: The policy's checkpoint, if known.
    """

    path: Path
    name: str
    selector: str
    subset: str
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    checkpoint: Path | None = None

    @property
    def pool(self) -> str | None:
        """What its selector chose from: `64`, `all`, or None if it chose nothing or the size was not recorded."""
        size = self.identity.get("data.pool_size", self.settings.get("data", {}).get("pool_size"))
        return selector_named(self.selector).pool(size) if size is not None else None

    @property
    def task(self) -> str:
        """The name of the task."""
        return str(self.identity.get("data.task", DEFAULT_TASK))

    def value(self, key: str) -> str:
        """The identity's value of `key` as text; a fingerprint with the setting that it stands for."""
        value = self.identity.get(key)
        table, name = _AS_TEXT.get(key, ("", ""))
        setting = self.settings.get(table, {}).get(name)
        if setting is None or (key == "dtype" and value):
            return repr(value)
        return f"{Path(str(setting)).name} ({str(value)[:8]})"


@dataclass(frozen=True)
class Answered:
    """One file's answers at one number of shots: all queries, and the scores of those whose call did not fail."""

    source: Source
    scores: Scores
    asked: frozenset[QuestionId]

    @property
    def label(self) -> str:
        """The row and, in brackets, its set of queries."""
        return f"{self.source.name} [{self.source.subset}]"


@dataclass(frozen=True)
class Comparable:
    """Rows over the same queries.

    Attributes:
        scores: The rows, each over the queries that every row has an answer to.
        asked: How many queries every row has, with those whose call failed.
        differing: Differences between the rows that were allowed, a line for each.
        sources: The files of the rows.
    """

    scores: list[Scores]
    asked: int
    differing: list[str]
    sources: list[Source]


def read_comparable(
    paths: Sequence[Path],
    *,
    n: int | None = None,
    subset: str | None = None,
    shots: Sequence[int] = (),
    allow_different: bool = False,
    names: Mapping[Path, str] | None = None,
) -> Comparable:
    """The rows of files of predictions, all over the same queries and with distinct titles.

    Args:
        paths: Files of predictions, or folders of them.
        n: Only rows over this many queries.
        subset: Only rows over the set of this name.
        shots: Only rows at these numbers of shots, and zero-shot; all by default.
        allow_different: Also accept rows with different metrics, prompts or models; if their queries differ, keep
            those that all rows share.
        names: The names of the rows of each of `paths`; rows of the same name become their mean, query by query.

    Raises:
        RunError: There are none, a file is damaged, they are of different tasks, or they differ otherwise and that
            is not allowed.
    """
    answered = [row for path in _files(paths) for row in _read(path, names[path] if names else None)]
    where = ", ".join(map(str, paths))
    if not answered:
        raise RunError(f"{where}: no predictions in it. Create them with `icdsel infer`.")
    rows = [row for row in answered if n in (None, len(row.asked)) and subset in (None, row.source.subset)]
    if len(tasks := sorted({row.source.task for row in rows})) > 1:
        raise RunError(f"rows of different tasks have no score in common: {', '.join(tasks)}. Compare each by itself.")
    if not rows:
        chosen = [f"over {n} queries"] * (n is not None) + [f"of the set {subset!r}"] * (subset is not None)
        sets = sorted({f"{row.source.subset} ({len(row.asked)} queries)" for row in answered})
        raise RunError(f"{where} holds no predictions {' '.join(chosen)}: there are {', '.join(sets)}")
    if shots:
        existing = sorted({row.scores.shots for row in rows})
        if not set(existing) & set(shots):
            wanted = [str(count) for count in shots]
            raise RunError(
                f"no predictions at {', '.join(wanted)} shots: choose others with --shots (there are "
                f"{', '.join(map(str, existing))}), or create them with `icdsel infer --shots {','.join(wanted)}`"
            )
        rows = [row for row in rows if row.scores.shots in (0, *shots)]
    shared = frozenset.intersection(*(row.asked for row in rows))
    differing = _differing(rows, shared)
    if differing and not (allow_different and shared):
        raise RunError(_not_comparable(differing, shared))
    rows = _restricted(rows, shared) if names else _distinctly_named(_restricted(rows, shared))
    sources = list({row.source.path: row.source for row in rows}.values())
    scores = [row.scores for row in rows]
    summary = [line.split("\n")[0] for line in differing]
    return Comparable(_united(scores) if names else scores, len(shared), summary, sources)


def _united(rows: Sequence[Scores]) -> list[Scores]:
    """One row for those of the same name and number of shots."""
    same: dict[tuple[str, int], list[Scores]] = {}
    for row in rows:
        same.setdefault((row.name, row.shots), []).append(row)
    return [mean_over_seeds(group[0].name, group) if len(group) > 1 else group[0] for group in same.values()]


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files of predictions among `paths` and in the folders among them, each once.

    Raises:
        RunError: A path does not exist, or a folder holds none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            found.append(path)
        elif inside := sorted(path.glob("*.jsonl")) or sorted(path.glob("*/*.jsonl")):
            found += inside
        else:
            raise RunError(
                f"{path} {'' if path.exists() else 'does not exist and '}holds no predictions. Create them with "
                "`icdsel infer`, or name files or folders of predictions: `icdsel compare results/world/infer/*`."
            )
    return list({os.path.realpath(path): path for path in found}.values())


def read_source(path: Path, name: str | None = None) -> Source:
    """A file of predictions, by its metadata; `name` replaces its own name.

    Raises:
        RunError: The metadata file is missing or damaged.
    """
    metadata = read_metadata(path.with_suffix(".meta.json"))
    identity = metadata.inputs
    return Source(
        path=path,
        name=name or metadata.name or path.stem,
        selector=str(identity.get("selector")),
        subset=metadata.set or "unnamed",
        identity=identity,
        settings=metadata.settings,
        checkpoint=Path(metadata.checkpoint) if metadata.checkpoint else None,
    )


def _read(path: Path, name: str | None = None) -> list[Answered]:
    """A file's rows, by number of shots.

    Raises:
        RunError: The file or its metadata is damaged, its task is unknown, or its metadata name another one.
    """
    source = read_source(path, name)
    try:
        task = TASKS.named(source.task)
    except SettingsError as error:
        raise RunError(f"{path}: {error}") from None
    asked: dict[int, set[QuestionId]] = {}
    answered: dict[int, dict[QuestionId, float]] = {}
    others: dict[int, dict[str, dict[QuestionId, float]]] = {}
    for record in read_predictions(path):
        if record.task != task.name:
            raise RunError(f"{path} holds predictions of the task {record.task}, its metadata are of {task.name}")
        asked.setdefault(record.shots, set()).add(record.question_id)
        if record.score is not None:
            answered.setdefault(record.shots, {})[record.question_id] = float(record.score)
            for metric in record.other_scores.keys() & task.metrics.keys():
                by_query = others.setdefault(record.shots, {}).setdefault(metric, {})
                by_query[record.question_id] = float(record.other_scores[metric])
    rows = [
        Scores(
            name=source.name,
            selector=source.selector,
            shots=shots,
            by_query=answered.get(shots, {}),
            metric=str(source.identity.get("data.metric", task.default_metric)),
            by_other_metric=others.get(shots, {}),
            pool=source.pool,
            path=path,
            task=task.name,
        )
        for shots in asked
    ]
    return [Answered(source, row, frozenset(asked[row.shots])) for row in rows]


# --- what may be compared ---------------------------------------------------------------------------------


def _differing(rows: Sequence[Answered], shared: frozenset[QuestionId]) -> list[str]:
    """Differences between the rows that need to be allowed: a line for each, the queries first (with details below)."""
    lines = []
    sets: dict[frozenset[QuestionId], list[str]] = {}
    for row in rows:
        sets.setdefault(row.asked, []).append(row.label)
    if len(sets) > 1:
        counts = sorted(map(len, sets))
        span = str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
        below = "".join(f"\n    {len(questions)} queries: {_some(names)}" for questions, names in sets.items())
        lines.append(f"different queries: {len(sets)} sets of {span}, of which all rows share {len(shared)}{below}")
    sources = list({row.source.path: row.source for row in rows}.values())
    for key in _keys(sources):
        values: dict[str, list[Source]] = {}
        for source in sources:
            values.setdefault(repr(source.identity.get(key)), []).append(source)
        if key not in _HOW_CHOSEN and len(values) > 1:
            each = [f"{same[0].value(key)} ({_some([one.name for one in same])})" for same in values.values()]
            lines.append(f"different {_kind(key)}: {key} is {', '.join(each)}")
    return lines


def _kind(key: str) -> str:
    """What an entry of the identity decides, as text."""
    if key.startswith("vlm.") or key == "data.shown_answer":
        return "prompts or decoding"
    named = {"data.metric": "metrics", "model": "models", "dtype": "arithmetic of the model", "scorer": "scorers"}
    return named.get(key, "data")


def _some(names: Iterable[str]) -> str:
    """The first few of the names, and how many more there are."""
    once = list(dict.fromkeys(names))
    return ", ".join(once[:_SHOWN]) + (f" and {len(once) - _SHOWN} more" if len(once) > _SHOWN else "")


def _not_comparable(differing: Sequence[str], shared: frozenset[QuestionId]) -> str:
    """Why rows cannot be compared, with every remedy."""
    ways = ["name only files or folders that belong together: `icdsel compare PATH…`"]
    queries = any(line.startswith("different queries") for line in differing)
    if queries:
        ways.append("choose the rows over one set with --n or --set (in brackets)")
        ways.append("answer the same queries with every selector: `icdsel infer --n N`")
    if len(differing) > queries:
        ways.append("answer under the same settings: `icdsel infer` with the flags that differ")
    if shared:
        among = f", on the {len(shared)} queries that all share" if queries else ""
        ways.append(f"compare all the same with --allow-different{among}")
    return (
        "these rows cannot be compared as they are:\n  "
        + "\n  ".join(differing)
        + "\nWhat you can do:\n  - "
        + "\n  - ".join(ways)
    )


def _keys(sources: Sequence[Source]) -> list[str]:
    """The entries of all identities, the most distinctive first."""
    keys = sorted(set().union(*(source.identity for source in sources)))
    return sorted(keys, key=lambda key: _DISTINCTIVE.index(key) if key in _DISTINCTIVE else len(_DISTINCTIVE))


def _restricted(rows: Sequence[Answered], shared: frozenset[QuestionId]) -> list[Answered]:
    """The rows over the queries that every row has an answer to: a failed VLM call is not a wrong answer."""
    common = shared.intersection(*(row.scores.by_query for row in rows))
    if not common:
        raise RunError(
            "no query has an answer in every row, because calls failed: move the files away and repeat `icdsel infer`"
        )

    def kept(scores: Mapping[QuestionId, float]) -> dict[QuestionId, float]:
        return {i: score for i, score in scores.items() if i in common}

    restricted = []
    for row in rows:
        by_other_metric = {metric: kept(values) for metric, values in row.scores.by_other_metric.items()}
        scores = replace(row.scores, by_query=kept(row.scores.by_query), by_other_metric=by_other_metric)
        restricted.append(replace(row, scores=scores))
    return restricted


# --- names ------------------------------------------------------------------------------------------------


def _distinctive(source: Source) -> dict[str, Any]:
    """The entries of a source's identity that may distinguish its place, without those that its selector ignores."""
    selector, silent = selector_named(source.selector), set(_IN_NAMES)
    if not selector.shows_icds:
        silent |= _HOW_CHOSEN
    elif selector.whole_split:
        silent |= _HOW_POOLED
    return {key: value for key, value in source.identity.items() if key not in silent}


def _distinctly_named(rows: Sequence[Answered]) -> list[Answered]:
    """The rows with their places, without duplicates (such as zero-shot with two samplers)."""
    once: list[Answered] = []
    for row in rows:
        if not any(_same(row, other) for other in once):
            once.append(row)
    sources = list({row.source.path: row.source for row in once}.values())
    places = _places(sources)
    for more in (_by_set, _by_path):
        taken: dict[tuple[str, str, int], list[Source]] = {}
        for row in once:
            taken.setdefault((row.source.name, places[row.source.path], row.scores.shots), []).append(row.source)
        added = {path: words for same in taken.values() if len(same) > 1 for path, words in more(same).items()}
        for path, words in added.items():
            places[path] = f"{places[path]}, {words}" if places[path] else words
    return [replace(row, scores=replace(row.scores, place=places[row.source.path])) for row in once]


def _same(one: Answered, other: Answered) -> bool:
    """Whether two rows have the same name, settings, checkpoint and scores."""
    return (
        (one.source.name, one.scores.shots) == (other.source.name, other.scores.shots)
        and one.source.identity.get("checkpoint") == other.source.identity.get("checkpoint")
        and _distinctive(one.source) == _distinctive(other.source)
        and one.scores.by_query == other.scores.by_query
    )


def _places(sources: Sequence[Source]) -> dict[Path, str]:
    """What distinguishes each file's place from the others', as briefly as possible; empty if nothing does."""
    entries = {source.path: _distinctive(source) for source in sources}
    places: dict[Path, str] = {source.path: "" for source in sources}
    for key in _keys(sources):
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
    table, setting = _AS_TEXT.get(key, ("", ""))
    words: dict[str, str] = {}
    for source in sources:
        value = source.identity[key]
        if isinstance(value, bool):
            words[repr(value)] = name if value else f"no-{name}"
            continue
        named = source.settings.get(table, {}).get(setting)
        text = str(value) if named is None or key == "dtype" else Path(str(named)).name
        short = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
        words[repr(value)] = short if key == "model" else f"{name} {short}"
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

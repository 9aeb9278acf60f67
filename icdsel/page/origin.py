"""How the results on a page came about: commands, seeds, costs and the prompt, by the metadata of the results.

The metadata may come from somebody else. They are only shown, never followed, and no command that is shown makes a
model's own code run. There are no dates, so the same results always give the same page.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icdsel.artefacts.rl_data import metadata_path, rl_data_path
from icdsel.artefacts.run_folder import METADATA_FILE
from icdsel.errors import RunError, SettingsError
from icdsel.page.choices import Chosen
from icdsel.page.runs import ShownRun
from icdsel.records import Example, shots_order
from icdsel.selection import always_shown, selector_named
from icdsel.settings.flags import flags
from icdsel.settings.loading import Settings, settings_from, with_values
from icdsel.settings.tables import TABLES
from icdsel.store.metadata import Metadata, read_metadata

Prompter = Callable[[Settings, Sequence[Example], Example], Sequence[Mapping[str, Any]]]
"""The chat messages that show demonstrations and a query to the VLM (`icdsel.vlm.prompts.chat_messages`). Whoever
writes a page hands it over, because the page's package knows no VLM."""


@dataclass(frozen=True)
class Origin:
    """What a page cannot know by the results.

    Attributes:
        command: The command that writes the page; empty if it was no command.
        prompter: Makes the example of a prompt; without it only the templates are shown.
    """

    command: str = ""
    prompter: Prompter | None = None


@dataclass(frozen=True)
class Step:
    """A command that made results, and what it is for."""

    purpose: str
    command: str


@dataclass(frozen=True)
class Cost:
    """What a step cost.

    Attributes:
        step: The step.
        calls: Prompts that the VLM answered; 0 if none.
        images: Images that these prompts showed; None if unknown.
        seconds: How long it took, as far as it was recorded; None if it was not.
        timed: The images that `seconds` covers, if not all: other answers were reused, or added by another command.
            Then `calls` and `images` are upper bounds.
    """

    step: str
    calls: int
    images: int | None
    seconds: float | None
    timed: int | None = None


@dataclass(frozen=True)
class Prompt:
    """How the VLM was asked.

    Attributes:
        settings: The settings that word and decode a prompt, by their names on the command line.
        turns: An example: the turns with their role; each part is a text, or an image. Empty without the dataset.
    """

    settings: Mapping[str, str]
    turns: Sequence[tuple[str, Sequence[str | Path]]]


_WORDING = ("system_prompt", "icd_template", "query_template", "layout")
_DECODING = ("max_new_tokens", "num_beams", "length_penalty", "repetition_penalty", "clean_answers")


def steps(chosen: Sequence[Chosen], runs: Sequence[ShownRun], rl_data: Iterable[Path]) -> list[Step]:
    """The commands that make the results again, in order: RL data, training, answers.

    Args:
        chosen: The answers.
        runs: The runs.
        rl_data: The files of RL data that are known to be those of the runs; metadata beside others are not read.
    """
    found = [*_rl_data_steps(rl_data), *(_training(run) for run in runs), *_answering(chosen, runs)]
    return list(dict.fromkeys(step for step in found if step))


def _rl_data_steps(paths: Iterable[Path]) -> Iterable[Step | None]:
    for path in paths:
        recorded = _recorded(metadata_path(path))
        if recorded:
            output = [] if path == rl_data_path(recorded) else ["--output", str(path)]
            if recorded.proposals.references == "auto":  # of a version that scored all of them, and records none
                recorded = with_values(recorded, {"proposals": {"references": "labels"}})
            words = ["gen-rl-data", *_flags(recorded, "data", "vlm", "proposals"), *output]
            yield Step(f"Scores pointers: {path.name}", _line(words))


def _training(run: ShownRun) -> Step | None:
    recorded = _recorded(run.folder / METADATA_FILE)
    if recorded is None:
        return None
    data = [word for path, _ in run.rl_data for word in ("--rl-data", str(path))]
    words = ["train", *_flags(recorded, "data", "vlm", "reward", "train"), *data, "--run", run.folder.name]
    return Step(f"Trains {run.label}", _line(words))


def _answering(chosen: Sequence[Chosen], runs: Sequence[ShownRun]) -> list[Step]:
    """One command for all selectors that were answered in the same way; those of every comparison come with any."""
    alike: dict[tuple[str, ...], dict[str, str]] = {}
    for row in chosen:
        recorded = _recorded_in(row.source.settings)
        if recorded is None:
            continue
        seeded = [] if selector_named(row.source.selector).seed(recorded) is not None else ["random_seed"]
        words = _flags(recorded, "data", "vlm", "infer", leave_out=["selector", "shots", *seeded])
        counts = sorted(
            {other.shots for other in chosen if other.source.path == row.source.path} - {0}, key=shots_order
        )
        if counts:
            words += ["--shots", ",".join(map(str, counts))]
        if row.learned:
            words += _policy_flags(row, runs)
        alike.setdefault(tuple(words), {}).setdefault(row.source.selector, row.label)
    found = []
    for given, names in alike.items():
        own = [name for name in names if name not in always_shown()]
        if own or len(alike) == 1:
            labels = ", ".join(dict.fromkeys(names[name] for name in own or names))
            words = ["infer", *given, "--selector", ",".join(own or names)]
            found.append(Step(f"Answers the queries: {labels}", _line(words)))
    return found


def _policy_flags(row: Chosen, runs: Sequence[ShownRun]) -> list[str]:
    checkpoint = row.source.checkpoint
    if checkpoint is None:
        return []
    known = next((run.folder for run in runs if checkpoint.parent == run.folder), None)
    return ["--run", known.name] if known else ["--checkpoint", str(checkpoint)]


def seeds(chosen: Sequence[Chosen], runs: Sequence[ShownRun], resampling: int) -> list[tuple[str, str]]:
    """Every source of chance with its seeds."""
    recorded = [found for row in chosen if (found := _recorded_in(row.source.settings))]
    drawn = [found.data.seed for found in recorded]
    trained = [found for run in runs if (found := _recorded(run.folder / METADATA_FILE))]
    training = [found.data.seed if found.train.train_seed is None else found.train.train_seed for found in trained]
    random = [
        seed
        for row in chosen
        if (found := _recorded_in(row.source.settings))
        and (seed := selector_named(row.source.selector).seed(found)) is not None
    ]
    every = {
        "candidate pools": drawn,
        "training": training,
        "demonstrations drawn at random": random,
        "intervals and p-values": [resampling],
    }
    return [(what, ", ".join(map(str, sorted(set(values))))) for what, values in every.items() if values]


def costs(chosen: Sequence[Chosen], runs: Sequence[ShownRun], pointers: Mapping[Path, Sequence[int]]) -> list[Cost]:
    """What RL data, training and answers cost; a total last.

    Args:
        chosen: The answers.
        runs: The runs.
        pointers: How many demonstrations each scored pointer has, for each file of RL data.
    """
    found = []
    for path, sizes in pointers.items():
        metadata, shown = _metadata(metadata_path(path)), sum(sizes) + len(sizes)
        work = metadata.work.get("scoring")
        share = min(1.0, work.count / metadata.queries) if work and metadata.queries else 1.0
        found.append(
            Cost(
                step=f"Scored pointers of {path.name}",
                calls=len(sizes),
                images=shown,
                seconds=work.seconds if work else None,
                timed=round(shown * share) if share < 1 else None,
            )
        )
    for run in runs:
        spent = _metadata(run.folder / METADATA_FILE).work
        online = max((int(epoch.values.get("vlm_calls") or 0) for epoch in run.epochs), default=0)
        seconds = sum(work.seconds for work in spent.values()) if spent else None
        found.append(Cost(f"Training of {run.label}", online, None if online else 0, seconds))
    for path, rows in _by_file(chosen).items():
        if not selector_named(rows[0].source.selector).needs_vlm:
            continue
        metadata = _metadata(path.with_suffix(".meta.json"))
        counts = {str(row.shots): len(row.by_query) for row in rows} | dict(metadata.answers)
        mean = {str(row.shots): row.mean_shots for row in rows}
        images_of = {shots: float(shots) if re.fullmatch("[0-9]{1,6}", shots) else mean.get(shots) for shots in counts}
        shown = round(sum((size + 1) * counts[shots] for shots, size in images_of.items() if size is not None))
        work = metadata.work.get("answering")
        timed = work.count if work else 0
        found.append(
            Cost(
                step=f"Answers of {rows[0].label}",
                calls=sum(counts.values()),
                images=shown,
                seconds=work.seconds if work else None,
                timed=timed if timed < shown else None,
            )
        )
    known = [cost.seconds for cost in found if cost.seconds is not None]
    images = None if any(cost.images is None for cost in found) else sum(cost.images or 0 for cost in found)
    covered = sum(cost.timed if cost.timed is not None else cost.images or 0 for cost in found)
    partly = covered if any(cost.timed is not None for cost in found) else None
    total = Cost("Total", sum(cost.calls for cost in found), images, sum(known) if known else None, partly)
    return [*found, total] if len(found) > 1 else found


def _by_file(chosen: Sequence[Chosen]) -> dict[Path, list[Chosen]]:
    files: dict[Path, list[Chosen]] = {}
    for row in chosen:
        files.setdefault(row.source.path, []).append(row)
    return files


def prompts(
    chosen: Sequence[Chosen], prompter: Prompter | None, example: tuple[Sequence[Example], Example] | None
) -> list[Prompt]:
    """Every way in which the VLM was asked, usually one.

    Args:
        chosen: The answers.
        prompter: Makes the example.
        example: The demonstrations and the query of the example; None without the dataset.
    """
    found: dict[str, Prompt] = {}
    for row in chosen:
        settings = _recorded_in(row.source.settings)
        if settings is None or not selector_named(row.source.selector).needs_vlm:
            continue
        shown = {name.replace("_", "-"): str(getattr(settings.vlm, name)) for name in (*_WORDING, *_DECODING)}
        if repr(shown) not in found:
            found[repr(shown)] = Prompt(shown, _turns(settings, prompter, example))
    return list(found.values())


def _turns(
    settings: Settings, prompter: Prompter | None, example: tuple[Sequence[Example], Example] | None
) -> list[tuple[str, list[str | Path]]]:
    if prompter is None or example is None:
        return []
    try:
        messages = prompter(settings, *example)
    except SettingsError:  # a layout or a task that is not installed here
        return []
    return [
        (str(turn["role"]), [part["text"] if part["type"] == "text" else part["image"] for part in turn["content"]])
        for turn in messages
    ]


def _metadata(path: Path) -> Metadata:
    try:
        return read_metadata(path)
    except RunError:  # a file that was moved or damaged: what it would say is left out
        return Metadata(inputs={})


def _recorded(path: Path) -> Settings | None:
    return _recorded_in(_metadata(path).settings)


def _recorded_in(settings: Mapping[str, Any]) -> Settings | None:
    """The settings that a metadata file records; None without any, or if another version wrote them."""
    tables = {table: values for table, values in settings.items() if table in TABLES}
    try:
        return settings_from(tables) if tables else None
    except SettingsError:
        return None


def _flags(settings: Settings, *tables: str, leave_out: Iterable[str] = ()) -> list[str]:
    return flags(settings, *tables, leave_out=["trust_remote_code", *leave_out])


def _line(words: Sequence[str]) -> str:
    return shlex.join(["icdsel", *words])

"""The choosing stage: ICDs for new queries, and the finished prompts as JSON lines."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from icdsel.artefacts.hub import is_on_hub
from icdsel.artefacts.run_folder import find_run_anywhere, is_bundle, recorded_settings
from icdsel.choosing.choice import Choice
from icdsel.choosing.messages import MessageFormat
from icdsel.choosing.output import line_of
from icdsel.choosing.selector import Selector
from icdsel.console import note, progress
from icdsel.data.images import ImageError
from icdsel.data.named import dataset_names
from icdsel.errors import DataError, RunError
from icdsel.records import Example, Shots
from icdsel.settings.loading import Settings, with_values
from icdsel.settings.tables import DataSettings
from icdsel.stages.bundle_of_run import bundle_of
from icdsel.stages.session import Session
from icdsel.stages.threads import use_threads
from icdsel.store.fingerprints import fingerprint_examples
from icdsel.store.slot import Slot

UNIT = 64
"""Queries that are embedded and journaled together."""
_REMEDY = "Use --overwrite to rename it to a backup, or --output FILE for another place."


class Opened(NamedTuple):
    """A selector, and the settings of its data: those of a run are the ones that it was trained with."""

    selector: Selector
    data: DataSettings


def open_selector(settings: Settings, run: str | None) -> Opened:
    """A selector of a bundle, or of a run on this machine with its training split.

    Args:
        settings: Where runs are, and what replaces the recorded settings of a run; for a bundle, where its encoder and
            its candidates' images are.
        run: A bundle's folder, `hub:owner/name`, or the name or number of a run; by default the last one.

    Raises:
        UserError: There is no such run or bundle, or it cannot be used.
    """
    if run is not None and (is_on_hub(run) or is_bundle(Path(run))):
        use_threads(settings)
        device = "cpu" if settings.vlm.device == "auto" else settings.vlm.device
        encoder = settings.data.encoder if "encoder" in settings.data.model_fields_set else None
        selector = Selector.load(run, device=device, encoder=encoder, image_dir=settings.data.image_dir)
        return Opened(selector, _data_of_bundle(settings, selector.bundle.manifest.dataset))
    found = find_run_anywhere(settings, run)
    note(f"Policy: {found.checkpoint}")
    session = Session(with_values(recorded_settings(settings, found), {"data": {"pool_size": "all"}}))
    bundle = bundle_of(session, found.checkpoint, found.name)
    return Opened(Selector(bundle, session.settings, session.encoder), session.settings.data)


def _data_of_bundle(settings: Settings, dataset: str) -> DataSettings:
    """The settings of the data that the candidates of a bundle come from, unless another dataset was given."""
    if "dataset" in settings.data.model_fields_set or dataset not in dataset_names():
        return settings.data
    return with_values(settings, {"data": {"dataset": dataset}}).data


def choose_in_units(selector: Selector, queries: Sequence[Example], shots: Shots, by: str) -> Iterator[list[Choice]]:
    """Chooses the ICDs of queries, with progress.

    Raises:
        UserError: As for `Selector.choose_all`.
    """
    with progress("Choosing", len(queries)) as advance:
        for start in range(0, len(queries), UNIT):
            unit = queries[start : start + UNIT]
            yield selector.choose_all(unit, shots, by)
            advance(len(unit))


def write_prompts(
    selector: Selector,
    queries: Sequence[Example],
    shots: Shots,
    by: str,
    form: MessageFormat,
    path: Path,
    overwrite: bool = False,
) -> int:
    """Writes a line with the prompt of each query; an interrupted file is resumed, and a complete one reused.

    Returns:
        How many queries were chosen for now.

    Raises:
        RunError: The file was written with different settings, or another process is writing it.
        DataError: An image cannot be read.
    """
    inputs = {
        "bundle": selector.bundle.fingerprint,
        "queries": fingerprint_examples(queries),
        "selector": by,
        "shots": str(shots),
        "form": form.name,
    }
    with Slot(path, inputs, path.exists, RunError, _REMEDY).open(overwrite) as result:
        if result.complete:
            note(f"{path} exists, with the same queries and settings.")
            return 0
        settings = selector.settings
        result.begin(settings.model_dump(mode="json"), settings.vlm.device, use_threads(settings))
        written = iter(queries)
        done = sum(1 for _ in result.journal.read(lambda line: _require_line(line, next(written, None))))
        for choices in choose_in_units(selector, queries[done:], shots, by):
            try:
                messages = [form.messages(one.request, one.style, one.max_image_pixels) for one in choices]
            except ImageError as error:
                raise DataError(str(error)) from None
            result.journal.append(line_of(one, by, own) for one, own in zip(choices, messages, strict=True))
        result.commit()
    return len(queries) - done


def _require_line(line: Any, query: Example | None) -> None:
    if query is None or not isinstance(line, dict) or line.get("question_id") != query.question_id:
        raise ValueError("it is not the prompt of the next query")

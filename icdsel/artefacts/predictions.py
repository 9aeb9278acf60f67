"""Files of predictions, as `icdsel infer` writes them: where they are, what a line holds."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from icdsel.errors import RunError
from icdsel.records import Pointer
from icdsel.settings.loading import Settings
from icdsel.settings.names import changed_settings
from icdsel.settings.tables import DataSettings, VlmSettings
from icdsel.store.files import digest_of
from icdsel.store.json_reading import are_ids, is_id, is_number, parsed
from icdsel.store.metadata import read_metadata
from icdsel.store.reading import read_bytes_lines

MENDING = "Move it away: the `icdsel infer` that made it then answers its queries again."


_MOST_ROWS = 100  # numbers of shots in a file; those that `infer` takes are fewer


def predictions_dir(settings: Settings) -> Path:
    """`results/<dataset>/infer/<Sampler>_<Model>`, with what differs from the default pools and prompts behind it."""
    places = ("preset", "dataset", "sampler", "data_dir", "image_dir", "results_dir", "on_image_error")
    machine = ("model", "dtype", *VlmSettings.MACHINE)
    defaults = settings.defaults()
    other: list[str] = [] if settings.data.preset == DataSettings().preset else [settings.data.preset]
    other += changed_settings(settings.data, defaults.data, places)
    other += changed_settings(settings.vlm, defaults.vlm, machine)
    name = "_".join([settings.pair_name, *other])
    if any(letter in name for letter in "/\\:{}<> ") or len(name) > 120:  # a prompt, say
        name = f"{settings.pair_name}_{digest_of(name)[:8]}"
    return settings.dataset_dir / "infer" / name


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The records of a predictions file.

    Raises:
        RunError: it cannot be read, a line is damaged, or it does not hold the answers that its side file tells of.
    """
    records = []
    try:
        for number, line in enumerate(read_bytes_lines(path), 1):
            try:
                records.append(valid_record(parsed(line)))
            except ValueError as error:
                raise RunError(f"{path}, line {number}: {error}: no prediction of icdsel. {MENDING}") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    there = Counter(record["shots"] for record in records)
    if len(there) > _MOST_ROWS:
        raise RunError(f"{path} has answers at {len(there):,} numbers of shots, {_MOST_ROWS} at most are read")
    told: dict[str, int] = {}
    with suppress(RunError):  # whoever needs its side file says what it lacks
        told = read_metadata(path.with_suffix(".meta.json")).answers
    for shots, count in there.items():
        if (whole := told.get(str(shots), count)) != count:
            how = "it was cut" if count < whole else "some stand twice"
            raise RunError(f"{path} holds {count} of {whole} answers at {shots} shots: {how}. {MENDING}")
    return records


MOST_SHOTS = 10_000
"""What is believed of a record."""


Prompt = tuple[int, Pointer]
"""Which prompt of a row it is: the query's question_id and the pointer."""


def prompt_of(record: Mapping[str, Any]) -> Prompt:
    """Which prompt a record answers."""
    return record["question_id"], tuple(record.get("icds", ()))


def valid_record(value: Any) -> dict[str, Any]:
    """A record of predictions, all of whose fields are of their kinds.

    Raises:
        ValueError: it is none; the message says which field is not as it should be.
    """
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    failed = "error" in value
    sound = {
        "question_id": is_id(value.get("question_id")),
        "shots": is_id(value.get("shots")) and is_number(value.get("shots"), 0, MOST_SHOTS),
        "icds": are_ids(value.get("icds", [])),
        "error": not failed or isinstance(value["error"], str),
        "prediction": isinstance(value.get("prediction", ""), str),
        "accuracy": failed or is_number(value.get("accuracy"), 0.0, 1.0),
    }
    sound |= {name: is_number(value[name], 0.0, 1.0) for name in value if name.startswith("accuracy_")}
    if wrong := [name for name, fine in sound.items() if not fine]:
        raise ValueError(f"{wrong[0][:40]} is missing or not of its kind")
    return value

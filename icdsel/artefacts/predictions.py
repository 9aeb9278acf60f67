"""Files of predictions, as `icdsel infer` writes them: one JSON line for each query and number of shots."""

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from icdsel.errors import RunError
from icdsel.records import Prediction
from icdsel.records.prediction import PREDICTION_KEY
from icdsel.settings.loading import Settings
from icdsel.settings.names import changed_settings
from icdsel.settings.tables import DataSettings
from icdsel.store.files import digest_of
from icdsel.store.json_reading import parsed
from icdsel.store.metadata import read_metadata
from icdsel.store.reading import read_bytes_lines
from icdsel.tasks.base import bounds_of

SUBMISSIONS = "submissions"
"""The folder beside predictions of the files that other programs read (`icdsel.submissions`)."""
_REMEDY = "Move it away and repeat the `icdsel infer` that created it."
_MOST_SHOT_COUNTS = 100  # in a file; `infer` writes fewer
_KEY = re.compile(rb'"%s"\s*:' % PREDICTION_KEY.encode())


def predictions_dir(settings: Settings) -> Path:
    """`results/<dataset>/infer/<Sampler>_<Model>`, followed by what differs from the default pools and prompts."""
    places = ("preset", "dataset", "columns", "sampler", "data_dir", "image_dir", "results_dir", "on_image_error")
    defaults = settings.defaults()
    other: list[str] = [] if settings.data.preset == DataSettings().preset else [settings.data.preset]
    other += changed_settings(settings.data, defaults.data, places)
    other += changed_settings(settings.vlm, defaults.vlm, ("model", "dtype"))
    name = "_".join([settings.pair_name, *other])
    if any(letter in name for letter in "/\\:{}<> ") or len(name) > 120:  # such as a prompt
        name = f"{settings.pair_name}_{digest_of(name)[:8]}"
    return settings.dataset_dir / "infer" / name


def has_predictions(start: bytes) -> bool:
    """Whether a file that starts like this holds predictions."""
    return _KEY.search(start) is not None


def parse_prediction(value: Any) -> Prediction:
    """The prediction of a line.

    Raises:
        ValueError: It is not one; the message names the field that is missing or invalid.
    """
    return Prediction.from_json(value, bounds_of)


def read_predictions(path: Path) -> list[Prediction]:
    """The predictions of a file.

    Raises:
        RunError: It cannot be read, a line is damaged, or it holds more or fewer answers than its metadata state.
    """
    predictions = []
    try:
        for number, line in enumerate(read_bytes_lines(path), 1):
            try:
                predictions.append(parse_prediction(parsed(line)))
            except ValueError as error:
                raise RunError(f"{path}, line {number}: {error}: not a prediction of icdsel. {_REMEDY}") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    counts = Counter(prediction.shots for prediction in predictions)
    if len(counts) > _MOST_SHOT_COUNTS:
        raise RunError(f"{path} has answers at {len(counts):,} numbers of shots, at most {_MOST_SHOT_COUNTS} are read")
    expected: dict[str, int] = {}
    with suppress(RunError):  # code that needs the metadata reports that it is missing
        expected = read_metadata(path.with_suffix(".meta.json")).answers
    for shots, count in counts.items():
        if (complete := expected.get(str(shots), count)) != count:
            how = "it was cut" if count < complete else "some are repeated"
            raise RunError(f"{path} holds {count} of {complete} answers at {shots} shots: {how}. {_REMEDY}")
    return predictions

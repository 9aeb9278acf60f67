"""The metadata file beside a result: what it was created from, with which settings and versions, and how long it took.

Results that were created from different inputs are never mixed.
"""

import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from icdsel import __version__
from icdsel.console import warn
from icdsel.errors import RunError
from icdsel.store.files import write_json
from icdsel.store.json_reading import parsed
from icdsel.store.reading import is_path, read_whole

LARGEST_METADATA = 16 * 2**20
"""The maximum size of a metadata file, in bytes."""
_MOST_INPUTS = 1000  # icdsel's own results have about 60

Inputs = dict[str, Any]
"""Everything that decides the content of a result: settings as `table.name`, and fingerprints. JSON values, flat."""
ON_SERVERS = "server"
"""The `dtype` of what servers answered: they do not tell which one they compute in."""

_DESCRIPTIONS = {
    "dataset": "the training examples and their images",
    "queries": "the queries' split and its images",
    "model": "the VLM's files",
    "encoder": "the encoder's files, and the limits of an image's size: --max-image-pixels, --min-pixels, --max-pixels",
    "sampler_encoder": "the same for the samplers' encoder",
    "scorer": "the version of icdsel's scorer",
    "broken_images": "the images that cannot be read",
    "train_embeddings": "the file of --train-embeddings",
    "references": "of which reference answers the VLM gave the probabilities, None for all",
    "init": "the checkpoint of --init",
    "warm_start": "the file of --warm-start",
    "rl_data": "the RL data",
    "checkpoint": "the policy's checkpoint",
}
"""Descriptions of the inputs that are not settings; most of these are fingerprints."""


def _require_path(value: object) -> str:
    if not isinstance(value, str) or not is_path(value):
        raise ValueError("not a path")
    return value


_Path = Annotated[str, PlainValidator(_require_path)]  # pydantic's own strings have to be UTF-8; file names need not
_Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


class Work(BaseModel):
    """How long work of one kind took: `count` queries or images in `seconds`."""

    model_config = ConfigDict(frozen=True)

    seconds: Annotated[float, Field(strict=True, ge=0, le=2**53)]
    count: Annotated[int, Field(strict=True, ge=0, le=2**53)]


class Metadata(BaseModel):
    """The content of a metadata file.

    Attributes:
        inputs: Everything that decides the content of the result; `identity` in the file.
        settings: All settings by table, as they were resolved.
        environment: Versions and machine (see `environment`); for information only.
        pair: Of a run: sampler and model.
        rl_data: Of a run: the files it was trained on.
        queries: Of RL data: how many queries the complete file has.
        name: Of predictions: the selector, with the run or seed.
        set: Of predictions: the queries.
        checkpoint: Of a policy's predictions: the file.
        answers: Of predictions: how many there are at each number of shots.
        work: How long each kind of work took; `icdsel.experiments.rates` reads it.
        recommended: Of a finished run: the name of its recommended checkpoint.
        held_out: Of a finished run: its policy against its proposer on the held-out queries.
        finished: Of a finished run: its rank, from 1, in the order in which the runs of its dataset were finished.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True, extra="allow")

    inputs: Inputs = Field(alias="identity", max_length=_MOST_INPUTS)
    settings: dict[str, dict[str, Any]] = {}
    environment: dict[str, Any] = {}
    pair: _Path | None = None
    rl_data: list[_Path] | None = None
    queries: _Count | None = None
    name: _Path | None = None
    set: _Path | None = None
    checkpoint: _Path | None = None
    answers: dict[str, _Count] = {}
    work: dict[str, Work] = {}
    recommended: _Path | None = None
    held_out: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    finished: Annotated[int, Field(strict=True, gt=0, lt=2**63)] | None = None

    def updated(self, **values: Any) -> "Metadata":
        """A copy with other values."""
        return Metadata(**{name: getattr(self, name) for name in self.model_fields_set} | values)

    def write(self, path: Path) -> None:
        """Writes the file atomically."""
        fields = type(self).model_fields.items()
        content = {field.alias or name: getattr(self, name) for name, field in fields if name in self.model_fields_set}
        if self.work:
            content["work"] = {kind: work.model_dump() for kind, work in self.work.items()}
        write_json(path, content | (self.model_extra or {}), indent=1)


def read_metadata(path: Path) -> Metadata:
    """Reads a metadata file.

    Raises:
        RunError: It is missing or damaged, or was not written by icdsel.
    """
    try:
        content = parsed(read_whole(path, LARGEST_METADATA), names_of_files=True)
    except FileNotFoundError:
        raise RunError(f"{path} is missing: what it describes was not written by icdsel, or is incomplete") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("identity"), dict):
        raise RunError(f"{path} has no identity: it was not written by icdsel")
    try:
        return Metadata.model_validate(content)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:40] for part in wrong["loc"][:3])
        raise RunError(f"{path} is damaged: {place}: {wrong['msg']}") from None


def read_metadata_files(paths: Iterable[Path]) -> Iterator[tuple[Path, Metadata]]:
    """Metadata files with their content; there is a warning for each damaged one, which is skipped."""
    for path in paths:
        try:
            yield path, read_metadata(path)
        except RunError as error:
            warn(str(error))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two sets of inputs, one line each."""
    lines = []
    then, now = old.get("dtype"), new.get("dtype")
    moved = None not in (then, now) and (then == ON_SERVERS) != (now == ON_SERVERS)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) == new.get(name) or (moved and name == "model"):
            continue
        if moved and name == "dtype":
            lines.append(moved_vlm(then == ON_SERVERS))
            continue
        described = _DESCRIPTIONS.get(name)
        if name == "model" and now == ON_SERVERS:
            described = "the model of the servers, by its answers"
        lines.append(f"{name}{f' ({described})' if described else ''}: {old.get(name)!r} then, {new.get(name)!r} now")
    return lines


def moved_vlm(from_servers: bool) -> str:
    """A line for results of servers and a model in this process, or the other way round: they are never mixed."""
    if from_servers:
        return (
            "answered by servers then (--vlm-url), by the model in this process now: give --vlm-url again, or another "
            "--results-dir"
        )
    return (
        "answered by the model in a process of icdsel then, by servers now (--vlm-url): leave --vlm-url out, or give "
        "another --results-dir"
    )


def environment(device: str, threads: int) -> dict[str, Any]:
    """Versions, machine, source revision and time."""
    libraries = ("torch", "transformers", "numpy", "pillow")
    return {
        "icdsel": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "device": device,
        "threads": threads,
        "revision": _git_revision(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


@cache
def _git_revision() -> str | None:
    """The revision of the source, if it runs from a checkout."""
    package = Path(__file__).parent.parent
    if not (package.parent / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=package, capture_output=True, text=True, check=False
        )
    except OSError:  # git is not installed
        return None
    return described.stdout.strip() or None

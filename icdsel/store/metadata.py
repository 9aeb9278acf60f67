"""What a result was made from: settings, inputs, versions. Results made from different things are never mixed."""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from icdsel import __version__
from icdsel.console import warn
from icdsel.errors import RunError
from icdsel.store.files import write_json
from icdsel.store.json_reading import is_id, is_number, parsed
from icdsel.store.reading import is_path, read_whole

LARGEST_METADATA = 16 * 2**20
"""Bytes of a side file at most."""
_MOST_ENTRIES = 1000  # of an identity; icdsel's have some 60
Identity = dict[str, Any]
"""Flat and plain: everything that decides the content of a result."""

_IN_WORDS = {
    "dataset": "the training examples and their images",
    "queries": "the queries' split and its images",
    "model": "the VLM's files",
    "encoder": "the encoder's files, and the limits of an image's size: --max-image-pixels, --min-pixels, --max-pixels",
    "sampler_encoder": "the same of the samplers' encoder",
    "scorer": "the version of icdsel's scorer",
    "broken_images": "the images that cannot be read",
    "train_embeddings": "the file of --train-embeddings",
    "init": "the checkpoint of --init",
    "warm_start": "the file of --warm-start",
    "rl_data": "the RL data",
    "checkpoint": "the policy's checkpoint",
}
"""What the entries of an identity stand for that are no settings; most hold fingerprints."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, one line each."""
    return [
        f"{name}{f' ({_IN_WORDS[name]})' if name in _IN_WORDS else ''}: {old.get(name)!r} then, {new.get(name)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def environment(device: str) -> dict[str, Any]:
    """Versions, machine and source revision; recorded beside a result, no part of its identity."""
    libraries = ("torch", "transformers", "numpy", "pillow")
    return {
        "icdsel": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "device": device,
        "revision": _git_revision(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _git_revision() -> str | None:
    """Of the source that runs, where it runs from a checkout."""
    here = Path(__file__).parent.parent
    if not (here.parent / ".git").exists():
        return None
    try:
        made = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False
        )
    except OSError:  # there is no git
        return None
    return made.stdout.strip() or None


def write_metadata(path: Path, settings: Mapping[str, Any], inputs: Identity, device: str, **more: Any) -> None:
    """Writes the resolved settings, the identity and the environment beside a result."""
    content = {
        "identity": inputs,
        "settings": settings,
        "environment": environment(device),
    }
    write_json(path, content | more, indent=1)


def update_metadata(metadata_file: Path, **more: Any) -> None:
    """Adds to a side file what is known at the end, no part of an identity.

    Among it may be the `work`: by kind the `seconds` and the `count` of what was done, from
    which `icdsel.experiments.rates` estimates how long such work takes on this machine.
    """
    write_json(metadata_file, read_metadata(metadata_file) | more, indent=1)


def read_metadata(path: Path) -> dict[str, Any]:
    """Reads what `write_metadata` wrote.

    Raises:
        RunError: it is missing or damaged.
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
        raise RunError(f"{path} holds no identity: it was not written by icdsel")
    if len(content["identity"]) > _MOST_ENTRIES:
        raise RunError(f"{path} names more than {_MOST_ENTRIES:,} settings: it was not written by icdsel")
    if wrong := [name for name in content if name in _KINDS and not _KINDS[name](content[name])]:
        raise RunError(f"{path} is damaged: {wrong[0]} in it is not of its kind")
    return content


def read_metadata_files(paths: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Side files with their content; one that is damaged is told of and passed over."""
    for path in paths:
        try:
            yield path, read_metadata(path)
        except RunError as error:
            warn(str(error))


def _is_path(value: object) -> bool:
    return isinstance(value, str) and is_path(value)


def _are_tables(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(table, dict) for table in value.values())


def _is_count(value: object) -> bool:
    return is_id(value) and value >= 0


_KINDS: dict[str, Callable[[Any], bool]] = {
    "settings": _are_tables,
    "environment": lambda value: isinstance(value, dict),
    "work": lambda value: (
        _are_tables(value) and all(is_number(number, 0, 2**53) for spent in value.values() for number in spent.values())
    ),
    "finished": lambda value: is_id(value) and value > 0,
    "queries": _is_count,
    "answers": lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
    "rl_data": lambda value: isinstance(value, list) and all(map(_is_path, value)),
    "checkpoint": _is_path,
    "name": _is_path,
    "pair": _is_path,
    "set": _is_path,
}
"""What else than the identity may stand in a side file."""

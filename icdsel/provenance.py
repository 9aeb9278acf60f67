"""What a result was made from: settings, inputs, versions. Results made from different things are never mixed."""

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from icdsel import __version__
from icdsel.console import warn
from icdsel.errors import RunError
from icdsel.files import size_of, write_json
from icdsel.json_records import is_id, is_number, parsed
from icdsel.reading import is_path, open_file, read_whole
from icdsel.records import Example
from icdsel.settings import WORLD, Settings, VlmSettings

LARGEST_SIDE_FILE = 16 * 2**20
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


def fingerprint_examples(examples: Iterable[Example]) -> str:
    """Of everything an example says; images count by name and size."""
    digest, size = hashlib.sha256(), cache(size_of)
    for e in examples:
        row = [e.question_id, e.image_id, e.image.name, size(e.image), e.question, e.answer, e.answers, e.raw_answers]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]


def fingerprint_file(path: Path) -> str:
    """Of a file's content, of as many bytes as the system says it has: some that are no files on a disk never end.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with open_file(path) as file:
        left = os.fstat(file.fileno()).st_size
        while left > 0 and (part := file.read(min(left, 2**20))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()[:16]


def fingerprint_of(content: bytes) -> str:
    """Of what a file is to hold, as `fingerprint_file` has it."""
    return hashlib.sha256(content).hexdigest()[:16]


@contextmanager
def unchanged(*paths: Path | None) -> Iterator[None]:
    """What is read of files and fingerprinted within it is of one content: another may put a new one in their place.

    Raises:
        RunError: A file changed meanwhile; the message names it.
    """
    before = {}
    for path in paths:
        if path is not None:
            with suppress(OSError):  # whoever is to read it says what it lacks
                before[path] = fingerprint_file(path)
    yield
    for path, fingerprint in before.items():
        if not has_fingerprint(path, fingerprint):
            raise RunError(f"{path} was changed while it was read: give the same command again")


def has_fingerprint(path: Path, fingerprint: object) -> bool:
    """Whether there is such a file, which can be read, and its content is that of the fingerprint."""
    try:
        return path.is_file() and fingerprint_file(path) == fingerprint
    except OSError:
        return False


def identity(settings: Settings, *tables: str, leave_out: Iterable[str] = ()) -> Identity:
    """The settings of `tables` as a flat mapping, without those that cannot change a result (paths, memory)."""
    silent = {"data.data_dir", "data.image_dir", "data.results_dir", *(f"vlm.{name}" for name in VlmSettings.MACHINE)}
    # Of files and models their fingerprints count, wherever they lie.
    silent |= {"data.train_embeddings", "data.encoder", "data.sampler_encoder"}
    silent |= {"data.preset", "data.on_image_error", "data.max_image_pixels"}  # what they set counts
    # Of the model its fingerprint counts, of the arithmetic what the model was loaded in.
    silent |= {"vlm.model", "vlm.dtype", *leave_out}
    if not settings.vlm.trust_remote_code:  # results of before there was this setting stay valid
        silent.add("vlm.trust_remote_code")
    values = settings.model_dump(mode="json", include=set(tables))
    if "data" in values:
        values["data"]["dataset"] = settings.dataset_dir.name
    flat = {f"{table}.{name}": value for table in tables for name, value in values[table].items()}
    return {name: value for name, value in flat.items() if name not in silent}


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
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None
    try:
        made = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False
        )
    except OSError:  # there is no git
        return None
    return made.stdout.strip() or None


def write_side_file(path: Path, settings: Settings, made_of: Identity, device: str, **more: Any) -> None:
    """Writes the resolved settings, the identity and the environment beside a result."""
    content = {
        "identity": made_of,
        "settings": settings.model_dump(mode="json"),
        "environment": environment(device),
    }
    write_json(path, content | more, indent=1)


def amend_side_file(side_file: Path, **more: Any) -> None:
    """Adds to a side file what is known at the end, no part of an identity.

    Among it may be the `work`: by kind the `seconds` and the `count` of what was done, of which `icdsel.rates` tells
    how long such work takes on this machine.
    """
    write_json(side_file, read_side_file(side_file) | more, indent=1)


def read_side_file(path: Path) -> dict[str, Any]:
    """Reads what `write_side_file` wrote.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        content = parsed(read_whole(path, LARGEST_SIDE_FILE), names_of_files=True)
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


def read_side_files(paths: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Side files with their content; one that is damaged is told of and passed over."""
    for path in paths:
        try:
            yield path, read_side_file(path)
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


def announce(settings: Settings, device: str) -> str:
    """What a command runs on."""
    return f"Dataset {settings.data.dataset}, model {settings.vlm.model} on {device}, seed {settings.data.seed}."


def own_data_hint(settings: Settings) -> str | None:
    """How to run on one's own data, for those who ran on the bundled world."""
    if settings.data.dataset != WORLD:
        return None
    return (
        "This ran on the bundled world. On your data: --dataset okvqa --data-dir DIR --image-dir DIR "
        "--model qwen2.5-vl-3b (or put them into icdsel.toml)."
    )

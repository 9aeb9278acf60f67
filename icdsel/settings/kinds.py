"""What the values of single settings may be, beyond their types: names that are looked up, and rules of their own."""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from icdsel.records import parsed_shots
from icdsel.settings.presets import (
    COLUMN_FIELDS,
    DATA_ENDINGS,
    DATASET_ALIASES,
    MODEL_ALIASES,
    NORMALIZATION_ALIASES,
    OPTIONAL_FIELDS,
    RETIRED_MODES,
    SAMPLER_ALIASES,
)
from icdsel.settings.values import Choice, NameOrPlace, Pairs, Separated, alias
from icdsel.settings.worlds import normalised

API_KEY_VARIABLE = "ICDSEL_VLM_API_KEY"
"""The only place that a server's key is read from."""
SERVE_KEY_VARIABLE = "ICDSEL_SERVE_API_KEY"
"""The only place that the key for clients of `icdsel serve` is read from."""


def _not_flamingo(model: object) -> object:
    if isinstance(model, str) and re.search(r"flamingo|idefics-?(9|80)b|idefics_?v?1\b", model, re.IGNORECASE):
        raise ValueError(
            "Flamingo and the first IDEFICS are not supported (they need libraries that are no longer maintained); "
            "use qwen2.5-vl-3b, or another current model, such as --model HuggingFaceTB/SmolVLM-Instruct"
        )
    return model


def _not_retired(mode: object) -> object:
    if isinstance(mode, str) and mode in RETIRED_MODES:
        raise ValueError(f"this mode is retired ({RETIRED_MODES[mode]}); use hard_plus_soft")
    return mode


def _names_a_folder(dataset: str) -> str:
    path = Path(dataset)
    if path.suffix.lower() in DATA_ENDINGS and path.stem in ("", ".", ".."):
        raise ValueError(
            f"the results folder has the file's name without {path.suffix}, which would be empty or dots: rename"
        )
    return dataset


def _typed_shots(shots: object) -> object:
    return parsed_shots(shots) if isinstance(shots, str) else shots


def _is_held_out(split: object) -> object:
    if split == "train":
        raise ValueError(
            "demonstrations come from the training split, and policies are trained on its queries: choose validation, "
            "tuning or test"
        )
    return split


def _is_ray_address(address: str) -> str:
    host, _, port = address.rpartition(":")
    if address.startswith("ray://"):
        raise ValueError(
            "ray:// is for programs outside a cluster: run icdsel on one of its machines, and give host:6379, as "
            "`ray start --head` printed it"
        )
    if address != "auto" and not (re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]", host) and _is_port(port)):
        raise ValueError(f"{address!r} is no address of a Ray cluster, such as host:6379, or auto")
    return address


def _is_port(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}", text) is not None and 0 < int(text) < 2**16


def _are_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    fields = [part.partition("=")[0].strip() for part in columns]
    for part, field in zip(columns, fields, strict=True):
        if field not in COLUMN_FIELDS or "=" not in part:
            raise ValueError(f"{part!r} is not FIELD=COLUMN with one of the fields {', '.join(COLUMN_FIELDS)}")
        if part.endswith("=") and field not in OPTIONAL_FIELDS:
            raise ValueError(
                f"{part!r} names no column; only {', '.join(f'{name}=' for name in OPTIONAL_FIELDS)} may be empty, "
                "which ignores the column (`id=` numbers the rows)"
            )
    if len({COLUMN_FIELDS[field] for field in fields}) < len(fields):
        raise ValueError("a field is named twice")
    return columns


def _is_server_address(address: str) -> str:
    """The address without a slash at its end. Messages do not repeat what may be a key or a password."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("it is not an address such as http://host:8000/v1") from None
    if "@" in address or parts.query or parts.fragment:
        raise ValueError(
            f"an address has no user, password or query, since it is recorded with results: export a key as "
            f"{API_KEY_VARIABLE}"
        )
    if parts.scheme not in ("http", "https") or not host or not address.isprintable() or " " in address:
        raise ValueError(f"{address!r} is not an address such as http://host:8000/v1")
    return address.rstrip("/")


def _names_servers(addresses: object) -> object:
    if isinstance(addresses, str) and addresses.strip() and not addresses.strip(", "):
        raise ValueError("it names no server (are variables of the shell not set?): give addresses, or leave it out")
    return addresses


def _are_different(addresses: tuple[str, ...]) -> tuple[str, ...]:
    if twice := [address for n, address in enumerate(addresses) if address in addresses[:n]]:
        raise ValueError(f"{twice[0]} is named twice: name each server once")
    return addresses


DatasetName = Annotated[
    NameOrPlace, alias(DATASET_ALIASES), AfterValidator(_names_a_folder), AfterValidator(normalised)
]
ModelName = Annotated[NameOrPlace, alias(MODEL_ALIASES), BeforeValidator(_not_flamingo)]
Columns = Annotated[tuple[str, ...], AfterValidator(_are_columns), Pairs]
Sampler = Annotated[str, Choice("sampler"), alias(SAMPLER_ALIASES), Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
"""Restricted to a pattern, because file names contain it and it may come from untrusted metadata."""
PoolRules = Annotated[str, Choice("rules for pools")]
TaskName = Annotated[str, Choice("task")]
TrackerName = Annotated[str, Choice("tracker")]
HeldOutSplit = Annotated[Literal["validation", "tuning", "test"], BeforeValidator(_is_held_out)]
ShotCount = Annotated[int | str, BeforeValidator(_typed_shots)]
"""A number of ICDs, or `auto`, with an offset or without."""
Metric = str
"""The name of one of the task's metrics."""
AnswerCleaner = Annotated[str, Choice("cleaner")]
EngineName = Annotated[str, Choice("engine")]
ServerAddresses = Annotated[
    tuple[Annotated[str, AfterValidator(_is_server_address)], ...],
    *(AfterValidator(_are_different), Separated, BeforeValidator(_names_servers)),
]
RayAddress = Annotated[str, AfterValidator(_is_ray_address)]
PromptLayout = Annotated[str, Choice("prompt layout")]
RewardMode = Annotated[str, Choice("reward mode"), BeforeValidator(_not_retired)]
Normalization = Annotated[str, Choice("normalization"), alias(NORMALIZATION_ALIASES)]
Selector = Annotated[str, Choice("selector")]

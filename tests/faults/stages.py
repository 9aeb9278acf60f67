"""The stages on a small bundled world, one after the other, and what they leave, to be compared."""

import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Words = tuple[object, ...]

# Two pointers for each query: how a stage writes is tested, not what it writes.
_FEW = "[proposals]\nqueries = {queries}\nbeam = 1\nsamples = 1\nretrieval = 0\nrandom = 0\n"
_FILE = "results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl"
_RUN = ("--rl-data", _FILE, "--rce-epochs", 2)
_WARM = ("--warm-start", "beams.json", "--warm-epochs", 2)


@dataclass(frozen=True)
class Stage:
    """Commands that are run one after the other, in a folder in which the stages before them were run."""

    name: str
    needs: str
    """The last of the stages that have to be run before it."""
    commands: tuple[Words, ...]
    own_world: bool = False
    """Whether it creates the bundled world in the folder."""
    files: dict[str, str] = field(default_factory=dict)
    """Further files in the folder."""


def needed(names: Iterable[str]) -> list[Stage]:
    """The named stages and those that have to be run before them, in order; all stages if none is named."""
    by_name = {stage.name: stage for stage in STAGES}
    found = set(names) or by_name.keys()
    for stage in reversed(STAGES):
        if stage.name in found and stage.needs:
            found |= {stage.needs}
    return [stage for stage in STAGES if stage.name in found]


def _beams(train: int = 100) -> str:
    """Beams of InfoScore for some training queries, by rank."""
    return json.dumps(
        {
            str(7 * k): {"id_list": [[(7 * k + j) % train, (7 * k + 90 + j) % train, 7 * k] for j in (1, 2)],
                         "score_list": [-1e-7, -2e-7]}
            for k in range(8)
        }
    )  # fmt: skip


_WORLD, _DATA, _TRAIN = "bundled world", "gen-rl-data", "train"
STAGES = (
    Stage(
        _WORLD,
        "",
        (("gen-rl-data", "--queries", 2, "--output", "first.jsonl"),),
        own_world=True,
        files={"icdsel.toml": _FEW.format(queries=72)},
    ),
    Stage("embeddings", _WORLD, (("gen-rl-data", "--queries", 2, "--results-dir", "elsewhere"),)),
    Stage(_DATA, _WORLD, (("gen-rl-data",),)),
    Stage(
        "shards",
        _WORLD,
        tuple(("gen-rl-data", "-o", "parts.jsonl", *part) for part in (("--shard", "2/2"), ("--shard", "1/2"), ())),
    ),
    Stage(
        _TRAIN,
        _DATA,
        (("train", *_RUN, *_WARM, "--grpo-epochs", 2, "--freeze-backbone", "--tensorboard", "--run", "plain"),),
        files={"beams.json": _beams()},
    ),
    Stage(
        "train --online",
        _DATA,
        (("train", *_RUN, "--grpo-epochs", 2, "--online", "--online-samples", 2, "--run", "online"),),
    ),
    Stage("infer", _TRAIN, (("infer", "--run", "plain", "--selector", "policy", "--n", 70, "--shots", "1,2"),)),
    Stage("convert", _TRAIN, (("convert", "grpo_epoch1.pt", "--run", "plain"), ("convert", _FILE))),
    Stage(
        "compare --train",
        _DATA,
        (("compare", "--train", "rce,grpo-frozen", *_RUN, "--n", 16, "--shots", 1, "--json", "table.json"),),
    ),
    Stage(
        "overwriting",
        _TRAIN,
        (
            ("gen-rl-data", "--queries", 40, "--overwrite"),
            ("train", *_RUN, "--batch-size", 4, "--run", "plain", "--overwrite"),
        ),
    ),
)


def results(folder: Path) -> dict[str, Any]:
    """The content of a folder by path: bytes; metadata without environment and times; of logs only that there is one.

    Lock files stay; nobody may hold the lock.
    """
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.name.endswith(".lock"):
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif path.parent.name == "tensorboard":
            found.setdefault(str(path.parent.relative_to(folder)), _curves(path.parent))
        elif path.name == "log.txt" or path.suffix == ".log" or ".log.old-" in path.name:
            found[name] = "a log"
        elif path.name[0] != "." and (".meta.json" in path.name or path.name == "run.json"):
            found[name] = {k: v for k, v in json.loads(path.read_bytes()).items() if k not in ("environment", "work")}
        else:
            found[name] = path.read_bytes()
    return found


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: the curve of every metric."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names of files that differ from the expected ones, and how."""
    wrong = [f"{name} is missing" for name in expected.keys() - found.keys()]
    wrong += [f"{name} is left over" for name in found.keys() - expected.keys()]
    return sorted(
        wrong + [f"{name} differs" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    )


def environment(stage: Stage, world: Path) -> dict[str, str]:
    """Variables for the commands of a stage: the world is elsewhere, unless the stage creates it."""
    return {"COLUMNS": "100"} | ({} if stage.own_world else {"ICDSEL_DATA_DATA_DIR": os.fspath(world)})

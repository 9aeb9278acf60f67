"""Checks a run's folder, or a single checkpoint. Loads torch."""

from itertools import islice
from json import JSONDecodeError
from pathlib import Path

from icdsel.artefacts.checkpoint import Checkpoint, foreign_objects, load_checkpoint
from icdsel.artefacts.lever_plus_checkpoints import unknown_parts
from icdsel.artefacts.run_folder import (
    EPOCH_FILE,
    JOURNAL,
    METADATA_FILE,
    METRICS_FILE,
    outside_of_run,
    parse_epoch,
    planned_epochs,
    trained_on,
)
from icdsel.check.findings import EXAMPLES, Checked, Findings, Kind
from icdsel.check.rl_data import check_journal
from icdsel.errors import CheckpointError, RunError
from icdsel.policy.config import PointerConfig
from icdsel.policy.loop import PHASES
from icdsel.store.fingerprints import has_fingerprint
from icdsel.store.json_reading import parsed
from icdsel.store.metadata import Metadata, read_metadata
from icdsel.store.reading import read_bytes_lines

_AGAIN = "move the run away and train it again: icdsel train"
_Epoch = tuple[str, int]

BAD_METADATA = Kind(f"{METADATA_FILE} is missing or cannot be read", f"copy it again, or {_AGAIN}")
UNFINISHED = Kind("the training was not finished", "repeat the same `icdsel train`")
LAST_MISSING = Kind("the last epoch's checkpoint is missing", "repeat the same `icdsel train`, or copy it again")
MISSING = Kind("earlier epochs' checkpoints are missing", "they are needed only to compare epochs", "warning")
BAD_CHECKPOINT = Kind("checkpoints cannot be used", f"copy them again, or {_AGAIN}")
LEADS_OUT = Kind(
    "checkpoints are links out of the run's folder",
    "`icdsel infer --run` rejects them: copy their targets here, or name a target with --checkpoint",
)
MISNAMED = Kind("checkpoints are from another epoch than their names say", "restore their names")
SIZES = Kind("checkpoints are of networks of different sizes", "they belong to several runs: separate them")
BAD_METRICS = Kind(f"{METRICS_FILE} is damaged", f"its figures cannot be trusted: {_AGAIN}")
NO_METRICS = Kind(f"epochs have no line in {METRICS_FILE}", f"`icdsel runs` cannot show them: {_AGAIN}")
RL_DATA_GONE = Kind("its RL data are missing", "the policy works; it cannot be trained again", "warning")
RL_DATA_CHANGED = Kind("its RL data have changed", "the same command would train another policy", "warning")
LEFT_BEHIND = Kind("files were not written completely", "they can be deleted", "warning")
IGNORED_PARTS = Kind(
    "parts of the policy have no counterpart in Lever-Plus",
    "icdsel uses them; after conversion, Lever-Plus would ignore them and choose other ICDs",
    "warning",
)
OBJECTS = Kind(
    "kinds of objects are not plain data",
    "icdsel runs none of them, other programs might: do not open it with them unless you know who made it",
    "warning",
)


def check_checkpoint(path: Path) -> Checked:
    """Lists what is wrong with a checkpoint."""
    found = Findings()
    checkpoint = _load(found, path)
    for part in unknown_parts(checkpoint.network.config) if checkpoint else ():
        found.add(IGNORED_PARTS, part)
    return Checked(str(path), "checkpoint", _described(checkpoint) if checkpoint else "", found.listed())


def check_run(folder: Path) -> Checked:
    """Lists what is wrong with a run's folder."""
    found = Findings()
    metadata: Metadata | None = None
    try:
        metadata = read_metadata(folder / METADATA_FILE)
    except RunError as error:
        found.add(BAD_METADATA, error)
    usable: dict[_Epoch, str] = {}
    sizes: set[PointerConfig] = set()
    existing: set[_Epoch] = set()
    for path in sorted(folder.iterdir()):
        if path.name.endswith(".part"):
            found.add(LEFT_BEHIND, path.name)
        name = EPOCH_FILE.fullmatch(path.name)
        if name is None and path.suffix not in (".pt", ".ckpt"):
            continue
        if name is None:
            _load(found, path)
            continue
        epoch = (name[1], int(name[2]))
        existing.add(epoch)
        if target := outside_of_run(path):
            found.add(LEADS_OUT, f"{path.name} leads to {target}")
            continue
        checkpoint = _load(found, path)
        if checkpoint is not None:
            usable[epoch] = _described(checkpoint)
            sizes.add(checkpoint.network.config)
            _check_name(found, path.name, epoch, checkpoint)
    if len(sizes) > 1:
        found.add(SIZES, ", ".join(f"width {size.d_model}, hidden {size.hidden_dim}" for size in sizes), len(sizes))
    measured = _measured(found, folder / METRICS_FILE)
    if metadata is None or metadata.finished:  # else the files of its last epoch may not all be written
        for phase, number in sorted(existing - measured):
            found.add(NO_METRICS, f"{phase} epoch {number}")
    if metadata:
        _check_against(found, metadata, existing)
    if (folder / JOURNAL).exists():
        check_journal(found, folder / JOURNAL)
    about = f"checkpoints: {len(existing)}" + (f"; the last: {usable[max(usable, key=_order)]}" if usable else "")
    return Checked(str(folder), "run", about, found.listed())


def _load(found: Findings, path: Path) -> Checkpoint | None:
    try:
        for name in foreign_objects(path):
            found.add(OBJECTS, name)
        return load_checkpoint(path)
    except CheckpointError as error:
        found.add(BAD_CHECKPOINT, error)
        return None


def _described(checkpoint: Checkpoint) -> str:
    config = checkpoint.network.config
    parts = [f"pointer network for embeddings of width {config.d_model}", f"hidden {config.hidden_dim}"]
    parts += [f"layers {config.num_layers}", f"heads {config.num_heads}"]
    parts += [f"shared encoder {config.tower}"] if config.tower else []
    parts += [f"encoder of queries {config.query_tower}"] if config.query_tower else []
    parts += [f"gate by the question {config.question_gate}"] if config.question_gate else []
    parts += [config.update] if config.gate else []
    parts += ["STOP"] if config.stop else []
    parts += [f"answers of width {config.answer_dim}"] if config.answer_dim else []
    if checkpoint.phase and checkpoint.epoch is not None:
        parts.append(f"after {checkpoint.phase} epoch {checkpoint.epoch + 1}")
    return ", ".join(parts)


def _check_name(found: Findings, name: str, epoch: _Epoch, checkpoint: Checkpoint) -> None:
    recorded = (checkpoint.phase, None if checkpoint.epoch is None else checkpoint.epoch + 1)
    if None not in recorded and recorded != epoch:
        found.add(MISNAMED, f"{name} is {recorded[0]} epoch {recorded[1]}")


def _order(epoch: _Epoch) -> tuple[int, int]:
    """Key that sorts epochs in the order of training."""
    return PHASES.index(epoch[0]), epoch[1]


def _measured(found: Findings, path: Path) -> set[_Epoch]:
    """The epochs that have metrics."""
    measured: set[_Epoch] = set()
    try:
        for number, content in enumerate(read_bytes_lines(path), 1):
            place = f"line {number}"
            try:
                line = parsed(content)
            except ValueError as error:
                # Without the position in the error: it counts within the line.
                found.add(BAD_METRICS, f"{place}: {error.msg if isinstance(error, JSONDecodeError) else error}")
                continue
            try:
                metrics = parse_epoch(place, line)
            except RunError as error:
                found.add(BAD_METRICS, error)
                continue
            if (metrics.phase, metrics.epoch) in measured:
                found.add(BAD_METRICS, f"{place}: {metrics.phase} epoch {metrics.epoch} is repeated")
            measured.add((metrics.phase, metrics.epoch))
    except OSError as error:
        found.add(BAD_METRICS, f"{path} cannot be read: {error.strerror}")
    return measured


def _check_against(found: Findings, metadata: Metadata, existing: set[_Epoch]) -> None:
    """Compares the metadata with the checkpoints and the RL data."""
    if not metadata.finished:
        found.add(UNFINISHED)
    else:
        planned = planned_epochs(metadata)
        last = [phase for phase, count in planned.items() if count][-1:]
        for phase, count in planned.items():
            have = {number for kind, number in existing if kind == phase and number <= count}
            lost = count - len(have)
            if phase in last and count not in have:
                found.add(LAST_MISSING, f"{phase}_epoch{count}.pt")
                lost -= 1
            # Damaged metadata may name any number of epochs: only the first missing ones are searched.
            lacking = (number for number in range(1, count + (phase not in last)) if number not in have)
            for number in islice(lacking, EXAMPLES):
                found.add(MISSING, f"{phase}_epoch{number}.pt", 0)
            found.add(MISSING, count=lost)
    for path, fingerprint in trained_on(metadata):
        if not path.is_file():
            found.add(RL_DATA_GONE, path)
        elif not has_fingerprint(path, fingerprint):
            found.add(RL_DATA_CHANGED, path)

"""What is wrong with a run's folder, or with a single checkpoint."""

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
    planned_epochs,
    trained_on,
    valid_epoch,
)
from icdsel.check.findings import EXAMPLES, Checked, Findings, Kind
from icdsel.check.rl_data import check_journal
from icdsel.errors import CheckpointError, RunError
from icdsel.policy.loop import PHASES
from icdsel.policy.network import PointerConfig
from icdsel.store.fingerprints import has_fingerprint
from icdsel.store.json_reading import parsed
from icdsel.store.metadata import Metadata, read_metadata
from icdsel.store.reading import read_bytes_lines

_AGAIN = "move the run away and train it again: icdsel train"
_Epoch = tuple[str, int]

BAD_METADATA = Kind(f"{METADATA_FILE} is missing or cannot be read", f"copy it again, or {_AGAIN}")
UNFINISHED = Kind("the training was not finished", "give the same `icdsel train` again")
LAST_MISSING = Kind("the last epoch's checkpoint is missing", "give the same `icdsel train` again, or copy it again")
MISSING = Kind("earlier epochs' checkpoints are missing", "nothing needs them but their comparison", "worth knowing")
BAD_CHECKPOINT = Kind("checkpoints cannot be used", f"copy them again, or {_AGAIN}")
LEADS_OUT = Kind(
    "checkpoints are links that lead out of the run",
    "`icdsel infer --run` refuses them: copy here what they lead to, or name that with --checkpoint",
)
MISNAMED = Kind("checkpoints are of another epoch than they are called", "give them their own names again")
SIZES = Kind("checkpoints are of networks of different sizes", "they are of several runs: take them apart")
BAD_METRICS = Kind(f"{METRICS_FILE} is damaged", f"its figures cannot be trusted: {_AGAIN}")
NO_METRICS = Kind(f"epochs without a line in {METRICS_FILE}", f"`icdsel runs` cannot show them: {_AGAIN}")
RL_DATA_GONE = Kind(
    "RL data that it was trained on are gone", "the policy works; it cannot be trained again", "worth knowing"
)
RL_DATA_CHANGED = Kind(
    "RL data that it was trained on have changed", "the same command would train another policy", "worth knowing"
)
LEFT_BEHIND = Kind("files that were not written whole", "they can be deleted", "worth knowing")
IGNORED_PARTS = Kind(
    "parts of the policy that Lever-Plus has no place for",
    "icdsel uses them; converted, Lever-Plus would ignore them and choose other ICDs",
    "worth knowing",
)
OBJECTS = Kind(
    "kinds of objects that are not plain data",
    "icdsel runs none of them, other programs might: do not open the file with them unless you trust its source",
    "worth knowing",
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
    side: Metadata | None = None
    try:
        side = read_metadata(folder / METADATA_FILE)
    except RunError as error:
        found.add(BAD_METADATA, error)
    usable: dict[_Epoch, str] = {}
    sizes: set[PointerConfig] = set()
    there: set[_Epoch] = set()
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
        there.add(epoch)
        if leads_to := outside_of_run(path):
            found.add(LEADS_OUT, f"{path.name} leads to {leads_to}")
            continue
        checkpoint = _load(found, path)
        if checkpoint is not None:
            usable[epoch] = _described(checkpoint)
            sizes.add(checkpoint.network.config)
            _check_name(found, path.name, epoch, checkpoint)
    if len(sizes) > 1:
        found.add(SIZES, ", ".join(f"width {size.d_model}, hidden {size.hidden_dim}" for size in sizes), len(sizes))
    measured = _measured(found, folder / METRICS_FILE)
    if side is None or side.finished:  # else what its last epoch left may not be all there yet
        for phase, number in sorted(there - measured):
            found.add(NO_METRICS, f"{phase} epoch {number}")
    if side:
        _check_against(found, side, there)
    if (folder / JOURNAL).exists():
        check_journal(found, folder / JOURNAL)
    told = f"checkpoints: {len(there)}" + (f"; the last: {usable[max(usable, key=_age)]}" if usable else "")
    return Checked(str(folder), "run", told, found.listed())


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
    parts += [f"tower {config.tower}"] if config.tower else []
    parts += ["gate"] if config.gate else []
    if checkpoint.phase and checkpoint.epoch is not None:
        parts.append(f"after {checkpoint.phase} epoch {checkpoint.epoch + 1}")
    return ", ".join(parts)


def _check_name(found: Findings, name: str, epoch: _Epoch, checkpoint: Checkpoint) -> None:
    told = (checkpoint.phase, None if checkpoint.epoch is None else checkpoint.epoch + 1)
    if None not in told and told != epoch:
        found.add(MISNAMED, f"{name} is {told[0]} epoch {told[1]}")


def _age(epoch: _Epoch) -> tuple[int, int]:
    """What orders epochs as they are trained."""
    return PHASES.index(epoch[0]), epoch[1]


def _measured(found: Findings, path: Path) -> set[_Epoch]:
    """The epochs that the metrics tell of."""
    measured: set[_Epoch] = set()
    try:
        for number, content in enumerate(read_bytes_lines(path), 1):
            place = f"line {number}"
            try:
                line = parsed(content)
            except ValueError as error:
                # Without the place that is told of it: it is one within the line.
                found.add(BAD_METRICS, f"{place}: {error.msg if isinstance(error, JSONDecodeError) else error}")
                continue
            try:
                valid_epoch(place, line)
            except RunError as error:
                found.add(BAD_METRICS, error)
            told = (line.get("phase"), line.get("epoch")) if isinstance(line, dict) else ()
            match told:
                case str(phase), int(epoch):
                    if (phase, epoch) in measured:
                        found.add(BAD_METRICS, f"{place}: {phase} epoch {epoch} stands there twice")
                    measured.add((phase, epoch))
    except OSError as error:
        found.add(BAD_METRICS, f"{path} cannot be read: {error.strerror}")
    return measured


def _check_against(found: Findings, side: Metadata, there: set[_Epoch]) -> None:
    """Holds the side file against what is there."""
    if not side.finished:
        found.add(UNFINISHED)
    else:
        planned = planned_epochs(side)
        last = [phase for phase, count in planned.items() if count][-1:]
        for phase, count in planned.items():
            have = {number for kind, number in there if kind == phase and number <= count}
            lost = count - len(have)
            if phase in last and count not in have:
                found.add(LAST_MISSING, f"{phase}_epoch{count}.pt")
                lost -= 1
            # The plan of a damaged file may name any number of epochs: only the first that lack are looked for.
            lacking = (number for number in range(1, count + (phase not in last)) if number not in have)
            for number in islice(lacking, EXAMPLES):
                found.add(MISSING, f"{phase}_epoch{number}.pt", 0)
            found.add(MISSING, count=lost)
    for path, fingerprint in trained_on(side):
        if not path.is_file():
            found.add(RL_DATA_GONE, path)
        elif not has_fingerprint(path, fingerprint):
            found.add(RL_DATA_CHANGED, path)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, whole or not."""
    return (folder / METADATA_FILE).exists() or any(EPOCH_FILE.fullmatch(path.name) for path in folder.iterdir())

"""The inputs of RL data: everything that decides their content."""

from collections.abc import Sequence
from pathlib import Path

from icdsel.artefacts.reference_scores import existing_references, references_input
from icdsel.artefacts.rl_data import shards_of
from icdsel.errors import RlDataError
from icdsel.policy.references import references_needed_by, scores_references
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings
from icdsel.stages.session import Session
from icdsel.store.fingerprints import fingerprint_file
from icdsel.store.metadata import Inputs
from icdsel.tasks.scoring import SCORER_VERSION

_AGAIN = "at another place (--output, --results-dir), or here with --overwrite, which renames the file to a backup"


def decided_inputs(
    settings: Settings,
    session: Session,
    path: Path,
    *,
    complete: Path | None = None,
    unsolved: Sequence[Path] = (),
    overwrite: bool = False,
) -> tuple[Settings, Inputs]:
    """The settings with `--references` decided, and the inputs of RL data under them.

    With `auto`, data that exist keep what they have: `path` itself, or else `complete` and its shards, unless something
    reads the probabilities that they lack.

    Args:
        settings: The settings.
        session: Dataset and VLM.
        path: The RL data that are to be generated.
        complete: The file of all queries, if `path` is a shard.
        unsolved: For its meaning see `icdsel.stages.generate.generate`.
        overwrite: Whether a file with other inputs will be renamed.

    Raises:
        SettingsError: `--references none` forbids what something needs.
        RlDataError: `path` exists with other references and the same inputs otherwise, or the shards differ in them.
    """
    inputs = _inputs(settings, session, unsolved)
    own = existing_references(path, inputs)
    exist = own if own is not None else _beside(settings, complete or path, inputs)
    scored = scores_references(settings, exist)
    if own not in (None, scored) and not overwrite:
        raise RlDataError(_other_references(path, references_needed_by(settings) or "--references labels", scored))
    proposals = settings.proposals.model_copy(update={"references": "labels" if scored else "none"})
    return settings.model_copy(update={"proposals": proposals}), inputs | references_input(scored)


def _inputs(settings: Settings, session: Session, unsolved: Sequence[Path]) -> Inputs:
    """All inputs but the references."""
    init, split = settings.proposals.init, settings.proposals.query_split
    inputs = identity(settings, "data", "vlm", "proposals", leave_out=["proposals.init"])
    inputs |= session.identity | {"scorer": SCORER_VERSION}
    if split != "train":
        inputs["queries"] = session.fingerprint(split)
    if unsolved:
        inputs["unsolved"] = [fingerprint_file(path) for path in unsolved]
    return inputs | {"init": fingerprint_file(init) if init else None}


def _beside(settings: Settings, complete: Path, inputs: Inputs) -> bool | None:
    """Whether the file of all queries, or its shards, have the probabilities; None if there are none of them.

    Raises:
        RlDataError: Some have them and others do not, and the settings do not say which are meant.
    """
    found = {existing_references(path, inputs) for path in (complete, *shards_of(complete))} - {None}
    if len(found) > 1 and settings.proposals.references == "auto" and not references_needed_by(settings):
        raise RlDataError(
            f"some shards of {complete} were scored with the probabilities of reference answers, others without: name "
            "what you want with --references labels or --references none; the queries of the others are scored again"
        )
    return any(found) if found else None


def _other_references(path: Path, reader: str, scored: bool) -> str:
    if scored:
        return (
            f"{path} was generated without the probabilities of the reference answers, which {reader} needs: run the "
            f"gen-rl-data command of these data with --references labels, {_AGAIN}"
        )
    return (
        f"{path} was generated with the probabilities of the reference answers: leave --references none out to use it "
        f"as it is, or generate RL data without them {_AGAIN}"
    )

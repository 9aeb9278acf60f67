"""Whether RL data have the probabilities of the reference answers.

Their inputs say so. Earlier versions always scored the references, so data that have them have no entry, and data
without them have one.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from icdsel.artefacts.rl_data import metadata_path
from icdsel.errors import RunError
from icdsel.records import QueryGroup
from icdsel.store.journal import journal_of
from icdsel.store.metadata import Inputs, differences, read_metadata

REFERENCES = "references"
"""The entry's name."""
_NONE = "none"


def references_input(scored: bool) -> Inputs:
    """The entry in the inputs of RL data whose references are `scored`, or not."""
    return {} if scored else {REFERENCES: _NONE}


def inputs_have_references(inputs: Mapping[str, Any]) -> bool:
    """Whether RL data with these inputs have the probabilities of the reference answers."""
    return REFERENCES not in inputs


def existing_references(path: Path, inputs: Inputs) -> bool | None:
    """Whether RL data that exist, complete or not, have them.

    Args:
        path: The file, of all queries or of a shard.
        inputs: All inputs that it must have, whatever its references.

    Returns:
        None if there are no such data.
    """
    if not (path.exists() or journal_of(path).exists()):
        return None
    try:
        recorded = read_metadata(metadata_path(path)).inputs
    except RunError:  # reported where the file is opened
        return None
    same = not differences(recorded | {REFERENCES: None}, inputs | {REFERENCES: None})
    return inputs_have_references(recorded) if same else None


def groups_have_references(groups: Iterable[QueryGroup]) -> bool | None:
    """Whether a scored pointer of these groups has them; None if no pointer is scored."""
    scored = [candidate for group in groups for candidate in group.candidates if candidate.error is None]
    return any(candidate.reference_prob is not None for candidate in scored) if scored else None

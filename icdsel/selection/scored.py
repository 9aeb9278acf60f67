"""The scored pointers of the queries to answer, from their RL data."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from icdsel.artefacts.rl_data import metadata_path, read_rl_data, rl_data_path
from icdsel.errors import RlDataError
from icdsel.records import Pointer, QuestionId
from icdsel.settings.loading import Settings
from icdsel.store.fingerprints import has_fingerprint
from icdsel.store.metadata import Inputs, differences, read_metadata

Scored = tuple[float, float, Pointer]
"""Accuracy, probability of the right answer (0 if it is not known), and the pointer."""


def scored_path(settings: Settings) -> Path:
    """The path of the RL data of the queries' split."""
    proposals = settings.proposals.model_copy(update={"query_split": settings.infer.split})
    return rl_data_path(settings.model_copy(update={"proposals": proposals}))


def read_scored(
    settings: Settings, queries: int, inputs: Inputs, fingerprint: str | None
) -> Mapping[QuestionId, Sequence[Scored]]:
    """The scored pointers of each query, by question_id.

    Args:
        settings: The settings, which determine the path of the RL data.
        queries: The number of queries to answer, for the error message.
        inputs: The inputs that the RL data must have been created from: settings, data, VLM, queries, scorer.
        fingerprint: The fingerprint of the file, as recorded with the predictions.

    Raises:
        RlDataError: the RL data are missing, were created with different settings, or changed while they were read.
    """
    split, path = settings.infer.split, scored_path(settings)
    try:
        groups = read_rl_data(path).groups
    except RlDataError as error:
        raise RlDataError(
            f"the oracle needs scored pointers of the {split} queries. Create them with the same pools and prompts: "
            f"`icdsel gen-rl-data --split {split} --queries {queries}`. ({error})"
        ) from None
    recorded = read_metadata(metadata_path(path)).inputs
    if differing := differences({name: recorded.get(name) for name in inputs}, inputs):
        raise RlDataError(
            f"{path}, which the oracle chooses from, was created with different settings:\n  " + "\n  ".join(differing)
        )
    if not has_fingerprint(path, fingerprint):
        raise RlDataError(f"{path} changed while it was read: run the same command again")
    return {
        group.question_id: [(c.score or 0.0, c.reference_prob or 0.0, c.pointer) for c in group.candidates]
        for group in groups
    }

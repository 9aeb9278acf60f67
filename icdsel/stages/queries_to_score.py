"""Which queries of a split pointers are scored for."""

from collections.abc import Sequence, Set
from pathlib import Path

from icdsel.artefacts.rl_data import merge, read_rl_data
from icdsel.console import note
from icdsel.errors import DataError, RlDataError
from icdsel.policy.rewards import is_correct
from icdsel.records import Example, QuestionId
from icdsel.retrieval.lever_plus_pools import anchors
from icdsel.stages.session import Session


def solved_in(files: Sequence[Path]) -> Set[QuestionId]:
    """The queries that have a right pointer in any of these RL data.

    Raises:
        RlDataError: A file cannot be read, or two do not fit together.
    """
    groups = merge([read_rl_data(path).groups for path in files])
    return {group.question_id for group in groups if any(is_correct(pointer) for pointer in group.candidates)}


def queries_to_score(session: Session, solved: Set[QuestionId] | None = None) -> list[Example]:
    """The queries to score.

    From the training split they are drawn at random, as Lever-Plus draws its anchors; from another split they are the
    first ones, as in `infer`.

    Args:
        session: The splits, and the settings of the proposals.
        solved: Queries that are left out, since they have a right pointer already; None for all queries.

    Raises:
        DataError: No query of the split has reference answers, by which pointers are scored.
        RlDataError: All queries have a right pointer.
    """
    wanted = session.settings.proposals.queries
    split = session.split(session.settings.proposals.query_split)
    labelled = [query for query in split if query.answers]
    if not labelled:
        raise DataError(f"no query of the split {split.name!r} has reference answers, by which pointers are scored")
    if wanted > len(labelled):
        note(f"{wanted} queries were requested, {split.name} has {len(labelled)}: using all of them")
    wanted = min(wanted, len(labelled))
    if split is session.train:
        queries = [split[row] for row in anchors(len(split), wanted, session.settings.data.seed)]
    else:
        queries = labelled[:wanted]
    if solved is None:
        return queries
    left = [query for query in queries if query.question_id not in solved]
    if not left:
        raise RlDataError(f"all {len(queries)} queries have a right pointer already: another round is not needed")
    note(f"{len(left)} of {len(queries)} queries have no right pointer yet")
    return left

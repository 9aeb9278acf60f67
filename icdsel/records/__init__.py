"""The typed records that the stages exchange, and their JSON.

No other module knows the JSON keys of these records. For every task, RL data use Lever-Plus's keys
(`vqa_acc_score`, …).
"""

from icdsel.records.epoch_metrics import EpochMetrics
from icdsel.records.examples import Answer, Example, Pointer, Proposal
from icdsel.records.prediction import Prediction, Prompt
from icdsel.records.query_group import PoolIds, QueryGroup, Rejected
from icdsel.records.scored_pointer import Candidate, RejectedError, ScoredPointer, score_key, score_of, size_of
from icdsel.records.shots import AUTO, Shots, auto_shots, parsed_shots, shots_order, shots_text, stop_offset
from icdsel.records.values import DEFAULT_TASK, Bounds, BoundsOf, QuestionId, id_order

__all__ = [
    "AUTO",
    "DEFAULT_TASK",
    "Answer",
    "Bounds",
    "BoundsOf",
    "Candidate",
    "EpochMetrics",
    "Example",
    "Pointer",
    "PoolIds",
    "Prediction",
    "Prompt",
    "Proposal",
    "QueryGroup",
    "QuestionId",
    "Rejected",
    "RejectedError",
    "ScoredPointer",
    "Shots",
    "auto_shots",
    "id_order",
    "parsed_shots",
    "score_key",
    "score_of",
    "shots_order",
    "shots_text",
    "size_of",
    "stop_offset",
]

"""The typed records that travel between the stages, and their JSON.

No other module knows the JSON keys of these records. Those of RL data are Lever-Plus's (`vqa_acc_score`, …) for
every task.
"""

from icdsel.records.epoch_metrics import EpochMetrics
from icdsel.records.examples import Answer, Example, Pointer, Proposal
from icdsel.records.prediction import Prediction, Prompt
from icdsel.records.query_group import PoolIds, QueryGroup, Rejected
from icdsel.records.scored_pointer import Candidate, RejectedError, ScoredPointer, score_key, score_of
from icdsel.records.values import DEFAULT_TASK, Bounds, BoundsOf

__all__ = [
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
    "Rejected",
    "RejectedError",
    "ScoredPointer",
    "score_key",
    "score_of",
]

"""The VLM's answer to one query with some ICDs, and its scores: a line of a predictions file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from icdsel.records.examples import Pointer
from icdsel.records.shots import Shots, is_shots
from icdsel.records.values import (
    DEFAULT_TASK,
    BoundsOf,
    QuestionId,
    are_ids,
    is_finite,
    is_id,
    is_number,
    is_prompt_length,
    task_entry,
)

_ICDS, _SCORE, _OTHER_SCORE, _ERROR, _IMAGE = "icds", "accuracy", "accuracy_", "error", "image_id"
_TOKENS, _STATISTICS = "prompt_tokens", "statistics"
PREDICTION_KEY = _ICDS
"""The JSON key by which a line of predictions is recognised."""


Prompt = tuple[QuestionId, Shots, Pointer]
"""A query's question_id, how many ICDs were to be shown with it, and those that were."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The VLM's answer to one query with some ICDs, and its scores, or the error of a failed call.

    Attributes:
        question_id: The query.
        shots: The number of ICDs that were to be shown, or `auto` where the selector decided it.
        icds: The ICDs that were shown, in prompt order.
        prediction: The cleaned answer.
        score: Its score by the metric that the settings select; None if the call failed, or if the query has no
            reference answers.
        other_scores: Its scores by the task's other metrics.
        error: Why the call failed.
        task: The task by which it was scored.
        image: The image_id of the query; None in files from before it was recorded. Queries with one image are not
            independent, so comparisons need it.
        prompt_tokens: The length of the prompt in tokens of the VLM, those of images included; None if it is not known:
            for a failed call, an answer without a VLM, and in files from before it was recorded.
        statistics: What it contributes to scores of all queries together, by their names (`icdsel.tasks.corpus`).
    """

    question_id: QuestionId
    shots: Shots
    icds: Pointer
    prediction: str = ""
    score: float | None = None
    other_scores: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    task: str = DEFAULT_TASK
    image: QuestionId | None = None
    prompt_tokens: int | None = None
    statistics: Mapping[str, tuple[float | str, ...]] = field(default_factory=dict)

    @property
    def unscored(self) -> bool:
        """Whether it is an answer to a query without reference answers."""
        return self.score is None and self.error is None

    @property
    def shown(self) -> int:
        """How many ICDs were shown."""
        return len(self.icds) if isinstance(self.shots, str) else self.shots

    @property
    def prompt(self) -> Prompt:
        """What this prediction answers; a selector that decides how many may choose what another row shows."""
        return self.question_id, self.shots, self.icds

    @classmethod
    def from_json(cls, value: Any, bounds_of: BoundsOf) -> Self:
        """Validates a line of predictions.

        Raises:
            ValueError: It is not a line of predictions; the message names the field that is missing or invalid.
        """
        if not isinstance(value, dict):
            raise ValueError("not an object")
        failed, icds, task = _ERROR in value, value.get(_ICDS, []), value.get("task", DEFAULT_TASK)
        unscored = value.get(_SCORE, 0) is None
        image, tokens, statistics = value.get(_IMAGE), value.get(_TOKENS), value.get(_STATISTICS, {})
        others = {key: score for key, score in value.items() if key.startswith(_OTHER_SCORE)}
        valid = {
            "question_id": is_id(value.get("question_id")),
            "shots": is_shots(value.get("shots")),
            _ICDS: are_ids(icds),
            _ERROR: not failed or isinstance(value[_ERROR], str),
            "prediction": isinstance(value.get("prediction", ""), str),
            "task": isinstance(task, str),
            _IMAGE: image is None or is_id(image),
            _TOKENS: tokens is None or is_prompt_length(tokens),
            _STATISTICS: _are_statistics(statistics),
        }
        if valid["task"]:
            bounds = bounds_of(task)
            valid[_SCORE] = failed or unscored or is_number(value.get(_SCORE), *bounds)
            valid |= {key: is_number(score, *bounds) for key, score in others.items()}
        if invalid := [key for key, fine in valid.items() if not fine]:
            raise ValueError(f"{invalid[0][:40]} is missing or invalid")
        return cls(
            question_id=value["question_id"],
            shots=value["shots"],
            icds=tuple(icds),
            prediction=value.get("prediction", ""),
            score=None if failed else value[_SCORE],
            other_scores={key.removeprefix(_OTHER_SCORE): score for key, score in others.items()},
            error=value.get(_ERROR),
            task=task,
            image=image,
            prompt_tokens=tokens,
            statistics={name: tuple(statistic) for name, statistic in statistics.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        value: dict[str, Any] = {**task_entry(self.task), "question_id": self.question_id}
        value |= {} if self.image is None else {_IMAGE: self.image}
        value |= {"shots": self.shots, _ICDS: list(self.icds)}
        if self.error is not None:
            return value | {_ERROR: self.error}
        others = {f"{_OTHER_SCORE}{metric}": score for metric, score in self.other_scores.items()}
        tokens = {} if self.prompt_tokens is None else {_TOKENS: self.prompt_tokens}
        statistics = {name: list(statistic) for name, statistic in self.statistics.items()}
        more = {_STATISTICS: statistics} if statistics else {}
        return value | {"prediction": self.prediction, _SCORE: self.score} | others | tokens | more


def _are_statistics(value: Any) -> bool:
    """Whether a value is an object of lists of finite numbers and texts."""
    return isinstance(value, dict) and all(
        isinstance(statistic, list) and all(isinstance(part, str) or is_finite(part) for part in statistic)
        for statistic in value.values()
    )

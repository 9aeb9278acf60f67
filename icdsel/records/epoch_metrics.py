"""The metrics of one epoch of training: a line of a run's metrics file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from icdsel.records.values import is_finite, is_int64


@dataclass(frozen=True, slots=True)
class EpochMetrics:
    """The metrics of one epoch; `epoch` counts from 1 within its phase."""

    phase: str
    epoch: int
    values: Mapping[str, float | None]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Validates a line of metrics.

        Raises:
            ValueError: It is not a line of metrics, or a metric is not a finite number.
        """
        values = dict(value) if isinstance(value, dict) else {}
        phase, epoch = values.pop("phase", None), values.pop("epoch", None)
        if not isinstance(phase, str) or not is_int64(epoch):
            raise ValueError("it has no phase or no epoch, so these are not metrics of icdsel")
        if invalid := [name for name, number in values.items() if number is not None and not is_finite(number)]:
            raise ValueError(f"{invalid[0][:40]} is not a finite number")
        return cls(phase, epoch, values)

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return {"phase": self.phase, "epoch": self.epoch, **self.values}

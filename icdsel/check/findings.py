"""What is wrong, by kind: how often, with a few examples, how severe it is and what to do."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from icdsel.console import plain

EXAMPLES = 3

Severity = Literal["error", "warning"]
_IN_JSON: Mapping[Severity, str] = {"error": "must be fixed", "warning": "worth knowing"}


@dataclass(frozen=True)
class Kind:
    """Something that can be wrong.

    Attributes:
        problem: What it is, to be read after a count.
        remedy: What to do.
        severity: "error" if results would be wrong or a command would stop, else "warning".
    """

    problem: str
    remedy: str
    severity: Severity = "error"


@dataclass(frozen=True)
class Finding:
    """A kind that was found; `of` is how many were checked, None if that is not meaningful."""

    severity: Severity
    problem: str
    count: int
    of: int | None
    examples: tuple[str, ...]
    remedy: str


class Findings:
    """Collects findings by kind."""

    def __init__(self) -> None:
        self._counts: Counter[Kind] = Counter()
        self._of: dict[Kind, int] = {}
        self._examples: dict[Kind, list[str]] = {}

    def add(self, kind: Kind, example: object = "", count: int = 1, of: int | None = None) -> None:
        """Counts `count` more of a kind; the first few examples are kept."""
        self._counts[kind] += count
        if of is not None:
            self._of[kind] = of
        kept = self._examples.setdefault(kind, [])
        if len(kept) < EXAMPLES and (text := plain(example)) and text not in kept:
            kept.append(text)

    def found(self, kind: Kind) -> int:
        """How many of a kind were found."""
        return self._counts[kind]

    def listed(self) -> tuple[Finding, ...]:
        """All findings, errors first."""
        findings = [
            Finding(kind.severity, kind.problem, count, self._of.get(kind), tuple(self._examples[kind]), kind.remedy)
            for kind, count in self._counts.items()
            if count
        ]
        return tuple(sorted(findings, key=lambda finding: finding.severity))  # "error" comes before "warning"


@dataclass(frozen=True)
class Checked:
    """A path that was checked.

    Attributes:
        name: The path, or the name of the dataset.
        is_a: What it was recognised as, such as "run".
        about: What it contains, in a line.
        findings: What is wrong with it.
        metric: The metric that its answers are scored with; "" unless it is a dataset.
    """

    name: str
    is_a: str
    about: str = ""
    findings: tuple[Finding, ...] = field(default=())
    metric: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "about", plain(self.about))

    @property
    def errors(self) -> int:
        """How many of the findings are errors."""
        return sum(finding.severity == "error" for finding in self.findings)


def report(checked: Sequence[Checked]) -> Mapping[str, Any]:
    """All of them as plain values, for JSON, with the names of severities that docs/files.md documents."""
    listed = [asdict(one) for one in checked]
    for one in listed:
        for finding in one["findings"]:
            finding["severity"] = _IN_JSON[finding["severity"]]
    return {"must_be_fixed": sum(one.errors for one in checked), "checked": listed}

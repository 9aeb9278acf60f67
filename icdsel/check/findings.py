"""What is wrong, kind by kind: how often, a few examples, how grave it is and what to do."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from icdsel.console import plain

EXAMPLES = 3

Severity = Literal["must be fixed", "worth knowing"]


@dataclass(frozen=True)
class Kind:
    """Something that can be wrong.

    Attributes:
        problem: What it is, to be read behind a count.
        remedy: What to do.
        severity: "must be fixed" where results would be wrong or a command would stop, else "worth knowing".
    """

    problem: str
    remedy: str
    severity: Severity = "must be fixed"


@dataclass(frozen=True)
class Finding:
    """A kind of which something was found; `of` is how many were looked at, None where that says nothing."""

    severity: Severity
    problem: str
    count: int
    of: int | None
    examples: tuple[str, ...]
    remedy: str


class Findings:
    """Collects what is found, by kind."""

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
        if len(kept) < EXAMPLES and (told := plain(example)) and told not in kept:
            kept.append(told)

    def found(self, kind: Kind) -> int:
        """How many of a kind were found."""
        return self._counts[kind]

    def listed(self) -> tuple[Finding, ...]:
        """What was found, what must be fixed first."""
        findings = [
            Finding(kind.severity, kind.problem, count, self._of.get(kind), tuple(self._examples[kind]), kind.remedy)
            for kind, count in self._counts.items()
            if count
        ]
        return tuple(sorted(findings, key=lambda finding: finding.severity))  # "must" comes before "worth"


@dataclass(frozen=True)
class Checked:
    """What one path turned out to be, and what is wrong with it.

    Attributes:
        name: The path, or the name of the dataset.
        is_a: What it was recognised as, such as "run".
        about: What it holds, in a line; of what a file tells no more than fits there is kept.
        findings: What was found.
    """

    name: str
    is_a: str
    about: str = ""
    findings: tuple[Finding, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "about", plain(self.about))

    @property
    def must_be_fixed(self) -> int:
        """How many of the findings must be fixed."""
        return sum(finding.severity == "must be fixed" for finding in self.findings)


def report(checked: list[Checked]) -> Mapping[str, Any]:
    """The same as plain values, for JSON."""
    return {
        "must_be_fixed": sum(one.must_be_fixed for one in checked),
        "checked": [asdict(one) for one in checked],
    }

"""The headline's two rows by type of question: as the data name the types, else by how a question begins."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from icdsel.comparison.compare import Comparison, ComparisonRow
from icdsel.comparison.headline import Headline
from icdsel.comparison.statistics import holm
from icdsel.records import Example, QuestionId

MOST_TYPES = 12
"""How many types a table lists; the rarer ones share a line."""
FEWEST = 5
"""The smallest number of queries with a line of its own."""
_BEGINNING = 2  # words


@dataclass(frozen=True)
class TypeLine:
    """The queries of a type.

    Attributes:
        name: The type.
        baseline: The headline's baseline over these queries.
        policy: Its policy over these queries, with its difference to the baseline; None if it has none. Its `p_holm`
            is corrected for the lines of its table.
        decided: The best learned row that decides how many ICDs it shows, over these queries; None without any, and if
            it is the policy. Its `shown_none` says how often it shows none.
    """

    name: str
    baseline: ComparisonRow
    policy: ComparisonRow | None
    decided: ComparisonRow | None = None


@dataclass(frozen=True)
class TypeTable:
    """A table of types, the most common first; `kind` says what they are types of."""

    kind: str
    lines: tuple[TypeLine, ...]


_KINDS: dict[str, Callable[[Example], str]] = {
    "type of answer": lambda query: query.answer_type,
    "type of question": lambda query: query.question_type,
}


def by_type(comparison: Comparison, headline: Headline, queries: Mapping[QuestionId, Example]) -> list[TypeTable]:
    """A table for each kind of type that distinguishes the queries; without any, one by the first words.

    Args:
        comparison: The comparison.
        headline: Names the rows.
        queries: The queries' examples; those that are missing count in no line.
    """
    asked = [queries[i] for i in comparison.query_ids if i in queries]
    kinds = {kind: typed for kind, type_of in _KINDS.items() if len(typed := _typed(asked, type_of)) > 1}
    if not kinds and len(typed := _typed(asked, _beginning)) > 1:
        kinds = {"first words of the question": typed}
    return [TypeTable(kind, _lines(comparison, headline, typed)) for kind, typed in kinds.items()]


def deciding_row(comparison: Comparison, headline: Headline) -> ComparisonRow | None:
    """The best learned row that decides how many ICDs it shows; None without any, or if the headline's policy does."""
    rows = [row for row in comparison if row.learned and row.part_of is None and isinstance(row.shots, str)]
    best = max(rows, key=lambda row: row.accuracy, default=None)
    policy = headline.policy
    return None if best is None or (policy and isinstance(policy.shots, str)) else best


def _beginning(query: Example) -> str:
    return " ".join(query.question.lower().split()[:_BEGINNING]).rstrip("?.,:;!")


def _typed(queries: list[Example], type_of: Callable[[Example], str]) -> dict[str, list[QuestionId]]:
    """The queries of each type, the most common first; the rare ones together, last."""
    types = {query.question_id: type_of(query) for query in queries}
    counts = Counter(types.values())
    ordered = sorted(filter(None, counts), key=lambda name: (-counts[name], name))
    named = [name for name in ordered if counts[name] >= FEWEST][:MOST_TYPES]
    if len(rest := counts.keys() - set(named)) == 1:
        named += filter(None, rest)
    found: dict[str, list[QuestionId]] = {name: [] for name in named}
    others = f"all others ({len(rest)} types)" if len(rest) > 1 else "no type"
    if rest - set(named):
        found[others] = []
    for question_id, name in types.items():
        found[name if name in named else others].append(question_id)
    return found


def _lines(comparison: Comparison, headline: Headline, typed: Mapping[str, list[QuestionId]]) -> tuple[TypeLine, ...]:
    found, decided = [], deciding_row(comparison, headline)
    for name, question_ids in typed.items():
        shown = [row for row in (headline.baseline, headline.policy, decided) if row]
        baseline, *others = comparison.among(question_ids, *shown)
        own = iter(others)
        found.append(TypeLine(name, baseline, next(own) if headline.policy else None, next(own) if decided else None))
    corrected = iter(holm([line.policy.p_value for line in found if line.policy and line.policy.p_value is not None]))
    return tuple(
        replace(line, policy=replace(line.policy, p_holm=float(next(corrected))))
        if line.policy and line.policy.p_value is not None
        else line
        for line in found
    )

"""Checks RL data: lines, pools, pointers, scores, and whether they match the dataset and the settings."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from icdsel.artefacts import lever_plus_rl_data as lever_plus
from icdsel.artefacts.reference_scores import REFERENCES, inputs_have_references, references_input
from icdsel.artefacts.rl_data import expected_queries, metadata_path, parse_group
from icdsel.check.findings import Checked, Findings, Kind, Severity
from icdsel.console import plain
from icdsel.data.datasets import Split, load_split
from icdsel.errors import DataError, RlDataError, RunError, UserError
from icdsel.policy.references import scores_references
from icdsel.policy.rewards import fields_of, is_correct, reward_of
from icdsel.records import Example, Pointer, QueryGroup, QuestionId, Rejected, score_key
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings
from icdsel.store.fingerprints import fingerprint_examples, fingerprint_file
from icdsel.store.json_reading import read_lines
from icdsel.store.metadata import ON_SERVERS, differences, moved_vlm, read_metadata
from icdsel.tasks.base import TASKS
from icdsel.tasks.scoring import SCORER_VERSION

PART = ".part"
_AGAIN = "move them away and generate them again: icdsel gen-rl-data"
_DATASET = "name their dataset with --dataset"

CUT = Kind(
    "queries are missing: the file was cut after it was finished",
    "rename it to NAME.jsonl.part: the command that created it resumes after its content",
)
UNREADABLE = Kind("files or lines cannot be read", f"training stops at them: {_AGAIN}")
TORN = Kind(
    "lines of a journal are incomplete",
    "the command that wrote it drops them and resumes when it is run again",
    "warning",
)
UNFINISHED = Kind("it is the journal of an unfinished command", "run the command again to resume it", "warning")
DAMAGED = Kind(
    "lines are damaged",
    "training stops at them: rename the file to NAME.jsonl.part, and the command that created it resumes after the "
    "lines before them",
)
NO_RECORD = Kind("lines are not RL data, or their pool is invalid", f"training stops at them: {_AGAIN}")
EMPTY = Kind("no candidate can be used", _AGAIN)
NO_DATASET = Kind(
    "the dataset cannot be read, so the ICDs were not looked up", "name it: --dataset, --data-dir", "warning"
)
OTHER_TASK = Kind("queries are of another task", "name it with --task: training rejects other tasks")
REPEATED_QUERY = Kind("queries are repeated", "their pointers are united", "warning")
OTHER_SPLIT = Kind("queries are not in their split", _DATASET)
OTHER_QUERY = Kind("queries differ from the dataset", _DATASET)
UNKNOWN_ICD = Kind("pointers have an ICD that is not in the training split", _DATASET)
OWN_QUERY = Kind("pointers contain the query itself", f"its answer is in the prompt: {_AGAIN}")
OWN_IMAGE = Kind(
    "pointers have an ICD with the query's own image", "it may reveal the answer: generate them again with this version"
)
OWN_IMAGE_ALLOWED = Kind(
    "pointers have an ICD with the query's own image, which was allowed",
    "it may reveal the answer; --exclude-same-image excludes such ICDs",
    "warning",
)
FAILED = Kind("VLM calls failed", "training leaves them out; generate the data again to repeat them", "warning")
REPEATED_POINTER = Kind("pointers are repeated within their query", "they count twice", "warning")
POOL_SIZES = Kind("pools have another size than most", "training pads them", "warning")
UNKNOWN_IN_POOL = Kind("pools have an example that is not in the training split", _DATASET)
MIXED_POOLS = Kind("pools of a few examples are mixed with pools of the whole split", "train on them separately")
NO_SCORE = Kind(
    "candidates lack a score that the reward mode needs",
    "use --reward-mode hard_plus_soft, or run their gen-rl-data command again with --overwrite (for vqa_gt_prob also "
    "--references labels)",
)
NO_SIGNAL = Kind(
    "queries have no signal: all their pointers have the same reward",
    "nothing is learned from them; more pointers (--samples, --random) may find differences",
    "warning",
)
NO_SIGNAL_AT_ALL = Kind("no query has a signal: nothing can be learned", "score more pointers, or other queries")
NO_CORRECT = Kind("queries have no correct pointer", "--require-correct leaves them out", "warning")
NO_METADATA = Kind("their inputs are unknown", "keep the .meta.json with the file", "warning")
BAD_METADATA = Kind("the metadata file cannot be read", "copy it again, or generate the data again")
OTHER_DATASET = Kind("they belong to another dataset than the one in the settings", _DATASET)
STALE_DATASET = Kind("the dataset has changed since", f"their ids may name other examples now: {_AGAIN}")
OTHER_SETTINGS = Kind(
    "they were created with different settings", "`icdsel gen-rl-data` would not resume or reuse them", "warning"
)


class Context:
    """The settings and their dataset. Each split is read once, when first needed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._splits: dict[str, Split | DataError] = {}

    def split(self, name: str) -> Split:
        """A split.

        Raises:
            DataError: It cannot be read.
        """
        if name not in self._splits:
            try:
                self._splits[name] = load_split(self.settings.data, name)
            except DataError as error:
                self._splits[name] = error
        split = self._splits[name]
        if isinstance(split, DataError):
            raise split
        return split

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the training split, as in the identity of RL data."""
        return fingerprint_examples(self.split("train"))

    def queries(self, split: str) -> str | None:
        """Fingerprint of the split of the queries, if it is not the training split."""
        return None if split == "train" else fingerprint_examples(self.split(split))


def check_rl_data(path: Path, context: Context) -> Checked:
    """Lists what is wrong with RL data of icdsel, or with their journal.

    Args:
        path: A `.jsonl`, or its `.jsonl.part`.
        context: The settings and dataset that they should match.
    """
    found = Findings()
    finished = path.with_name(path.name.removesuffix(PART))
    part = finished.with_name(finished.name + PART)
    if part.exists():
        found.add(UNFINISHED, part)
    inputs = _inputs(found, metadata_path(finished), context)
    allowed = inputs.get("data.exclude_same_image", context.settings.data.exclude_same_image) is False
    queries = _Queries(found, context.settings, allowed)
    if not found.found(OTHER_DATASET):
        queries.look_up_in(context, str(inputs.get("proposals.query_split", "train")))
    count = 0
    for group, rejected in _groups(found, path, TORN if path == part else DAMAGED):
        queries.check_failures(group)
        queries.check_pointers(group.question_id, _pointers(group, rejected))
        queries.check_group(group.without_failed())
        count += 1
    if path == finished and (expected := expected_queries(path)) is not None and not found.found(DAMAGED):
        found.add(CUT, count=max(0, expected - count), of=expected)
    return Checked(str(path), "RL data", queries.finish(), found.listed())


def check_journal(found: Findings, path: Path) -> None:
    """Adds what cannot be read of a journal of online training, which has the form of RL data."""
    for _ in _groups(found, path, TORN):
        pass


def check_lever_plus(path: Path, context: Context) -> Checked:
    """Lists what is wrong with RL data or InfoScore data in Lever-Plus's form."""
    found = Findings()
    queries = _Queries(found, context.settings, True)
    queries.look_up_in(context, "train")
    ids = [example.question_id for example in queries.train] if queries.train else None
    reward = context.settings.reward
    is_a = "RL data of Lever-Plus"
    try:
        try:
            groups, rejected = lever_plus.read_lever_plus(
                path, ids, skip_fallback=reward.skip_fallback, accept_unsound=reward.accept_unsound
            )
        except RlDataError as error:
            if "InfoScore" not in str(error):
                raise
            groups, rejected = lever_plus.read_info_score(path, ids)
            is_a = "InfoScore data of Lever-Plus"
    except RlDataError as error:
        found.add(UNREADABLE, error)
        return Checked(str(path), is_a, findings=found.listed())
    for reason, count in rejected.items():
        remedy = "training leaves them out" if reason != lever_plus.GT_PROB_NOTE else "use --reward-mode hard_plus_soft"
        severity: Severity = "error" if reason in (lever_plus.OWN_QUERY, lever_plus.OUTSIDE) else "warning"
        found.add(Kind(f"candidates: {reason}", remedy, severity), count=count)
    scored = is_a.startswith("RL")
    for group in groups:
        queries.check_pointers(group.question_id, _pointers(group))
        if scored:
            queries.check_group(group)
    about = queries.finish() if scored else f"queries: {len(groups):,}"
    return Checked(str(path), is_a, about, found.listed())


def _groups(found: Findings, path: Path, damaged: Kind) -> Iterator[tuple[QueryGroup, list[Rejected]]]:
    """The readable groups of a file; all else is added to the findings, lines without valid JSON as `damaged`."""
    reasons = Counter[str]()
    try:
        for place, value in read_lines(path, lambda error: found.add(damaged, _without(path, error)), whole_texts=True):
            try:
                group, rejected = parse_group(value)
            except ValueError as error:
                found.add(NO_RECORD, f"{place}: {error}")
                continue
            reasons.update(reason for reason, _ in rejected)
            yield group, rejected
    except DataError as error:  # it concerns the whole file
        found.add(UNREADABLE, error)
    for reason, count in reasons.items():
        found.add(Kind(f"candidates: {reason}", f"training leaves them out: {_AGAIN}"), count=count)


def _pointers(group: QueryGroup, rejected: Sequence[Rejected] = ()) -> list[Pointer]:
    """All pointers of a query, also of rejected candidates."""
    return [candidate.pointer for candidate in group.candidates] + [pointer for _, pointer in rejected]


def _without(path: Path, error: UserError) -> str:
    """A message without the path, under which the findings are listed anyway."""
    return str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")


class _Queries:
    """Checks queries one after the other."""

    def __init__(self, found: Findings, settings: Settings, same_image_allowed: bool) -> None:
        self._found, self._reward = found, settings.reward
        self._task = TASKS.named(settings.data.task)
        self._own_image = OWN_IMAGE_ALLOWED if same_image_allowed else OWN_IMAGE
        self._known: set[QuestionId] = set()
        self._sizes: Counter[int | None] = Counter()
        self._size_example: dict[int | None, QuestionId] = {}
        self._lengths: set[int] = set()
        self._errors: Counter[str] = Counter()
        self._pointers = 0
        self.train: Split | None = None
        self._split: Split | None = None

    def look_up_in(self, context: Context, split: str) -> None:
        """Has the ICDs looked up in the training split, and the queries in their `split`."""
        try:
            self.train = context.split("train")
            self._split = context.split(split)
        except DataError as error:
            self._found.add(NO_DATASET, error)

    def check_failures(self, group: QueryGroup) -> None:
        """Counts the failed calls of a query by their errors."""
        self._errors.update(plain(candidate.error) for candidate in group.candidates if candidate.error is not None)

    def check_pointers(self, question_id: QuestionId, pointers: Sequence[Pointer]) -> None:
        """Checks the ICDs of all pointers of a query."""
        query = _example(self._split, question_id)
        known: set[Pointer] = set()
        self._pointers += len(pointers)
        for pointer in pointers:
            place = f"query {question_id}, pointer {list(pointer)}"
            if question_id in pointer and (query is None or self._split is self.train):
                self._found.add(OWN_QUERY, place)
            if pointer in known:
                self._found.add(REPEATED_POINTER, place)
            known.add(pointer)
            self._lengths.add(len(pointer))
            if self.train is None:
                continue
            icds = [_example(self.train, icd) for icd in pointer]
            if None in icds:
                self._found.add(UNKNOWN_ICD, place)
            # By the path, as pools do: other pictures may have the same image_id.
            if query and any(
                icd.question_id != question_id and not set(query.images).isdisjoint(icd.images) for icd in icds if icd
            ):
                self._found.add(self._own_image, place)

    def check_group(self, group: QueryGroup) -> None:
        """Checks the pool and the scores of a query."""
        found, question_id = self._found, group.question_id
        if question_id in self._known:
            found.add(REPEATED_QUERY, f"query {question_id}")
        self._known.add(question_id)
        if group.task != self._task.name:
            found.add(OTHER_TASK, f"query {question_id}: {group.task}, not {self._task.name}")
        size = None if group.pool is None else len(group.pool)
        if not group.derived:
            self._sizes[size] += 1
            self._size_example.setdefault(size, question_id)
        if self.train is not None and not self.train.row.keys() >= set(group.pool or ()):
            found.add(UNKNOWN_IN_POOL, f"query {question_id}")
        query = _example(self._split, question_id)
        if self._split and query is None:
            found.add(OTHER_SPLIT, f"query {question_id} is not in {self._split.name}")
        if query and (difference := _difference(query, group)):
            found.add(OTHER_QUERY, f"query {question_id}: {difference}")
        needed = fields_of(self._reward.mode)
        if lacking := [c for c in group.candidates if any(getattr(c, name) is None for name in needed)]:
            found.add(NO_SCORE, f"query {question_id}: {', '.join(map(score_key, needed))}", len(lacking))
        if len({reward_of(candidate, self._reward) for candidate in group.candidates}) < 2:
            found.add(NO_SIGNAL, f"query {question_id}")
        same_task = group.task == self._task.name  # another task may have no notion of correct
        if same_task and self._task.correctness is not None and not any(map(is_correct, group.candidates)):
            found.add(NO_CORRECT, f"query {question_id}")

    def finish(self) -> str:
        """Adds the findings that need all queries; returns a summary of the data in one line."""
        found, queries = self._found, self._sizes.total() or len(self._known)
        for kind in (NO_SIGNAL, NO_CORRECT):
            if found.found(kind):
                found.add(kind, count=0, of=queries)
        if queries and found.found(NO_SIGNAL) == queries:
            found.add(NO_SIGNAL_AT_ALL)
        if not self._known:
            found.add(EMPTY)
        for error, count in self._errors.most_common():
            found.add(FAILED, f"{count}: {error}", count, of=self._pointers)
        if None in self._sizes and len(self._sizes) > 1:
            found.add(MIXED_POOLS, count=queries - self._sizes[None], of=queries)
        elif len(self._sizes) > 1:
            usual = self._sizes.most_common(1)[0][0]
            for size, count in self._sizes.items():
                if size != usual:
                    found.add(
                        POOL_SIZES, f"{size} rather than {usual}: query {self._size_example[size]}", count, queries
                    )
        lengths = f", of {min(self._lengths)} to {max(self._lengths)} ICDs" if len(self._lengths) > 1 else ""
        return f"queries: {len(self._known):,}, pointers: {self._pointers:,}{lengths}"


def _example(split: Split | None, question_id: QuestionId) -> Example | None:
    row = split.row.get(question_id) if split is not None else None
    return None if split is None or row is None else split[row]


def _difference(query: Example, group: QueryGroup) -> str:
    """How a query differs from the dataset; empty if it does not, or if Lever-Plus's data do not say."""
    if group.question not in ("", query.question):
        return f"{group.question!r}, in the dataset {query.question!r}"
    if group.image_id not in (-1, query.image_id):
        return f"image {group.image_id}, in the dataset image {query.image_id}"
    return ""


def _inputs(found: Findings, metadata_file: Path, context: Context) -> Mapping[str, Any]:
    """The inputs of the data, by their metadata; adds what differs from the current settings."""
    if not metadata_file.exists():
        found.add(NO_METADATA, f"there is no {metadata_file}")
        return {}
    try:
        metadata = read_metadata(metadata_file)
    except RunError as error:
        found.add(BAD_METADATA, error)
        return {}
    inputs: Mapping[str, Any] = metadata.inputs
    settings = context.settings
    # Without those of the VLM and the encoder, which are known only when they are loaded.
    now = identity(settings, "data", "vlm", "proposals", leave_out=["proposals.init", "proposals.query_split"])
    now["scorer"] = SCORER_VERSION
    for name, file in (("init", settings.proposals.init), ("train_embeddings", settings.data.train_embeddings)):
        now[name] = fingerprint_file(file) if file and file.is_file() else None
    if inputs.get("data.dataset") != now["data.dataset"]:
        found.add(OTHER_DATASET, f"{inputs.get('data.dataset')!r} then, {now['data.dataset']!r} now")
        return inputs
    try:
        queries = context.queries(str(inputs.get("proposals.query_split", "train")))
        for name, fingerprint in (("dataset", context.fingerprint), ("queries", queries)):
            for line in differences({name: inputs.get(name)}, {name: fingerprint}):
                found.add(STALE_DATASET, line)
    except DataError:
        pass  # reported where the queries are looked up
    if "dtype" in inputs and (from_servers := inputs["dtype"] == ON_SERVERS) != bool(settings.vlm.url):
        found.add(OTHER_SETTINGS, moved_vlm(from_servers))
    now |= references_input(scores_references(settings, inputs_have_references(inputs)))
    for line in differences({name: value for name, value in inputs.items() if name in {*now, REFERENCES}}, now):
        found.add(OTHER_SETTINGS, line)
    return inputs

"""What is wrong with RL data: lines, pools, pointers, scores, and whether they fit the dataset and settings."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from icdsel.artefacts import lever_plus_rl_data as lever_plus
from icdsel.artefacts.candidates import SCORER_VERSION
from icdsel.artefacts.rl_data import NO_RECORD as NOT_ONE
from icdsel.artefacts.rl_data import metadata_path, read_group, told_queries
from icdsel.check.findings import Checked, Findings, Kind
from icdsel.console import plain
from icdsel.data.datasets import Split, load_split
from icdsel.errors import DataError, RlDataError, RunError, UserError
from icdsel.policy.groups import reward_of
from icdsel.policy.rewards import fields_of, is_correct
from icdsel.records import Example, Pointer, QueryGroup
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings
from icdsel.settings.tables import RewardSettings
from icdsel.store.fingerprints import fingerprint_examples, fingerprint_file
from icdsel.store.json_reading import read_lines
from icdsel.store.metadata import differences, read_metadata

PART = ".part"
_AGAIN = "move them away and make them again: icdsel gen-rl-data"
_DATASET = "name the dataset that they were made of with --dataset"

CUT = Kind(
    "queries are lacking: the file was cut after it was finished",
    "rename it to NAME.jsonl.part, and the command that made it goes on after what is there",
)
UNREADABLE = Kind("files or lines that cannot be read", f"training stops at them: {_AGAIN}")
TORN = Kind(
    "lines of a journal that were not written whole",
    "the command that wrote it drops them and goes on, when it is given again",
    "worth knowing",
)
UNFINISHED = Kind(
    "a journal of an unfinished command", "give the command again: it goes on from there", "worth knowing"
)
DAMAGED = Kind(
    "lines that are damaged",
    "training stops at them: rename the file to NAME.jsonl.part, and the command that made it goes on after the lines "
    "before them",
)
NO_RECORD = Kind("lines that are no RL data, or whose pool is none", f"training stops at them: {_AGAIN}")
EMPTY = Kind("no candidate can be used", _AGAIN)
NO_DATASET = Kind(
    "the dataset cannot be read, so the ICDs were not looked up", "name it: --dataset, --data-dir", "worth knowing"
)
REPEATED_QUERY = Kind("queries that stand more than once", "their pointers are put together", "worth knowing")
OTHER_SPLIT = Kind("queries are not in their split", _DATASET)
OTHER_QUERY = Kind("queries ask something else than the dataset does", _DATASET)
UNKNOWN_ICD = Kind("pointers with an ICD that is not in the training split", _DATASET)
OWN_QUERY = Kind("pointers hold the query itself", f"its answer stands in the prompt: {_AGAIN}")
OWN_IMAGE = Kind(
    "pointers hold an ICD with the query's own image", "it may tell the answer: make them again with this version"
)
OWN_IMAGE_ALLOWED = Kind(
    "pointers hold an ICD with the query's own image, which was allowed",
    "it may tell the answer; --exclude-same-image keeps such ICDs out",
    "worth knowing",
)
FAILED = Kind("VLM calls failed", "training leaves them out; make the data again to repeat the calls", "worth knowing")
REPEATED_POINTER = Kind("pointers stand more than once in their query", "they count double", "worth knowing")
POOL_SIZES = Kind("pools of other sizes than most", "training pads them", "worth knowing")
UNKNOWN_IN_POOL = Kind("pools with an example that is not in the training split", _DATASET)
MIXED_POOLS = Kind("pools of a few examples beside pools of the whole split", "train on them one after the other")
LENGTHS = Kind("pointers of another length than most", "they cannot be trained on together: keep those of one length")
NO_SCORE = Kind(
    "candidates lack a score that the reward mode needs", "use --reward-mode hard_plus_soft, or score them again"
)
NO_SIGNAL = Kind(
    "queries without a signal: all their pointers are worth the same",
    "nothing is learned from them; more pointers (--samples, --random) find differences",
    "worth knowing",
)
NO_SIGNAL_AT_ALL = Kind("no query has a signal: nothing can be learned", "score more pointers, or other queries")
NO_CORRECT = Kind(
    "queries without a pointer that was answered correctly", "--require-correct leaves them out", "worth knowing"
)
NO_METADATA = Kind("it is not known what they were made of", "keep the .meta.json beside the file", "worth knowing")
BAD_METADATA = Kind("the side file cannot be read", "copy it again, or make the data again")
OTHER_DATASET = Kind("made of another dataset than is set", _DATASET)
STALE_DATASET = Kind("the dataset has changed since", f"their ids may name other examples now: {_AGAIN}")
OTHER_SETTINGS = Kind(
    "made under other settings than now", "`icdsel gen-rl-data` would refuse to go on with them", "worth knowing"
)


class Present:
    """The dataset of the settings, each split read once, when it is asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._splits: dict[str, Split | DataError] = {}

    def split(self, name: str) -> Split:
        """A split.

        Raises:
            DataError: it cannot be read.
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
        """Of the training split, as the identity of RL data holds it."""
        return fingerprint_examples(self.split("train"))

    def queries(self, split: str) -> str | None:
        """Fingerprint of the split that is asked about, where it is not the training split."""
        return None if split == "train" else fingerprint_examples(self.split(split))


def check_rl_data(path: Path, present: Present) -> Checked:
    """Lists what is wrong with RL data of icdsel, or with the journal that becomes them.

    Args:
        path: A `.jsonl`, or its `.jsonl.part`.
        present: The dataset and settings that they should fit.
    """
    found = Findings()
    whole = path.with_name(path.name.removesuffix(PART))
    part = whole.with_name(whole.name + PART)
    if part.exists():
        found.add(UNFINISHED, part)
    inputs = _inputs(found, metadata_path(whole), present)
    allowed = inputs.get("data.exclude_same_image", present.settings.data.exclude_same_image) is False
    queries = _Queries(found, present.settings.reward, allowed)
    if not found.found(OTHER_DATASET):
        queries.look_up_in(present, str(inputs.get("proposals.query_split", "train")))
    count = 0
    for group in _groups(found, path, queries):
        queries.take(group)
        count += 1
    if path == whole and (told := told_queries(path)) is not None and not found.found(DAMAGED):
        found.add(CUT, count=max(0, told - count), of=told)
    return Checked(str(path), "RL data", queries.finish(), found.listed())


def check_journal(found: Findings, path: Path) -> None:
    """Adds what cannot be read of a journal of online training, which is in the form of RL data."""
    for _ in _groups(found, path, None):
        pass


def check_lever_plus(path: Path, present: Present) -> Checked:
    """Lists what is wrong with RL data or InfoScore data in Lever-Plus's form."""
    found = Findings()
    queries = _Queries(found, present.settings.reward, True)
    queries.look_up_in(present, "train")
    ids = [example.question_id for example in queries.train] if queries.train else None
    reward = present.settings.reward
    is_a = "RL data of Lever-Plus"
    try:
        try:
            sound = {"skip_fallback": reward.skip_fallback, "accept_unsound": reward.accept_unsound}
            groups, rejected = lever_plus.read_lever_plus(path, ids, **sound)
        except RlDataError as error:
            if "InfoScore" not in str(error):
                raise
            groups, rejected = lever_plus.read_info_score(path, ids)
            is_a = "InfoScore data of Lever-Plus"
    except RlDataError as error:
        found.add(UNREADABLE, error)
        return Checked(str(path), is_a, findings=found.listed())
    grave = (lever_plus.OWN_QUERY, lever_plus.OUTSIDE)
    for reason, count in rejected.items():
        remedy = (
            "they are left out of training" if reason != lever_plus.GT_PROB_NOTE else "use --reward-mode hard_plus_soft"
        )
        severity = "must be fixed" if reason in grave else "worth knowing"
        found.add(Kind(f"candidates: {reason}", remedy, severity), count=count)  # type: ignore[arg-type]
    scored = is_a.startswith("RL")
    for group in groups:
        queries.look_at_pointers(group.question_id, [c["pointer"] for c in group.candidates])
        if scored:
            queries.take(group)
    told = queries.finish() if scored else f"queries: {len(groups):,}"
    return Checked(str(path), is_a, told, found.listed())


def _groups(found: Findings, path: Path, queries: "_Queries | None") -> Iterator[QueryGroup]:
    """What can be read of a file, or of a journal where no `queries` are given; what cannot is noted."""
    torn = TORN if queries is None or path.name.endswith(PART) else DAMAGED
    rejected = Counter[str]()
    try:
        for place, record in read_lines(path, lambda error: found.add(torn, _without(path, error)), whole_texts=True):
            if not isinstance(record, dict):
                found.add(NO_RECORD, f"{place}: not an object")
                continue
            if queries is not None:
                queries.look_at_record(record)
            try:
                yield read_group(record, rejected)
            except NOT_ONE as error:
                found.add(NO_RECORD, f"{place}: {type(error).__name__} {error}")
    except DataError as error:  # of the whole file
        found.add(UNREADABLE, error)
    for reason, count in rejected.items():
        if reason != lever_plus.FAILED:  # told with its reasons
            found.add(Kind(f"candidates: {reason}", f"training leaves them out: {_AGAIN}"), count=count)


def _without(path: Path, error: UserError) -> str:
    """A message without the path that the list stands under."""
    return str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")


class _Queries:
    """Looks at queries one after the other."""

    def __init__(self, found: Findings, reward: RewardSettings, same_image_allowed: bool) -> None:
        self._found, self._reward = found, reward
        self._own_image = OWN_IMAGE_ALLOWED if same_image_allowed else OWN_IMAGE
        self._seen: set[int] = set()
        self._sizes: Counter[int | None] = Counter()
        self._size_example: dict[int | None, int] = {}
        self._lengths: Counter[int] = Counter()
        self._length_example: dict[int, int] = {}
        self._reasons: Counter[str] = Counter()
        self._pointers = 0
        self.train: Split | None = None
        self._split: Split | None = None

    def look_up_in(self, present: Present, split: str) -> None:
        """Makes the ICDs be looked up in the training split, the queries in the `split` that they are of."""
        try:
            self.train = present.split("train")
            self._split = present.split(split)
        except DataError as error:
            self._found.add(NO_DATASET, error)

    def look_at_record(self, record: Mapping[str, Any]) -> None:
        """Looks at the pointers and failures of a record of our own, whatever else is wrong with it."""
        question_id, candidates = record.get("question_id"), record.get("pointer_candidates")
        if not isinstance(question_id, int) or not isinstance(candidates, list):
            return
        candidates = [candidate for candidate in candidates if isinstance(candidate, dict)]
        for candidate in candidates:
            if candidate.get("eval_failed"):
                self._reasons[plain(candidate.get("error") or "no reason is told")] += 1
        told = [candidate.get("pointer") for candidate in candidates]
        pointers = [p for p in told if isinstance(p, list) and all(isinstance(icd, int) for icd in p)]
        self.look_at_pointers(question_id, pointers)

    def look_at_pointers(self, question_id: int, pointers: Sequence[Sequence[int]]) -> None:
        """Looks at the ICDs of all pointers of a query."""
        query = _example(self._split, question_id)
        seen: set[Pointer] = set()
        self._pointers += len(pointers)
        for pointer in pointers:
            place = f"query {question_id}, pointer {list(pointer)}"
            if question_id in pointer and (query is None or self._split is self.train):
                self._found.add(OWN_QUERY, place)
            if tuple(pointer) in seen:
                self._found.add(REPEATED_POINTER, place)
            seen.add(tuple(pointer))
            self._lengths[len(pointer)] += 1
            self._length_example.setdefault(len(pointer), question_id)
            if self.train is None:
                continue
            icds = [_example(self.train, icd) for icd in pointer]
            if None in icds:
                self._found.add(UNKNOWN_ICD, place)
            # As pools do, by the path: other pictures may have the same image_id.
            if query and any(icd.question_id != question_id and icd.image == query.image for icd in icds if icd):
                self._found.add(self._own_image, place)

    def take(self, group: QueryGroup) -> None:
        """Looks at a query that could be read."""
        found, question_id = self._found, group.question_id
        if question_id in self._seen:
            found.add(REPEATED_QUERY, f"query {question_id}")
        self._seen.add(question_id)
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
        scored = [candidate for candidate in group.candidates if "vqa_acc_score" in candidate]
        lacking = [c for c in scored if any(c.get(name) is None for name in fields_of(self._reward.mode))]
        if lacking:
            found.add(NO_SCORE, f"query {question_id}: {', '.join(fields_of(self._reward.mode))}", len(lacking))
        if len({reward_of(candidate, self._reward) for candidate in scored}) < 2:
            found.add(NO_SIGNAL, f"query {question_id}")
        if not any(map(is_correct, scored)):
            found.add(NO_CORRECT, f"query {question_id}")

    def finish(self) -> str:
        """Adds what only all queries together tell; what there is, in a line."""
        found, queries = self._found, self._sizes.total() or len(self._seen)
        for kind in (NO_SIGNAL, NO_CORRECT):
            if found.found(kind):
                found.add(kind, count=0, of=queries)
        if queries and found.found(NO_SIGNAL) == queries:
            found.add(NO_SIGNAL_AT_ALL)
        if not self._seen:
            found.add(EMPTY)
        if self._reasons:
            for reason, count in self._reasons.most_common():
                found.add(FAILED, f"{count}: {reason}", count, of=self._pointers)
        if None in self._sizes and len(self._sizes) > 1:
            found.add(MIXED_POOLS, count=queries - self._sizes[None], of=queries)
        elif len(self._sizes) > 1:
            usual = self._sizes.most_common(1)[0][0]
            for size, count in self._sizes.items():
                if size != usual:
                    found.add(
                        POOL_SIZES, f"{size} rather than {usual}: query {self._size_example[size]}", count, queries
                    )
        if len(self._lengths) > 1:
            usual_length = self._lengths.most_common(1)[0][0]
            for length, count in self._lengths.items():
                if length != usual_length:
                    place = f"{length} rather than {usual_length}: query {self._length_example[length]}"
                    found.add(LENGTHS, place, count, self._pointers)
        return f"queries: {len(self._seen):,}, pointers: {self._pointers:,}"


def _example(split: Split | None, question_id: int) -> Example | None:
    row = split.row.get(question_id) if split is not None else None
    return None if split is None or row is None else split[row]


def _difference(query: Example, group: QueryGroup) -> str:
    """How a query is not what the dataset says, "" where it is; what Lever-Plus's data do not tell is no difference."""
    if group.question not in ("", query.question):
        return f"{group.question!r}, in the dataset {query.question!r}"
    if group.image_id not in (-1, query.image_id):
        return f"image {group.image_id}, in the dataset image {query.image_id}"
    return ""


def _inputs(found: Findings, side: Path, present: Present) -> Mapping[str, Any]:
    """What the side file says that the data were made of; notes what differs from what is set now."""
    if not side.exists():
        found.add(NO_METADATA, f"there is no {side}")
        return {}
    try:
        content = read_metadata(side)
    except RunError as error:
        found.add(BAD_METADATA, error)
        return {}
    inputs: Mapping[str, Any] = content.inputs
    settings = present.settings
    # What the VLM and the encoder were can be told only with them loaded.
    now = identity(settings, "data", "vlm", "proposals", leave_out=["proposals.init", "proposals.query_split"])
    now["scorer"] = SCORER_VERSION
    for name, file in (("init", settings.proposals.init), ("train_embeddings", settings.data.train_embeddings)):
        now[name] = fingerprint_file(file) if file and file.is_file() else None
    if inputs.get("data.dataset") != now["data.dataset"]:
        found.add(OTHER_DATASET, f"{inputs.get('data.dataset')!r} then, {now['data.dataset']!r} now")
        return inputs
    try:
        queries = present.queries(str(inputs.get("proposals.query_split", "train")))
        for name, fingerprint in (("dataset", present.fingerprint), ("queries", queries)):
            for line in differences({name: inputs.get(name)}, {name: fingerprint}):
                found.add(STALE_DATASET, line)
    except DataError:
        pass  # told where the queries are looked up
    for line in differences({name: value for name, value in inputs.items() if name in now}, now):
        found.add(OTHER_SETTINGS, line)
    return inputs

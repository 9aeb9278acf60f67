"""Readers of journals of unfinished work."""

import json
from pathlib import Path
from types import SimpleNamespace

from icdsel.artefacts import rl_data
from icdsel.errors import RlDataError, RunError
from icdsel.settings.loading import load_settings
from icdsel.settings.tables import RewardSettings, TrainSettings
from icdsel.stages import answering
from icdsel.stages import generate as generation
from icdsel.stages.training import online
from icdsel.store.journal import Journal

from .common import alone, ignore, lines_of
from .harness import Reader
from .mutate import damaged_lines
from .results import prediction
from .rl_data import RL_RECORDS, use_as_tensors

SETTINGS = load_settings({})


def use_answers_journal(path: Path) -> bool:
    kept = answering.complete_units(Journal(path))
    for (question_id, shots, icds), answered in kept.items():
        assert shots == answered.shots
        f"{question_id} {icds} {shots if isinstance(shots, str) else shots + 1}".encode()
    return bool(kept)


def use_generation_journal(path: Path) -> None:
    queries = [SimpleNamespace(question_id=i) for i in (100, 101, 102)]
    units = [[query] for query in queries]
    assert 0 <= rl_data.complete_units(Journal(path, RlDataError), units) <= 3  # type: ignore[arg-type]
    path.rename(path.with_name("x.shard-1-of-2.jsonl"))
    for line in generation.scored_in_shards(path.with_name("x.jsonl"), {}).values():
        json.loads(line)
    rl_data.summary_of(path.with_name("x.shard-1-of-2.jsonl"))


def shard(folder: Path) -> Path:
    (folder / "x.shard-1-of-2.meta.json").write_text(json.dumps({"identity": {}}))
    return folder / "x.jsonl.part"


def use_online_journal(path: Path) -> None:
    journal = Journal(path, RlDataError)
    sources = SimpleNamespace(train=None, vlm=None, settings=SETTINGS)
    groups = [rl_data.parse_group(record)[0].without_failed() for record in RL_RECORDS[:2]]
    settings = TrainSettings(online=True, grpo_epochs=3)
    made = online.Rollouts(sources, groups, settings, RewardSettings(), 1, journal, ignore)  # type: ignore[arg-type]
    made.replay(1)
    use_as_tensors(made._groups)


_STAMPED = [{"online_epoch": 0} | record for record in RL_RECORDS[:2]]
_UNIT = [prediction(i, 2) | {"shots": "auto" if i % 3 == 0 else 2} for i in range(answering.UNIT)]


READERS = [
    Reader(
        "answers-journal",
        alone("x.part"),
        lines_of(*_UNIT, *_UNIT[:3]),
        damaged_lines,
        use_answers_journal,
        (RunError,),
    ),
    Reader("generation-journal", shard, lines_of(*RL_RECORDS), damaged_lines, use_generation_journal, (RlDataError,)),
    Reader(
        "online-journal", alone("online.jsonl"), lines_of(*_STAMPED), damaged_lines, use_online_journal, (RlDataError,)
    ),
]

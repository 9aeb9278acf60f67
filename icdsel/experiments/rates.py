"""How fast this machine works: as earlier stages recorded it beside their results, else by a short probe."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from icdsel.artefacts.rl_data import metadata_path, read_rl_data, rl_data_path
from icdsel.artefacts.run_folder import METADATA_FILE
from icdsel.console import note
from icdsel.errors import RunError
from icdsel.policy.groups import make_groups, merge, split_groups
from icdsel.policy.loop import Epoch, make_network, train_policy
from icdsel.records import QueryGroup
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings, with_values
from icdsel.settings.tables import TrainSettings
from icdsel.stages.generate import generate, rl_data_inputs, unscored
from icdsel.stages.infer import queries_to_answer
from icdsel.stages.session import Session
from icdsel.stages.train import network_to_start_from, run_inputs
from icdsel.store.metadata import environment, read_metadata
from icdsel.vlm.engine import Request

RECORDED = "recorded"
PROBED = "probe"
PROBE_SECONDS = 2.0
"""A probe takes on more and more work until it has lasted so long."""

# What of a run decides how long a step of its training takes, beside the RL data.
_NETWORK = ("recipe", "batch_size", "num_layers", "hidden_dim", "num_heads", "tower", "gate")
_METADATA_FILES = {"scoring": "generated_data/*.meta.json", "answering": "infer/*/*.meta.json"}
_RUNS = f"model_cpk/*/{METADATA_FILE}"
# What RL data may differ in and still take as long.
_ANY = {"proposals.queries", "proposals.query_split", "data.seed", "data.metric", "init"}


@dataclass(frozen=True)
class Rate:
    """How much of a kind of work is done a second, and how that is known: `RECORDED` or `PROBED`."""

    per_second: float
    measured: str


class Rates:
    """Rates of the kinds of work.

    `scoring` counts queries, `warm`, `rce` and `grpo` queries trained on, `answering` images shown (each prompt's
    demonstrations and query). Trained is on `rl_data_files`, by default on the RL data of the settings.
    """

    def __init__(self, session: Session, rl_data_files: Sequence[Path] = ()) -> None:
        self.session = session
        self._rl_data_files = rl_data_files
        self._known: dict[str, Rate] = {}

    def of(self, kind: str, settings: Settings) -> Rate:
        """The rate of a kind of work under `settings`."""
        needed = self._needed(kind, settings)
        key = f"{kind} {sorted(needed.items(), key=str)}"
        if key not in self._known:
            self._known[key] = self._recorded(kind, needed) or Rate(self._probe(kind, settings), PROBED)
        return self._known[key]

    def _needed(self, kind: str, settings: Settings) -> Mapping[str, Any]:
        """What a recorded identity must say for its rate to hold here."""
        if kind == "scoring":
            inputs = rl_data_inputs(settings, self.session)
            return {name: value for name, value in inputs.items() if name not in _ANY}
        if kind == "answering":
            shared = ("dataset", "model", "dtype")
            return identity(settings, "vlm") | {name: self.session.identity[name] for name in shared}
        files = self._rl_data_files or [path for path in (rl_data_path(settings),) if path.is_file()]
        inputs = run_inputs(settings, self.session, files)
        return {name: inputs[name] for name in ("encoder", "rl_data", *(f"train.{size}" for size in _NETWORK))}

    def _recorded(self, kind: str, needed: Mapping[str, Any]) -> Rate | None:
        """By all the work of this kind that was done here, under settings that take as long."""
        here = environment(str(self.session.vlm.device))
        count = seconds = 0.0
        for path in self.session.settings.dataset_dir.glob(_METADATA_FILES.get(kind, _RUNS)):
            try:
                side = read_metadata(path)
            except RunError:  # damaged: whoever needs what it describes will say so
                continue
            there = side.get("environment", {})
            same_machine = all(there.get(name) == here[name] for name in ("machine", "cpus", "device"))
            if same_machine and all(side["identity"].get(name) == value for name, value in needed.items()):
                spent = side.get("work", {}).get(kind, {})
                count, seconds = count + spent.get("count", 0), seconds + spent.get("seconds", 0)
        return Rate(count / seconds, RECORDED) if count and seconds else None

    def _probe(self, kind: str, settings: Settings) -> float:
        note(f"No {kind} of this kind was recorded on this machine: a short probe tells how long it takes")
        if kind == "scoring":
            return self._scored[0]
        return self._answering() if kind == "answering" else self._training(kind, settings)

    @cached_property
    def _scored(self) -> tuple[float, list[QueryGroup]]:
        """Queries scored a second, and what was scored, which is kept nowhere else."""
        settings = with_values(self.session.settings, {"proposals": {"query_split": "train"}})
        groups: list[QueryGroup] = []

        def score(count: int) -> float:
            asked = with_values(settings, {"proposals": {"queries": count}})
            with TemporaryDirectory() as folder:
                path = Path(folder) / "probe.jsonl"
                generate(asked, path, session=self.session.under(asked))
                groups[:] = read_rl_data(path).groups
                return float(read_metadata(metadata_path(path))["work"]["scoring"]["seconds"])

        return _per_second(score, 2, min(settings.proposals.queries or 2, len(self.session.train))), groups

    def _answering(self) -> float:
        """Images shown a second, in prompts with the first training examples."""
        train, queries = self.session.train, queries_to_answer(self.session)
        shots = min(max(self.session.settings.infer.shots), len(train) - 1)

        def answer(count: int) -> float:
            shown = [tuple(train[(i + k) % len(train)] for k in range(shots)) for i in range(0, 7 * count, 7)]
            started = time.monotonic()
            self.session.vlm.answer([Request(own, query) for own, query in zip(shown, queries, strict=False)])
            return time.monotonic() - started

        return (shots + 1) * _per_second(answer, 4, len(queries))

    def _training(self, phase: str, settings: Settings) -> float:
        """Queries trained on a second, with a new network, on the RL data or on what a probe scored."""
        files = list(self._rl_data_files)
        if not files and not unscored(self.session.under(settings), overwrite=True):
            files = [rl_data_path(settings)]
        groups = merge([read_rl_data(path).groups for path in files]) if files else self._scored[1]
        part, held_out = split_groups(groups)
        table = self.session.embeddings.to(self.session.vlm.device)
        train, validation = (
            make_groups(own, self.session.train.row, settings.reward).to(table.device) for own in (part, held_out)
        )
        asked = settings.train.model_dump() | {"grpo_epochs": int(phase == "grpo"), "rce_epochs": int(phase != "grpo")}
        usual = settings.usual()["train"]
        assert isinstance(usual, TrainSettings)
        network = network_to_start_from(settings.train, usual) or make_network(settings.train, table.shape[1], 0)
        network = network.to(table.device)

        def work(count: int) -> float:
            rows = torch.arange(count, device=table.device) % len(train)
            ends: list[float] = []

            def keep(_: Epoch) -> None:
                ends.append(time.monotonic())

            started = time.monotonic()
            train_policy(
                network,
                table,
                train[rows],
                validation[: max(1, count // 4)],  # as many for each as in a real epoch
                TrainSettings(**asked),
                seed=0,
                on_epoch=keep,
                on_step=lambda _: None,
            )
            return ends[-1] - started

        return _per_second(work, 8 * settings.train.batch_size, 4096)


def _per_second(work: Callable[[int], float], least: int, most: int) -> float:
    """Doubles the amount of `work`, which tells its seconds, until it lasts long enough; the last rate."""
    count = least
    while (seconds := work(count)) < PROBE_SECONDS and count < most:
        count = min(2 * count, most)
    return count / max(seconds, 1e-9)

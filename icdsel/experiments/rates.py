"""Measures how fast this machine works: from the metadata of earlier results, or else by a short probe."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from icdsel.artefacts.reference_scores import REFERENCES
from icdsel.artefacts.rl_data import merge, metadata_path, read_rl_data, rl_data_path
from icdsel.artefacts.run_folder import METADATA_FILE
from icdsel.console import note
from icdsel.errors import RunError
from icdsel.policy.groups import make_groups, split_groups
from icdsel.policy.loop import Epoch, train_policy
from icdsel.policy.references import scores_references
from icdsel.records import QueryGroup
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings, with_values
from icdsel.settings.tables import TrainSettings
from icdsel.stages.generate import generate, unscored
from icdsel.stages.infer import queries_to_answer
from icdsel.stages.policy_check import candidates_for
from icdsel.stages.rl_data_inputs import decided_inputs
from icdsel.stages.session import Session
from icdsel.stages.train import run_inputs
from icdsel.stages.training.initial_policy import initial_policy, new_policy
from icdsel.store.metadata import Inputs, environment, read_metadata
from icdsel.vlm.devices import resolve_device
from icdsel.vlm.engine import Request

RECORDED = "recorded"
PROBED = "probe"
PROBE_SECONDS = 2.0
"""The amount of work in a probe is doubled until it takes this long."""
VLM_WORK = {"scoring", "answering"}
"""The kinds of work that query the VLM."""

# The training settings that decide how long a step takes, together with the RL data.
_NETWORK = ("recipe", "batch_size", "num_layers", "hidden_dim", "num_heads", "tower", "gate")
_METADATA_FILES = {"scoring": "generated_data/*.meta.json", "answering": "infer/*/*.meta.json"}
_RUNS = f"model_cpk/*/{METADATA_FILE}"
# The inputs of RL data that do not change how long a query takes.
_MACHINE = ("machine", "cpus", "device", "threads")  # parts of the environment that decide a rate
_ANY = {"proposals.queries", "proposals.query_split", "data.seed", "data.metric", "init"}


@dataclass(frozen=True)
class Rate:
    """Amount of work per second, and how it was measured: `RECORDED` or `PROBED`."""

    per_second: float
    measured: str


class Rates:
    """The rate of each kind of work.

    The unit of `scoring` is a query; of `warm`, `rce` and `grpo` a training query in one epoch; of `answering` an image
    in a prompt (each prompt shows those of its demonstrations and of its query).

    Args:
        session: What the work would use.
        rl_data_files: The training data. [the RL data of the settings]
    """

    def __init__(self, session: Session, rl_data_files: Sequence[Path] = ()) -> None:
        self.session = session
        self._rl_data_files = rl_data_files
        self._known: dict[str, Rate] = {}
        self._probed: dict[bool, tuple[float, list[QueryGroup]]] = {}

    def of(self, kind: str, settings: Settings) -> Rate:
        """The rate of a kind of work with these settings."""
        needed = self._needed(kind, settings)
        key = f"{kind} {sorted(needed.items(), key=str)}"
        if key not in self._known:
            self._known[key] = self._recorded(kind, needed) or Rate(self._probe(kind, settings), PROBED)
        return self._known[key]

    def _needed(self, kind: str, settings: Settings) -> Mapping[str, Any]:
        """The inputs that a recorded result must have for its rate to apply."""
        if kind == "scoring":
            _, inputs = self._decided(settings)
            wanted = {name: value for name, value in inputs.items() if name not in _ANY}
            return {REFERENCES: None} | wanted  # data that have references have no entry
        if kind == "answering":
            shared = ("dataset", "model", "dtype")
            return identity(settings, "vlm") | {name: self.session.identity[name] for name in shared}
        files = self._rl_data_files or [path for path in (rl_data_path(settings),) if path.is_file()]
        inputs = run_inputs(settings, self.session, files)
        return {name: inputs[name] for name in ("encoder", "rl_data", *(f"train.{size}" for size in _NETWORK))}

    def _decided(self, settings: Settings) -> tuple[Settings, Inputs]:
        return decided_inputs(settings, self.session, rl_data_path(settings), overwrite=True)

    def _recorded(self, kind: str, needed: Mapping[str, Any]) -> Rate | None:
        """The mean rate of all work of this kind on this machine with the needed inputs."""
        device = self.session.vlm_device if kind in VLM_WORK else str(self._train_device)
        here = environment(device, torch.get_num_threads())
        count = seconds = 0.0
        for path in self.session.settings.dataset_dir.glob(_METADATA_FILES.get(kind, _RUNS)):
            try:
                metadata = read_metadata(path)
            except RunError:  # damaged, which is reported by the commands that need the result
                continue
            spent = metadata.work.get(kind)
            same_machine = all(metadata.environment.get(name) == here[name] for name in _MACHINE)
            if spent and same_machine and all(metadata.inputs.get(name) == value for name, value in needed.items()):
                count, seconds = count + spent.count, seconds + spent.seconds
        return Rate(count / seconds, RECORDED) if count and seconds else None

    @property
    def _train_device(self) -> torch.device:
        return resolve_device(self.session.settings.train.device, "--train-device")

    def _probe(self, kind: str, settings: Settings) -> float:
        note(f"No {kind} like this has been recorded on this machine: measuring it in a short probe")
        if kind == "scoring":
            return self._scored(self._decided(settings)[0].proposals.references == "labels")[0]
        return self._answering() if kind == "answering" else self._training(kind, settings)

    def _scored(self, references: bool) -> tuple[float, list[QueryGroup]]:
        """Queries scored per second, their references too or not, and the scored queries, kept in memory only."""
        if references not in self._probed:
            self._probed[references] = self._score("labels" if references else "auto")
        return self._probed[references]

    def _score(self, references: str) -> tuple[float, list[QueryGroup]]:
        changed = {"query_split": "train", "references": references}
        settings = with_values(self.session.settings, {"proposals": changed})
        groups: list[QueryGroup] = []

        def score(count: int) -> float:
            probe = with_values(settings, {"proposals": {"queries": count}})
            with TemporaryDirectory() as folder:
                path = Path(folder) / "probe.jsonl"
                generate(probe, path, session=self.session.under(probe).without_answers())
                groups[:] = read_rl_data(path).groups
                return read_metadata(metadata_path(path)).work["scoring"].seconds

        return _per_second(score, 2, min(settings.proposals.queries, len(self.session.train))), groups

    def _answering(self) -> float:
        """Images per second, in prompts with the first training examples."""
        train, queries = self.session.train, queries_to_answer(self.session)
        shots = min(self.session.settings.most_shots, len(train) - 1)

        def answer(count: int) -> float:
            icds = [tuple(train[(i + k) % len(train)] for k in range(shots)) for i in range(0, 7 * count, 7)]
            started = time.monotonic()
            self.session.vlm.answer([Request(shown, query) for shown, query in zip(icds, queries, strict=False)])
            return time.monotonic() - started

        return (shots + 1) * _per_second(answer, 4, len(queries))

    def _training(self, phase: str, settings: Settings) -> float:
        """Queries per second of a training with a new network, on the RL data or on queries scored in a probe."""
        files = list(self._rl_data_files)
        if not files and not unscored(self.session.under(settings), overwrite=True):
            files = [rl_data_path(settings)]
        if files:
            groups = merge([read_rl_data(path).groups for path in files])
        else:
            groups = self._scored(scores_references(settings))[1]
        part, held_out = split_groups(groups)
        network = initial_policy(settings.train) or new_policy(
            self.session, settings.train, 0, bool(settings.train.stop)
        )
        table = candidates_for(network, self.session, settings.train.init).to(self._train_device)
        network = network.to(table.device)
        train, validation = (
            make_groups(split, self.session.train.row, settings.reward).to(table.device) for split in (part, held_out)
        )
        epochs = {"grpo_epochs": int(phase == "grpo"), "rce_epochs": int(phase != "grpo")}

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
                validation[: max(1, count // 4)],  # the ratio of a real epoch
                TrainSettings(**settings.train.model_dump() | epochs),
                seed=0,
                on_epoch=keep,
                on_step=lambda _: None,
            )
            return ends[-1] - started

        return _per_second(work, 8 * settings.train.batch_size, 4096)


def _per_second(work: Callable[[int], float], minimum: int, maximum: int) -> float:
    """Rate of `work`, which takes an amount and returns seconds. The amount is doubled until it takes long enough."""
    count = minimum
    while (seconds := work(count)) < PROBE_SECONDS and count < maximum:
        count = min(2 * count, maximum)
    return count / max(seconds, 1e-9)

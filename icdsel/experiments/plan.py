"""The steps of a comparison of experiments that are still to do, and how long they should take (`--dry-run`)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from icdsel.artefacts.rl_data import rl_data_path
from icdsel.artefacts.run_folder import METADATA_FILE, Run, runs_dir
from icdsel.experiments.rates import PROBED, RECORDED, VLM_WORK, Rates
from icdsel.experiments.variants import Experiment, answering, baselines
from icdsel.policy.groups import split_groups
from icdsel.policy.proposals import most_pointers
from icdsel.policy.references import references_needed_by
from icdsel.records import Shots
from icdsel.selection import POLICY, Selector, selectors_named
from icdsel.settings.loading import Settings
from icdsel.settings.tables import RewardSettings
from icdsel.stages.generate import unscored
from icdsel.stages.infer import queries_to_answer
from icdsel.stages.prediction_row import unanswered
from icdsel.stages.session import Session
from icdsel.stages.train import run_inputs, run_slot
from icdsel.stages.training.online import most_calls
from icdsel.stages.training.training_data import read_groups, require_files
from icdsel.stages.training.warm_start import warm_groups
from icdsel.store.metadata import read_metadata
from icdsel.store.slot import State


@dataclass(frozen=True)
class Step:
    """A result of a comparison.

    Attributes:
        what: The result, for the table.
        settings: The settings that it is created with.
        todo: What is still to be done for it, for the table; empty if it exists.
        work: Amount of each kind of work (`rates.Rates`); empty if it takes next to no time.
    """

    what: str
    settings: Settings
    todo: str = ""
    work: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """How long a step should take, in seconds, and what the estimate is based on."""

    step: Step
    seconds: float
    measured: str


def dry_run(
    settings: Settings,
    experiments: Sequence[Experiment],
    overwrite: bool = False,
    rl_data_files: Sequence[Path] = (),
    session: Session | None = None,
) -> list[Estimate]:
    """All steps of a comparison with their estimated times. The first one opens what the others need.

    Writes nothing but caches: the embeddings, and the bundled world if the settings name it and it is missing. The
    VLM is loaded only if a step needs it. The arguments are those of `icdsel.experiments.run.run_experiments`.

    Raises:
        UserError: Results of other settings exist and `overwrite` is False; the dataset, the model or a file is
            missing.
    """
    require_all_files(experiments, rl_data_files)
    started = time.monotonic()
    session = session or Session(settings)
    steps = missing(experiments, settings, session, overwrite, rl_data_files)
    needs_vlm = any(VLM_WORK & step.work.keys() for step in steps)
    if any(step.work for step in steps):
        _ = session.embeddings
    if needs_vlm:
        _ = session.vlm
    seconds = time.monotonic() - started
    opening = Step("model and data" if needs_vlm else "data", settings, "open them")
    rates = Rates(session, rl_data_files)
    return [Estimate(opening, seconds, "just now"), *(_estimate(step, rates) for step in steps)]


def _estimate(step: Step, rates: Rates) -> Estimate:
    found = {kind: rates.of(kind, step.settings) for kind in step.work}
    seconds = sum(count / found[kind].per_second for kind, count in step.work.items())
    measured = {rate.measured for rate in found.values()}
    return Estimate(step, seconds, " and ".join(name for name in (RECORDED, PROBED) if name in measured))


def require_all_files(experiments: Sequence[Experiment], rl_data_files: Sequence[Path]) -> None:
    """Rejects experiments with a missing input file.

    Raises:
        RlDataError: It names the first missing file.
    """
    for experiment in experiments:
        require_files(experiment.settings, rl_data_files)


def rl_data_settings(experiments: Sequence[Experiment]) -> Settings:
    """The settings of the RL data that all experiments share: if one of them needs scored references, theirs."""
    every = [experiment.settings for experiment in experiments]
    return next((settings for settings in every if references_needed_by(settings)), every[0])


def missing(
    experiments: Sequence[Experiment],
    settings: Settings,
    session: Session,
    overwrite: bool = False,
    rl_data_files: Sequence[Path] = (),
) -> list[Step]:
    """All steps of a comparison, with what is still to be done for them. Changes no file.

    Raises:
        UserError: Results of other settings exist and `overwrite` is False.
    """
    return list(_steps(experiments, settings, session, overwrite, rl_data_files))


def _steps(
    experiments: Sequence[Experiment],
    settings: Settings,
    session: Session,
    overwrite: bool,
    rl_data_files: Sequence[Path],
) -> Iterator[Step]:
    trained_on = session.under(rl_data_settings(experiments))
    queries = 0 if rl_data_files else unscored(trained_on, overwrite)
    path = rl_data_path(trained_on.settings)
    # RL data that are incomplete, or still in shards, cannot be read yet.
    files = rl_data_files or ([path] if path.is_file() and not queries else [])
    pointers = queries * most_pointers(settings.proposals)
    todo = f"score {queries:,} queries, up to {pointers:,} pointers" if queries else ""
    yield Step("RL data", trained_on.settings, todo, {"scoring": queries} if queries else {})
    count = len(queries_to_answer(session))
    for baseline in baselines(settings):
        for selector in selectors_named(baseline.infer.selector, baseline.data.pool_size):
            shots = unanswered(session.under(baseline), count, selector, None, overwrite)
            seed = selector.seed(baseline)
            what = selector.name if seed is None else f"{selector.name}, seed {seed}"
            yield _answers(f"{what}: answers", baseline, selector, shots, count)
    sizes: dict[RewardSettings, int] = {}  # how many queries are trained on, without the held-out ones
    for experiment in experiments:
        step = _training(experiment, session, files, overwrite, sizes)
        yield step
        answer_settings = answering(experiment)
        shots = list(answer_settings.infer.shots)
        if not step.todo:
            policy = Run(runs_dir(settings) / experiment.run).checkpoint
            shots = unanswered(session.under(answer_settings), count, POLICY, policy, overwrite)
        yield _answers(f"{experiment}: answers", answer_settings, POLICY, shots, count)


def _training(
    experiment: Experiment,
    session: Session,
    files: Sequence[Path],
    overwrite: bool,
    sizes: dict[RewardSettings, int],
) -> Step:
    settings, what = experiment.settings, f"{experiment}: training"
    run = Run(runs_dir(settings) / experiment.run)
    inputs = run_inputs(settings, session, files)
    if not files and (run.folder / METADATA_FILE).exists():
        # The RL data are generated again before the training. The same settings give the same data.
        inputs["rl_data"] = read_metadata(run.folder / METADATA_FILE).inputs.get("rl_data")
    if run_slot(run, inputs).peek(overwrite) is State.COMPLETE:
        return Step(what, settings)
    if not files:
        wanted = min(settings.proposals.queries, len(session.train))
        queries = max(1, int(0.8 * wanted))
    elif (queries := sizes.get(settings.reward, 0)) == 0:
        queries = sizes[settings.reward] = len(split_groups(read_groups(files, session, settings.reward))[0])
    warm = len(warm_groups(session, settings.train.warm_start)) if settings.train.warm_start else 0
    epochs = {
        "warm": (settings.train.warm_epochs if warm else 0, warm),
        "rce": (settings.train.rce_epochs, queries),
        "grpo": (settings.train.grpo_epochs, queries),
    }
    work = {phase: number * size for phase, (number, size) in epochs.items() if number}
    parts = [f"{number} {phase} epochs of {size:,} queries" for phase, (number, size) in epochs.items() if number]
    if settings.train.online:
        calls = most_calls(settings.train, queries)
        work["scoring"] = -(-calls // most_pointers(settings.proposals))  # the rate is in queries per second
        parts.append(f"score up to {calls:,} pointers")
    return Step(what, settings, "train " + ", ".join(parts), work)


def _answers(what: str, settings: Settings, selector: Selector, shots: Sequence[Shots], count: int) -> Step:
    if not shots:
        return Step(what, settings)
    if not selector.needs_vlm:
        return Step(what, settings, f"copy {count * len(shots):,} answers")
    todo = f"answer {count * len(shots):,} prompts at {', '.join(map(str, shots))} shots"
    most = settings.max_shots
    images = sum((most if isinstance(number, str) else number) + 1 for number in shots)
    return Step(what, settings, todo, {"answering": count * images})

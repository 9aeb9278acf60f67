"""What a comparison of experiments would still have to do, and how long that should take (`--dry-run`)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from icdsel.artefacts.rl_data import rl_data_path
from icdsel.artefacts.run_folder import METADATA_FILE, Run, runs_dir
from icdsel.experiments.rates import PROBED, RECORDED, Rates
from icdsel.experiments.variants import Experiment, answering, baselines
from icdsel.policy.groups import split_groups
from icdsel.settings.loading import Settings
from icdsel.settings.tables import ProposalSettings, RewardSettings, Selector
from icdsel.stages.generate import unscored
from icdsel.stages.infer import queries_to_answer
from icdsel.stages.online import most_calls
from icdsel.stages.prediction_row import unanswered
from icdsel.stages.session import Session, open_session
from icdsel.stages.train import run_inputs, run_slot
from icdsel.stages.training_data import read_groups, require_files
from icdsel.stages.warm_start import warm_groups
from icdsel.store.metadata import read_metadata
from icdsel.store.slot import State


@dataclass(frozen=True)
class Step:
    """One thing to make.

    Attributes:
        what: What it is.
        todo: What is to be done for it, in words; empty where it stands.
        work: How much of which kind of work (`rates.Rates`); empty where that takes no time to speak of.
        settings: Those that it is made under.
    """

    what: str
    settings: Settings
    todo: str = ""
    work: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """How long a step should take, in seconds, and how that was measured."""

    step: Step
    seconds: float
    measured: str


def dry_run(
    settings: Settings,
    experiments: Sequence[Experiment],
    overwrite: bool = False,
    rl_data_files: Sequence[Path] = (),
) -> list[Estimate]:
    """All steps of a comparison with the time that each should take; opening model and data is the first.

    Writes nothing but caches: the embeddings, and the bundled world where it is asked for and missing. The arguments
    are those of `icdsel.experiments.run.run_experiments`.

    Raises:
        UserError: something exists under other settings and `overwrite` is False; dataset, model or a file are
            missing.
    """
    require_all_files(experiments, rl_data_files)
    started = time.monotonic()
    session = open_session(settings)
    opening = Step("model and data", settings, "open them")
    seconds = time.monotonic() - started
    rates = Rates(session, rl_data_files)
    steps = missing(experiments, settings, session, overwrite, rl_data_files)
    return [Estimate(opening, seconds, "just now"), *(_estimate(step, rates) for step in steps)]


def _estimate(step: Step, rates: Rates) -> Estimate:
    found = {kind: rates.of(kind, step.settings) for kind in step.work}
    seconds = sum(count / found[kind].per_second for kind, count in step.work.items())
    measured = {rate.measured for rate in found.values()}
    return Estimate(step, seconds, " and ".join(name for name in (RECORDED, PROBED) if name in measured))


def require_all_files(experiments: Sequence[Experiment], rl_data_files: Sequence[Path]) -> None:
    """Refuses to begin where a file that some training is to read is not there.

    Raises:
        RlDataError: it names the first such file.
    """
    for experiment in experiments:
        require_files(experiment.settings, rl_data_files)


def missing(
    experiments: Sequence[Experiment],
    settings: Settings,
    session: Session,
    overwrite: bool = False,
    rl_data_files: Sequence[Path] = (),
) -> list[Step]:
    """Every step of a comparison, with what is still to be done for it; touches nothing.

    Raises:
        UserError: something exists under other settings and `overwrite` is False.
    """
    return list(_steps(experiments, settings, session, overwrite, rl_data_files))


def _steps(
    experiments: Sequence[Experiment],
    settings: Settings,
    session: Session,
    overwrite: bool,
    rl_data_files: Sequence[Path],
) -> Iterator[Step]:
    trained_on = session.under(experiments[0].settings)
    queries = 0 if rl_data_files else unscored(trained_on, overwrite)
    path = rl_data_path(trained_on.settings)
    # What is to be scored, or put together from shards, cannot be read yet.
    files = rl_data_files or ([path] if path.is_file() and not queries else [])
    pointers = queries * most_pointers(settings.proposals)
    told = f"score {queries:,} queries, up to {pointers:,} pointers" if queries else ""
    yield Step("RL data", experiments[0].settings, told, {"scoring": queries} if queries else {})
    count = len(queries_to_answer(session))
    for asked in baselines(settings):
        for selector in asked.infer.selector:
            shots = unanswered(session.under(asked), count, selector, None, overwrite)
            seed = f", seed {asked.infer.random_seed}" if selector == "random" else ""
            yield _answers(f"{selector}{seed}: answers", asked, selector, shots, count)
    sizes: dict[RewardSettings, int] = {}  # of the part of the RL data that is trained on
    for experiment in experiments:
        step = _training(experiment, session, files, overwrite, sizes)
        yield step
        asked = answering(experiment)
        shots = list(asked.infer.shots)
        if not step.todo:
            policy = Run(runs_dir(settings) / experiment.run).checkpoint
            shots = unanswered(session.under(asked), count, "policy", policy, overwrite)
        yield _answers(f"{experiment}: answers", asked, "policy", shots, count)


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
        # What RL data it had is only known when they are made again; from the same settings they are the same.
        inputs["rl_data"] = read_metadata(run.folder / METADATA_FILE).inputs.get("rl_data")
    if run_slot(run, inputs).peek(overwrite) is State.COMPLETE:
        return Step(what, settings)
    if not files:
        wanted = min(settings.proposals.queries or 0, len(session.train))
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
    told = [f"{number} {phase} epochs of {size:,} queries" for phase, (number, size) in epochs.items() if number]
    if settings.train.online:
        calls = most_calls(settings.train, queries)
        work["scoring"] = -(-calls // most_pointers(settings.proposals))  # scoring is counted in queries
        told.append(f"score up to {calls:,} pointers")
    return Step(what, settings, "train " + ", ".join(told), work)


def _answers(what: str, settings: Settings, selector: Selector, shots: Sequence[int], count: int) -> Step:
    if not shots:
        return Step(what, settings)
    told = f"answer {count * len(shots):,} prompts at {', '.join(map(str, shots))} shots"
    if selector == "majority":  # copies, asks nobody
        return Step(what, settings, f"copy {count * len(shots):,} answers")
    return Step(what, settings, told, {"answering": count * sum(number + 1 for number in shots)})


def most_pointers(proposals: ProposalSettings) -> int:
    """How many pointers a query gets at most: those proposed twice count once."""
    return proposals.beam + proposals.samples * len(proposals.temperatures) + proposals.retrieval + proposals.random

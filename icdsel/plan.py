"""What a comparison of experiments would still have to do, and how long that should take (`--dry-run`)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from icdsel.generation import unscored
from icdsel.groups import split_groups
from icdsel.infer import queries_to_answer, unanswered
from icdsel.online import most_calls
from icdsel.provenance import read_side_file
from icdsel.rates import PROBED, RECORDED, Rates
from icdsel.rl_data import rl_data_path
from icdsel.settings import ProposalSettings, RewardSettings, Selector, Settings
from icdsel.sources import Sources, open_sources
from icdsel.train import SIDE_FILE, Run, is_trained, read_groups, require_files, run_identity, runs_dir
from icdsel.variants import Experiment, answering, baselines
from icdsel.warm_start import warm_groups


@dataclass(frozen=True)
class Step:
    """One thing to make.

    Attributes:
        what: What it is.
        todo: What is to be done for it, in words; empty where it stands.
        work: How much of which kind of work (`icdsel.rates.Rates`); empty where that takes no time to speak of.
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
    are those of `icdsel.experiments.run_experiments`.

    Raises:
        UserError: something exists under other settings and `overwrite` is False; dataset, model or a file are
            missing.
    """
    require_all_files(experiments, rl_data_files)
    started = time.monotonic()
    sources = open_sources(settings)
    opening = Step("model and data", settings, "open them")
    seconds = time.monotonic() - started
    rates = Rates(sources, rl_data_files)
    steps = missing(experiments, settings, sources, overwrite, rl_data_files)
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
    sources: Sources,
    overwrite: bool = False,
    rl_data_files: Sequence[Path] = (),
) -> list[Step]:
    """Every step of a comparison, with what is still to be done for it; touches nothing.

    Raises:
        UserError: something exists under other settings and `overwrite` is False.
    """
    return list(_steps(experiments, settings, sources, overwrite, rl_data_files))


def _steps(
    experiments: Sequence[Experiment],
    settings: Settings,
    sources: Sources,
    overwrite: bool,
    rl_data_files: Sequence[Path],
) -> Iterator[Step]:
    trained_on = sources.under(experiments[0].settings)
    queries = 0 if rl_data_files else unscored(trained_on, overwrite)
    path = rl_data_path(trained_on.settings)
    # What is to be scored, or put together from shards, cannot be read yet.
    files = rl_data_files or ([path] if path.is_file() and not queries else [])
    pointers = queries * most_pointers(settings.proposals)
    told = f"score {queries:,} queries, up to {pointers:,} pointers" if queries else ""
    yield Step("RL data", experiments[0].settings, told, {"scoring": queries} if queries else {})
    count = len(queries_to_answer(sources))
    for asked in baselines(settings):
        for selector in asked.infer.selector:
            shots = unanswered(sources.under(asked), count, selector, None, overwrite)
            seed = f", seed {asked.infer.random_seed}" if selector == "random" else ""
            yield _answers(f"{selector}{seed}: answers", asked, selector, shots, count)
    sizes: dict[RewardSettings, int] = {}  # of the part of the RL data that is trained on
    for experiment in experiments:
        step = _training(experiment, sources, files, overwrite, sizes)
        yield step
        asked = answering(experiment)
        shots = list(asked.infer.shots)
        if not step.todo:
            policy = Run(runs_dir(settings) / experiment.run).checkpoint
            shots = unanswered(sources.under(asked), count, "policy", policy, overwrite)
        yield _answers(f"{experiment}: answers", asked, "policy", shots, count)


def _training(
    experiment: Experiment,
    sources: Sources,
    files: Sequence[Path],
    overwrite: bool,
    sizes: dict[RewardSettings, int],
) -> Step:
    settings, what = experiment.settings, f"{experiment}: training"
    run = Run(runs_dir(settings) / experiment.run)
    made_of = run_identity(settings, sources, files)
    if not files and (run.folder / SIDE_FILE).exists():
        # What RL data it had is only known when they are made again; from the same settings they are the same.
        made_of["rl_data"] = read_side_file(run.folder / SIDE_FILE)["identity"].get("rl_data")
    if is_trained(run, made_of, overwrite):
        return Step(what, settings)
    if not files:
        wanted = min(settings.proposals.queries or 0, len(sources.train))
        queries = max(1, int(0.8 * wanted))
    elif (queries := sizes.get(settings.reward, 0)) == 0:
        queries = sizes[settings.reward] = len(split_groups(read_groups(files, sources, settings.reward))[0])
    warm = len(warm_groups(sources, settings.train.warm_start)) if settings.train.warm_start else 0
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

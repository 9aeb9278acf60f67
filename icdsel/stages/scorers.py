"""How answers are scored under the settings."""

from dataclasses import replace

from icdsel.errors import SettingsError
from icdsel.settings.loading import Settings
from icdsel.tasks.scoring import GENERATE, Scorer


def scorer_of(settings: Settings) -> Scorer:
    """The scorer of the settings, which is not prepared for a split yet (`Session.scorer`).

    Raises:
        SettingsError: Options are to be ranked, and the task has none; or a name is unknown.
    """
    data = settings.data
    scorer = Scorer.named(data.task, data.metric, settings.vlm.clean_answers)
    if data.choice_by != GENERATE and not scorer.task.has_options:
        raise SettingsError(
            f"--choice-by {data.choice_by}: the task {data.task} has no options to rank; use --task choice or classify"
        )
    return replace(scorer, task=data.configured_task, choice_by=data.choice_by)

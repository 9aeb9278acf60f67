"""Which settings need the probabilities of reference answers. Does not import torch.

To score them costs the VLM a part of every call, and most rewards never read them. What reads them says so itself:
`RewardMode.needs_references`, `Task.needs_references` and `Metric.needs_references`.
"""

from icdsel.errors import SettingsError
from icdsel.policy.rewards import REWARD_MODES
from icdsel.settings.loading import Settings
from icdsel.tasks.base import TASKS
from icdsel.tasks.scoring import GENERATE


def references_needed_by(settings: Settings) -> str | None:
    """What reads the probabilities of reference answers under these settings, for messages; None if nothing does.

    Raises:
        SettingsError: There is no such reward mode, task or metric, or they do not fit together.
    """
    task = TASKS.named(settings.data.task)
    if REWARD_MODES.named(settings.reward.mode).graded == "margin" and not task.has_options:
        raise SettingsError(
            f"--reward-mode {settings.reward.mode}: the task {task.name} has no options, so there is no margin. Use "
            "--task choice or classify, or another reward"
        )
    named = {
        f"the reward mode {settings.reward.mode}": REWARD_MODES.named(settings.reward.mode).needs_references,
        f"the task {task.name}": task.needs_references,
        f"the metric {settings.data.metric}": task.metrics.named(settings.data.metric).needs_references,
        f"--choice-by {settings.data.choice_by}": settings.data.choice_by != GENERATE,
    }
    return " and ".join(name for name, needs in named.items() if needs) or None


def scores_references(settings: Settings, exist: bool | None = None) -> bool:
    """Whether the VLM is asked for the probabilities of reference answers: `--references`.

    Args:
        settings: All settings.
        exist: Whether the result that `auto` may reuse or resume has them; None if there is none.

    Raises:
        SettingsError: They are needed, and `--references none` forbids them.
    """
    wanted, reader = settings.proposals.references, references_needed_by(settings)
    if wanted == "none" and reader:
        raise SettingsError(
            f"--references none scores no reference answers, but {reader} needs their probabilities: leave it out, or "
            "choose another --reward-mode, --task or --metric"
        )
    return wanted == "labels" or (wanted == "auto" and bool(reader or exist))

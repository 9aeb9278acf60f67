"""icdsel learns which in-context demonstrations to show a vision-language model.

The names below are the public API (docs/api.md). Each is loaded when it is first used: `import icdsel` itself loads
neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from icdsel.artefacts.checkpoint import load_policy
    from icdsel.artefacts.checkpoint_conversion import convert_checkpoint
    from icdsel.artefacts.checkpoint_writing import save_policy
    from icdsel.artefacts.rl_data import read_rl_data
    from icdsel.choosing.choice import Choice
    from icdsel.choosing.embedding_selector import EmbeddingSelector
    from icdsel.choosing.selector import Selector
    from icdsel.policy.config import PointerConfig
    from icdsel.policy.losses import grpo_loss, rce_loss
    from icdsel.policy.network import PointerNetwork
    from icdsel.policy.rewards import normalize_rewards, pointer_reward
    from icdsel.tasks.vqa_accuracy import vqa_accuracy

__version__ = "0.1.0"
__all__ = [
    "Choice",
    "EmbeddingSelector",
    "PointerConfig",
    "PointerNetwork",
    "Selector",
    "__version__",
    "convert_checkpoint",
    "grpo_loss",
    "load_policy",
    "normalize_rewards",
    "pointer_reward",
    "rce_loss",
    "read_rl_data",
    "save_policy",
    "vqa_accuracy",
]

_MODULES = {
    "Choice": "icdsel.choosing.choice",
    "EmbeddingSelector": "icdsel.choosing.embedding_selector",
    "PointerConfig": "icdsel.policy.config",
    "PointerNetwork": "icdsel.policy.network",
    "Selector": "icdsel.choosing.selector",
    "convert_checkpoint": "icdsel.artefacts.checkpoint_conversion",
    "grpo_loss": "icdsel.policy.losses",
    "load_policy": "icdsel.artefacts.checkpoint",
    "normalize_rewards": "icdsel.policy.rewards",
    "pointer_reward": "icdsel.policy.rewards",
    "rce_loss": "icdsel.policy.losses",
    "read_rl_data": "icdsel.artefacts.rl_data",
    "save_policy": "icdsel.artefacts.checkpoint_writing",
    "vqa_accuracy": "icdsel.tasks.vqa_accuracy",
}


if not TYPE_CHECKING:  # for type checkers, the imports above are all that the package has

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module 'icdsel' has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The policy that a training starts from, `--init`."""

from dataclasses import replace

from icdsel.artefacts.checkpoint import load_policy
from icdsel.errors import CheckpointError
from icdsel.policy.network import PointerNetwork
from icdsel.settings.names import flag
from icdsel.settings.tables import TrainSettings

_SIZES = ("hidden_dim", "num_layers", "num_heads", "tower", "gate")


def initial_policy(settings: TrainSettings) -> PointerNetwork | None:
    """The network of `--init`, with the sizes of the checkpoint and the dropout of the settings; None without one.

    Raises:
        CheckpointError: The checkpoint cannot be read, or its sizes differ from those that were given.
    """
    if settings.init is None:
        return None
    start = load_policy(settings.init)
    given = [name for name in _SIZES if name in settings.model_fields_set]
    if other := [name for name in given if getattr(settings, name) != getattr(start.config, name)]:
        sizes = ", ".join(f"{name} {getattr(start.config, name)}" for name in other)
        flags = ", ".join(flag(name, TrainSettings.model_fields[name]) for name in other)
        raise CheckpointError(f"--init {settings.init} is a network with {sizes}, other sizes are set: omit {flags}")
    network = PointerNetwork(replace(start.config, dropout=settings.dropout, attn_dropout=settings.attn_dropout))
    network.load_state_dict(start.state_dict())
    return network

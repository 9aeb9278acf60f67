"""The policy that a training starts from: that of `--init`, or a new one."""

from dataclasses import replace
from typing import Any

from icdsel.artefacts.checkpoint import load_policy
from icdsel.errors import CheckpointError, SettingsError
from icdsel.policy.loop import make_network
from icdsel.policy.network import PointerNetwork
from icdsel.settings.names import flag
from icdsel.settings.presets import SEPARATE
from icdsel.settings.tables import TrainSettings
from icdsel.stages.session import Session

_SIZES = ("hidden_dim", "num_layers", "num_heads", "tower", "gate", "update", "query_tower", "question_gate")


def initial_policy(settings: TrainSettings) -> PointerNetwork | None:
    """The network of `--init`, with the sizes of the checkpoint and the dropout of the settings; None without one.

    Raises:
        CheckpointError: The checkpoint cannot be read, its sizes differ from those that were given, or it may stop and
            the settings forbid that.
    """
    if settings.init is None:
        return None
    start = load_policy(settings.init)
    own = {name: getattr(start.config, name) for name in _SIZES} | {"candidate_answers": start.config.answer_dim > 0}
    given = [name for name in own if name in settings.model_fields_set]
    if other := [name for name in given if getattr(settings, name) != own[name]]:
        sizes = ", ".join(f"{name} {own[name]}" for name in other)
        flags = ", ".join(flag(name, TrainSettings.model_fields[name]) for name in other)
        raise CheckpointError(f"--init {settings.init} is a network with {sizes}, other sizes are set: omit {flags}")
    if settings.stop is False and start.config.stop:
        raise CheckpointError(f"--init {settings.init} is a policy that may stop: omit --no-stop")
    return _rebuilt(start, dropout=settings.dropout, attn_dropout=settings.attn_dropout)


def new_policy(session: Session, settings: TrainSettings, seed: int, stop: bool) -> PointerNetwork:
    """A network with new weights, for the session's embeddings and, if the settings say so, for answers."""
    if settings.question_gate and session.settings.data.embed != SEPARATE:
        raise SettingsError(f"--question-gate needs image and question apart: add --embed {SEPARATE}")
    width = session.embeddings.shape[1]
    return make_network(settings, width, seed, session.candidates(settings.candidate_answers).shape[1] - width, stop)


def with_stop(network: PointerNetwork) -> PointerNetwork:
    """The same policy, which may stop: a new STOP is as probable as going on."""
    return network if network.config.stop else _rebuilt(network, stop=True)


def _rebuilt(network: PointerNetwork, **changes: Any) -> PointerNetwork:
    rebuilt = PointerNetwork(replace(network.config, **changes))
    rebuilt.load_state_dict(rebuilt.state_dict() | network.state_dict())
    return rebuilt

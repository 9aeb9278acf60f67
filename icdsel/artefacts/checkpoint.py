"""Reads checkpoints of the policy: icdsel's own and all formats of Lever-Plus. No code in them is run.

A checkpoint of icdsel is a file of `torch.save` with plain data: Lever-Plus's five keys (`epoch`, counted from 0,
`phase`, `model_state_dict`, `kl_beta`, `metrics`), and `config` with the sizes of the network, which Lever-Plus leaves
to be inferred from the shapes of the weights. `checkpoint_writing` writes them, `checkpoint_conversion` converts them.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from icdsel.artefacts import lever_plus_checkpoints as lever_plus
from icdsel.artefacts.policy_safetensors import SUFFIX, read_policy_file
from icdsel.errors import CheckpointError
from icdsel.policy.config import PointerConfig
from icdsel.policy.loop import PHASES
from icdsel.policy.network import PointerNetwork
from icdsel.store.reading import why_no_file
from icdsel.store.torch_files import StoredTensor, TorchFile, describe, open_torch_file

__all__ = ["Checkpoint", "foreign_objects", "foreign_warning", "load_checkpoint", "load_policy"]

_T = TypeVar("_T")
_MAX_LAYERS, _MAX_WIDTH, _MAX_EPOCH, _MAX_LIST = 256, 2**20, 10**6, 1000
_EXAMPLE = "Name a checkpoint, such as rce_epoch5.pt in the run's folder."


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint; what a format lacks is None or empty.

    Attributes:
        network: The policy, on the CPU, in float32 and eval mode.
        epoch: The epoch after which it was written, counted from 0.
        phase: One of `PHASES`.
        trained_for: Data, model, encoder and prompt that it was trained for (`icdsel.stages.policy_check`).
        metrics: What was measured in that epoch.
        kl_beta: The weight of the KL term after that epoch.
        optimizer: The optimizer's state_dict.
        extra: Anything else that was saved with it.
    """

    network: PointerNetwork
    epoch: int | None
    phase: str | None
    trained_for: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    kl_beta: float | None = None
    optimizer: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def load_policy(path: str | Path) -> PointerNetwork:
    """Returns the policy of a checkpoint, in eval mode on the CPU; see `load_checkpoint` for formats and errors."""
    return load_checkpoint(path).network


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint: icdsel's, Lever-Plus's ``.pt`` and ``_v2format.ckpt``, or Lightning's ``.ckpt``.

    Also reads the ``policy.safetensors`` of a bundle.

    Loading is strict: the file must hold every weight of the network in its shape, and no others. Without `config`, the
    sizes are inferred from the shapes, with one attention head; a file without a gate yields a network without
    one, as it was trained.

    Raises:
        CheckpointError: The file is missing or damaged, is not a checkpoint, or does not fit the network.
    """
    path = Path(path)
    if path.suffix == SUFFIX:
        return _load_safetensors(path)
    with _opened(path) as file:
        content = file.content
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds {describe(content)}, not a checkpoint's dict. {_EXAMPLE}")
        try:
            weights = _read_weights(file, lever_plus.selector_weights(content))
            config = _config(content.get("config"), weights)
            if not config.gate:
                weights = lever_plus.drop_neutral_gate(weights)
            network = _network(config, weights)
            metrics, optimizer, extra = (
                _of_type(dict, file.read_tensors(content.get(name)))
                for name in ("metrics", "optimizer_state_dict", "extra")
            )
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be used: {error}. Expected a checkpoint of icdsel or Lever-Plus (rce_epochN.pt, "
                f"grpo_epochN.pt, *{lever_plus.V2_SUFFIX} or a Lightning .ckpt with a pointer selector)."
            ) from error
    return replace(
        _described(network, content),
        metrics=metrics or {},
        kl_beta=_of_type(float, content.get("kl_beta")),
        optimizer=optimizer,
        extra=extra or {},
    )


def _load_safetensors(path: Path) -> Checkpoint:
    _require_content(path)
    try:
        weights, header = read_policy_file(path)
        return _described(_network(_config(header.get("config"), weights), weights), header)
    except (ValueError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be used: {error}. Expected the {path.name} of a bundle, as icdsel export writes it."
        ) from error


def _described(network: PointerNetwork, content: Mapping[str, Any]) -> Checkpoint:
    """A network with what a file says of its training."""
    epoch, phase = content.get("epoch"), content.get("phase")
    return Checkpoint(
        network=network,
        epoch=epoch if type(epoch) is int and 0 <= epoch <= _MAX_EPOCH else None,
        phase=phase if phase in PHASES else None,
        trained_for=_plain_dict(content.get("trained_for")),
    )


def foreign_objects(path: Path) -> list[str]:
    """Returns the names of classes and functions in a checkpoint that are not tensors or plain data, sorted.

    Raises:
        CheckpointError: As for `load_checkpoint`, except that the network is not checked.
    """
    if path.suffix == SUFFIX:  # a format without objects
        return []
    with _opened(path) as file:
        return file.foreign


def foreign_warning(path: Path) -> str | None:
    """What to warn a user of who reads somebody's checkpoint: objects that are not plain data; None without any.

    Raises:
        CheckpointError: As for `foreign_objects`.
    """
    if not (names := foreign_objects(path)):
        return None
    return (
        f"{path} holds objects that are not plain data: {_listed(set(names))}. icdsel runs none of them, other "
        "programs might: do not open it with them unless you know who made it"
    )


@contextmanager
def _opened(path: Path) -> Iterator[TorchFile]:
    _require_content(path)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_torch_file(path))
        except ValueError as error:
            raise CheckpointError(
                f"{path} is not a checkpoint, or damaged ({error}). Expected a file written by icdsel train or "
                "Lever-Plus (torch 1.6 or later); if it is one, copy or train it again."
            ) from error
        yield file


def _require_content(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} {why_no_file(path)}. {_EXAMPLE}")
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty: it was not written completely. Copy or train it again.")


def _of_type(kind: type[_T], value: object) -> _T | None:
    return value if isinstance(value, kind) else None


def _plain_dict(value: object) -> dict[str, Any]:
    """A flat dict of plain values and lists of texts, as `save_policy` writes it; else an empty one."""

    def is_plain(item: object) -> bool:
        texts = isinstance(item, list) and len(item) <= _MAX_LIST and all(type(text) is str for text in item)
        return texts or item is None or type(item) in (str, int, float, bool)

    if not isinstance(value, dict) or len(value) > _MAX_LIST:
        return {}
    return {name: item for name, item in value.items() if type(name) is str and is_plain(item)}


def _read_weights(file: TorchFile, found: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in float32, all finite."""
    for name, value in found.items():
        if not isinstance(value, StoredTensor) or not value.dtype.is_floating_point:
            raise ValueError(f"{name[:80]} is not a tensor of floats")
    if sum(value.nbytes for value in found.values()) > file.size:  # many weights may share one storage
        raise ValueError("its weights are larger than the file")
    weights = {}
    for name, value in found.items():
        try:
            weights[name] = file.read_tensor(value).float()
        except ValueError as error:
            raise ValueError(f"{name[:80]} is damaged ({error})") from error
        if not weights[name].isfinite().all():
            raise ValueError(f"{name[:80]} has NaN or infinite values: its training went wrong")
    return weights


def _config(stored: object, weights: Mapping[str, Tensor]) -> PointerConfig:
    """The sizes of the network: those in the file, else inferred from the weights."""
    if stored is None:
        config = lever_plus.infer_config(weights)
    else:
        if not isinstance(stored, Mapping):
            raise ValueError(f"its config is {describe(stored)}, not a dict")
        types = {each.name: each.type for each in fields(PointerConfig)}
        if unknown := {str(name) for name in stored} - types.keys():
            raise ValueError(f"its config has {_listed(unknown)}, which a newer version of icdsel must have written")
        for name, value in stored.items():
            if type(value) is not types[name] and not (types[name] is float and type(value) is int):
                raise ValueError(f"{name} in its config is {describe(value)}")
        config = PointerConfig(**stored)
    if config.num_layers > _MAX_LAYERS or max(_widths(config)) > _MAX_WIDTH:
        raise ValueError(f"its network has more than {_MAX_LAYERS} layers or is wider than {_MAX_WIDTH:,}")
    return config


def _widths(config: PointerConfig) -> tuple[int, ...]:
    return config.d_model, config.hidden_dim, config.tower, config.answer_dim, config.query_tower, config.question_gate


def _network(config: PointerConfig, weights: Mapping[str, Tensor]) -> PointerNetwork:
    """The network with exactly these weights."""
    with torch.device("meta"):  # no memory or random numbers for weights that are replaced anyway
        network = PointerNetwork(config)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    problems = []
    if missing := expected.keys() - weights.keys():
        problems.append(f"it lacks {_listed(missing)}")
    if unexpected := weights.keys() - expected.keys():
        problems.append(f"it has {_listed(unexpected)}, which this network does not")
    for name in expected.keys() & weights.keys():
        if tuple(weights[name].shape) != expected[name]:
            problems.append(f"{name} is {list(weights[name].shape)}, not {list(expected[name])}")
    if (
        not problems
        and config.shared_projection
        and not weights["query_proj.weight"].equal(weights["cand_proj.weight"])
    ):
        problems.append("query_proj and cand_proj differ, which a network with a shared encoder shares")
    if problems:
        raise ValueError("; ".join(sorted(problems)))
    network.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
    return network.eval()


def _listed(names: set[str]) -> str:
    """The first few names, for a message."""
    shown = [name[:80] for name in sorted(names)]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")

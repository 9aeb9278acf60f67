"""Checkpoints of the policy: one format written, every format of Lever-Plus read, none of their code run.

A checkpoint is a `torch.save` of plain data: Lever-Plus's five keys (`epoch`, counted from 0, `phase`,
`model_state_dict`, `kl_beta`, `metrics`) and beside them `config`, the sizes of the network, which Lever-Plus
left to be guessed from the shapes. The same content always gives the same bytes, whatever the file is called.
"""

import io
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from icdsel.artefacts import lever_plus_checkpoints as lever_plus
from icdsel.errors import CheckpointError
from icdsel.policy.loop import PHASES
from icdsel.policy.network import PointerConfig, PointerNetwork
from icdsel.store.conversion import refuse_own_conversion, write_conversion
from icdsel.store.files import write_bytes
from icdsel.store.reading import why_no_file
from icdsel.store.torch_files import StoredTensor, TorchFile, described, open_torch_file

__all__ = [
    "Checkpoint",
    "convert",
    "foreign_objects",
    "is_converted",
    "load_checkpoint",
    "load_policy",
    "require_width",
    "save_policy",
]


_T = TypeVar("_T")
_V2_SUFFIX = "_v2format.ckpt"
_MOST_LAYERS, _WIDEST, _LAST_EPOCH = 256, 2**20, 10**6  # what is believed


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds; what a format lacks is None or empty.

    Attributes:
        network: The policy, on the CPU, in float32 and eval mode.
        epoch: The epoch it was written after, counted from 0.
        phase: One of `PHASES`.
        metrics: What was measured in that epoch.
        kl_beta: The weight of the KL term after that epoch.
        optimizer: The optimizer's state_dict.
        extra: Whatever else was saved with it.
    """

    network: PointerNetwork
    epoch: int | None
    phase: str | None
    metrics: dict[str, Any]
    kl_beta: float | None
    optimizer: dict[str, Any] | None
    extra: dict[str, Any]


def save_policy(
    path: str | Path,
    network: PointerNetwork,
    *,
    epoch: int,
    phase: str,
    metrics: Mapping[str, Any],
    kl_beta: float,
    optimizer: torch.optim.Optimizer | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint: beside, synced, renamed, so that a reader never sees a part of it.

    Args:
        path: The file; folders on the way are made.
        network: The policy. Its weights are written as they are, in training mode or not.
        epoch: The epoch that was just trained, counted from 0.
        phase: One of `PHASES`.
        metrics: What was measured: plain values and containers.
        kl_beta: The weight of the KL term now.
        optimizer: For checkpoints that training resumes from.
        extra: Anything else to find again as `Checkpoint.extra`: plain values, containers, tensors.

    Raises:
        TypeError: `metrics` or `extra` holds something that is neither plain nor a tensor.
    """
    content: dict[str, Any] = {
        "epoch": epoch,
        "phase": phase,
        "model_state_dict": network.state_dict(),
        "kl_beta": float(kl_beta),
        "metrics": metrics,
        "config": asdict(network.config),
    }
    if optimizer is not None:
        content["optimizer_state_dict"] = optimizer.state_dict()
    if extra is not None:
        content["extra"] = extra
    write_bytes(Path(path), _serialise(content))


def load_policy(path: str | Path) -> PointerNetwork:
    """The policy of a checkpoint, of ours or of any format of Lever-Plus (see `load_checkpoint`)."""
    return load_checkpoint(path).network


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint: ours, Lever-Plus's ``.pt`` and ``_v2format.ckpt``, or Lightning's ``.ckpt``.

    No code in the file is run (`icdsel.store.torch_files`). Loading is strict: every weight of the network must be
    there in its shape, and no other. A file without `config` gives the network that its shapes tell, with one head;
    without a gate in it there is none in the network, which is how such a checkpoint was trained.

    Args:
        path: The file.

    Returns:
        The policy in eval mode on the CPU, and what else the file tells.

    Raises:
        CheckpointError: The file is missing, damaged, no checkpoint, or not of a network known here.
    """
    path = Path(path)
    with _opened(path) as file:
        content = file.content
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{path} holds {described(content)}, not a checkpoint's dict. Name a checkpoint, such as "
                "rce_epoch5.pt in the run's folder."
            )
        try:
            weights = _weights(file, lever_plus.selector_weights(content))
            config = _config(content.get("config"), weights)
            if not config.gate:
                weights = lever_plus.drop_neutral_gate(weights)
            network = _network(config, weights)
            told = {name: file.whole(content.get(name)) for name in ("metrics", "optimizer_state_dict", "extra")}
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be used: {error}. Expected a checkpoint of icdsel or Lever-Plus (rce_epochN.pt, "
                f"grpo_epochN.pt, *{_V2_SUFFIX} or a Lightning .ckpt with a pointer selector)."
            ) from error
    epoch, phase = content.get("epoch"), content.get("phase")
    return Checkpoint(
        network=network,
        epoch=epoch if type(epoch) is int and 0 <= epoch <= _LAST_EPOCH else None,
        phase=phase if phase in PHASES else None,
        metrics=_of(dict, told["metrics"]) or {},
        kl_beta=_of(float, content.get("kl_beta")),
        optimizer=_of(dict, told["optimizer_state_dict"]),
        extra=_of(dict, told["extra"]) or {},
    )


def require_width(network: PointerNetwork, width: int, path: Path | None) -> None:
    """Refuses a policy that was trained on embeddings of another width than `width`.

    Raises:
        CheckpointError: It names both.
    """
    if network.config.d_model != width:
        raise CheckpointError(
            f"{path} takes embeddings of width {network.config.d_model}, this encoder's have {width}: use a checkpoint "
            f"trained with the same --dataset, --model and --encoder"
        )


def convert(
    path: str | Path, output: str | Path | None = None, legacy_names: bool = False, overwrite: bool = False
) -> Path:
    """Writes a checkpoint in the format that Lever-Plus infers from, ``<name>_v2format.ckpt``.

    `load_policy` makes the same network of the result. What Lever-Plus has no place for is kept in the file.

    Args:
        path: Any checkpoint that `load_checkpoint` reads.
        output: The file to write; None writes beside `path`.
        legacy_names: Parameter names of November 2025 (`cross_attn.*`, `attn_norm.*`), which Lever-Plus's own
            converter writes and its later classes do not find; for versions of it that old.
        overwrite: Move aside what else stands in its place.

    Returns:
        The file written.

    Raises:
        CheckpointError: As for `load_checkpoint` and `write_conversion`; or `path` is converted already and `output` is
            None, or the two are one file; or the policy has more layers than the legacy names can tell.

    Warns:
        ConversionWarning: The policy has parts that Lever-Plus would ignore.
    """
    path = Path(path)
    checkpoint = load_checkpoint(path)
    if output is None and path.name.endswith(_V2_SUFFIX):
        raise CheckpointError(f"{path} is converted already; name an output file to write it anew.")
    target = _v2_path(path) if output is None else Path(output)
    refuse_own_conversion(target, path, CheckpointError)
    network = checkpoint.network
    try:
        content = lever_plus.v2_format(network.state_dict(), network.config, checkpoint.epoch or 0, legacy_names)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be converted: {error}.") from error
    if parts := lever_plus.unknown_parts(network.config):
        warnings.warn(
            f"Lever-Plus has no place for this policy's {' and '.join(parts)}. {target.name} keeps them and "
            "icdsel uses them, but Lever-Plus would ignore them and choose other ICDs.",
            lever_plus.ConversionWarning,
            stacklevel=2,
        )
    write_conversion(target, _serialise(content), path, CheckpointError, overwrite)
    return target


def is_converted(path: Path) -> bool:
    """Whether the conversion beside a checkpoint holds its policy, under whatever names.

    The content tells, not the times of the files: clocks jump, and copies have new times.

    Raises:
        CheckpointError: As for `load_checkpoint`.
    """
    network = load_policy(path)
    try:
        converted = load_policy(_v2_path(path))
    except CheckpointError:
        return False
    weights, others = network.state_dict(), converted.state_dict()
    same = weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
    return same and network.config == converted.config


def _v2_path(path: Path) -> Path:
    return path.with_name(path.stem + _V2_SUFFIX)


@contextmanager
def _opened(path: Path) -> Iterator[TorchFile]:
    """A file of `torch.save`; no code of it is run."""
    if not path.is_file():
        raise CheckpointError(
            f"{path} {why_no_file(path)}. Name a checkpoint, such as rce_epoch5.pt in the run's folder."
        )
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty: it was not written to its end. Copy or train it again.")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_torch_file(path))
        except ValueError as error:
            raise CheckpointError(
                f"{path} is no checkpoint, or a damaged one ({error}). Expected a file written by icdsel train or "
                "Lever-Plus (torch 1.6 or later); if it is one, copy or train it again."
            ) from error
        yield file


def foreign_objects(path: Path) -> list[str]:
    """The names of what a checkpoint asks for beside tensors and plain values; nothing of it is imported.

    Raises:
        CheckpointError: As for `load_checkpoint`.
    """
    with _opened(path) as file:
        return file.foreign


def _of(kind: type[_T], value: object) -> _T | None:
    """What a file tells, if it is of the kind that belongs there."""
    return value if isinstance(value, kind) else None


def _weights(file: TorchFile, found: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights, read and in float32."""
    for name, value in found.items():
        if not isinstance(value, StoredTensor) or not value.dtype.is_floating_point:
            raise ValueError(f"{name[:80]} is no tensor of floats")
    if sum(value.nbytes for value in found.values()) > file.size:  # what overlaps could be of any size
        raise ValueError("its weights are larger than the file")
    weights = {}
    for name, value in found.items():
        try:
            weights[name] = file.tensor(value).float()
        except ValueError as error:
            raise ValueError(f"{name[:80]} is damaged ({error})") from error
        if not weights[name].isfinite().all():
            raise ValueError(f"{name[:80]} holds NaN or infinite values: its training went wrong")
    return weights


def _config(told: object, weights: Mapping[str, Tensor]) -> PointerConfig:
    """The sizes of the network, as the file tells them or its weights show them."""
    if told is None:
        config = lever_plus.infer_config(weights)
    else:
        if not isinstance(told, Mapping):
            raise ValueError(f"its config is {described(told)}, not a dict")
        kinds = {field.name: field.type for field in fields(PointerConfig)}
        if unknown := {str(name) for name in told} - kinds.keys():
            raise ValueError(f"its config has {_names(unknown)}, which a newer version of icdsel must have written")
        for name, value in told.items():
            if type(value) is not kinds[name] and not (kinds[name] is float and type(value) is int):
                raise ValueError(f"{name} in its config is {described(value)}")
        config = PointerConfig(**told)
    if config.num_layers > _MOST_LAYERS or max(config.d_model, config.hidden_dim, config.tower) > _WIDEST:
        raise ValueError(f"its network has more than {_MOST_LAYERS} layers or is wider than {_WIDEST:,}")
    return config


def _network(config: PointerConfig, weights: Mapping[str, Tensor]) -> PointerNetwork:
    """The network with these weights and no others."""
    with torch.device("meta"):  # no memory, and no draw from the random generator, for weights thrown away
        network = PointerNetwork(config)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    problems = []
    if missing := expected.keys() - weights.keys():
        problems.append(f"it lacks {_names(missing)}")
    if unexpected := weights.keys() - expected.keys():
        problems.append(f"it has {_names(unexpected)}, which this network does not")
    for name in expected.keys() & weights.keys():
        if tuple(weights[name].shape) != expected[name]:
            problems.append(f"{name} is {list(weights[name].shape)}, not {list(expected[name])}")
    if not problems and config.tower and not weights["query_proj.weight"].equal(weights["cand_proj.weight"]):
        problems.append("query_proj and cand_proj differ, though a tower means that they are one")
    if problems:
        raise ValueError("; ".join(sorted(problems)))
    network.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
    return network.eval()


def _names(names: set[str]) -> str:
    """Names for a message, the first few of many."""
    listed = [name[:80] for name in sorted(names)]
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _serialise(content: Mapping[str, Any]) -> bytes:
    """The bytes of `torch.save`, the same for the same content.

    A path given to `torch.save` would end up inside of the archive; a buffer does not.
    """
    buffer = io.BytesIO()
    torch.save(_plain(content), buffer)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    """A copy in built-in types alone.

    pickle writes an object that it meets again as a reference, so equal content would differ by what happens
    to be shared: containers and tensors are made anew, and strings are interned, so that equal ones are one.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return sys.intern(str.__str__(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().clone()
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    raise TypeError(f"a checkpoint holds plain values and tensors, no {type(value).__name__}")

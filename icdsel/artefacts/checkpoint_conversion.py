"""Converts checkpoints to the format that Lever-Plus runs inference from, ``<name>_v2format.ckpt``."""

import warnings
from pathlib import Path

import torch

from icdsel.artefacts import lever_plus_checkpoints as lever_plus
from icdsel.artefacts.checkpoint import foreign_warning, load_checkpoint, load_policy
from icdsel.artefacts.checkpoint_writing import torch_bytes
from icdsel.errors import CheckpointError
from icdsel.store.conversion import refuse_own_conversion, write_conversion

__all__ = ["ConversionWarning", "convert_checkpoint", "is_converted"]


class ConversionWarning(UserWarning):
    """A checkpoint to convert has parts that Lever-Plus would ignore, or objects that are not converted."""


def convert_checkpoint(
    path: str | Path, output: str | Path | None = None, legacy_names: bool = False, overwrite: bool = False
) -> Path:
    """Converts a checkpoint; `load_policy` reads the same network from the result.

    Args:
        path: Any checkpoint that `load_checkpoint` reads.
        output: The file to write; None writes beside `path`.
        legacy_names: Use the parameter names of November 2025 (`cross_attn.*`, `attn_norm.*`). Lever-Plus's own
            converter writes them, but its later classes do not find them; only for versions of it that old.
        overwrite: Rename another file at `output` to a backup.

    Returns:
        The file written.

    Raises:
        CheckpointError: As for `load_checkpoint`; `path` is already converted and `output` is None, or both are the
            same file; `output` exists with other content; or the policy has more layers than the legacy names allow.

    Warns:
        ConversionWarning: The policy has parts that Lever-Plus would ignore; or `path` holds objects other than plain
            data, which are not converted.
    """
    path = Path(path)
    checkpoint = load_checkpoint(path)
    if output is None and path.name.endswith(lever_plus.V2_SUFFIX):
        raise CheckpointError(f"{path} is already converted; name an output file to convert it again.")
    target = _v2_path(path) if output is None else Path(output)
    refuse_own_conversion(target, path, CheckpointError)
    network = checkpoint.network
    try:
        content = lever_plus.v2_format(network.state_dict(), network.config, checkpoint.epoch or 0, legacy_names)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be converted: {error}.") from error
    if checkpoint.trained_for:
        content["trained_for"] = checkpoint.trained_for
    if parts := lever_plus.unknown_parts(network.config):
        warnings.warn(
            f"Lever-Plus does not know this policy's {' and '.join(parts)}. {target.name} keeps them and icdsel uses "
            "them, but Lever-Plus would ignore them and choose other ICDs.",
            ConversionWarning,
            stacklevel=2,
        )
    if foreign := foreign_warning(path):
        warnings.warn(f"{foreign}. {target.name} has none of them.", ConversionWarning, stacklevel=2)
    write_conversion(target, torch_bytes(content), path, CheckpointError, overwrite)
    return target


def is_converted(path: Path) -> bool:
    """Whether a conversion beside a checkpoint exists and holds the same policy, under any names.

    The contents are compared, not the times of the files: clocks jump, and copies get new times.

    Raises:
        CheckpointError: `path` cannot be read, as for `load_checkpoint`.
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
    return path.with_name(path.stem + lever_plus.V2_SUFFIX)

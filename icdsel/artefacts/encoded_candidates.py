"""The encoded candidates of a policy, kept in a file for as long as neither the policy nor the embeddings change."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from icdsel.console import note, warn
from icdsel.errors import of_system
from icdsel.policy.encoding import EncodedCandidates
from icdsel.policy.network import PointerNetwork
from icdsel.store.files import write_through
from icdsel.store.reading import in_utf_8
from icdsel.store.slot import find_or_make

__all__ = ["encoded_candidates"]

LEAST = 2**15
"""Candidates from which a file is written: fewer are encoded in less than a second."""

FILES = 2
"""Files that are kept, those used last: with the default network, one for 443,757 candidates has 1.4 GB."""

_FORMAT = 1  # raised when a file of the same name would have another content


def encoded_candidates(network: PointerNetwork, table: Tensor, cache_dir: Path) -> EncodedCandidates:
    """Encodes candidates, or maps a file into memory that another call, maybe of another process, has written.

    Args:
        network: The policy, on the CPU.
        table: What it sees of the candidates (N, d), or (N, d + a) if it sees answers.
        cache_dir: The folder of the file, `candidates_<fingerprint>.safetensors`.
    """
    weights = network.state_dict()
    if len(table) < LEAST or not weights:  # without weights, as in `CosineNetwork`, encoding is as fast as reading
        return network.encode_candidates(table)
    digest = hashlib.sha256(f"{_FORMAT} {network.config} {tuple(table.shape)} {table.dtype} {list(weights)}".encode())
    for tensor in (*weights.values(), table):
        digest.update(tensor.contiguous().numpy())
    path = cache_dir / f"candidates_{digest.hexdigest()[:16]}.safetensors"
    config, count = network.config, len(table)
    heads = (config.num_layers, config.num_heads, count, config.hidden_dim // config.num_heads)
    shapes = ((count, config.hidden_dim), heads, heads)

    def make() -> EncodedCandidates:
        made = network.encode_candidates(table)
        try:
            write_through(path, lambda file: _write(file, made))
            _remove_old(cache_dir)
        except OSError as error:  # a full disk, a read-only folder: only later commands need the file
            warn(f"the encoded candidates were not kept, later commands encode them again: {of_system(error)}")
            return made
        return _read(path, shapes) or made  # mapped, so that the system can drop them when memory is short

    return find_or_make(path, "the encoded candidates", lambda: _read(path, shapes), make)


def _read(path: Path, shapes: Sequence[tuple[int, ...]]) -> EncodedCandidates | None:
    """Maps a file of tensors of these shapes into memory; None, with a note, if it is damaged."""
    if not path.is_file():
        return None
    try:
        with in_utf_8(path) as name, safe_open(name, framework="pt") as file:
            found = EncodedCandidates(*(file.get_tensor(field) for field in EncodedCandidates._fields))
        if any(x.shape != shape or x.dtype != torch.float32 for x, shape in zip(found, shapes, strict=True)):
            raise ValueError(f"it holds {[(x.dtype, *x.shape) for x in found]}")
    except (OSError, SafetensorError, ValueError) as error:
        note(f"{path} is damaged ({str(error)[:200] or type(error).__name__}): encoding the candidates again")
        return None
    with suppress(OSError):  # of a file that somebody else owns
        os.utime(path)  # the time of its last use
    return found


def _write(file: IO[bytes], encoded: EncodedCandidates) -> None:
    """Writes a file of safetensors: the length of a header, the header, the numbers.

    The library's `save` needs all of it in memory a second time; its `save_file` writes to a file of a name of its own,
    which a kill would leave behind.
    """
    header, at = {}, 0
    for name, tensor in encoded._asdict().items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in encoded:
        tensor.contiguous().numpy().tofile(file)


def _remove_old(folder: Path) -> None:
    """Removes all but the `FILES` files that were used last."""
    files = sorted(folder.glob("candidates_*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[FILES:]:
        path.unlink(missing_ok=True)

"""Reads files of `torch.save` without running anything in them, and without trusting what they declare.

Such a file is a zip archive: a pickle of containers, plain values and descriptions of tensors, and one record of bytes
for each storage. `icdsel.store.pickle_reading` reads the pickle and explains why `torch.load` is not used. A tensor
is read on demand, and only if its storage holds all of it.
"""

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icdsel.store.pickle_reading import Foreign, read_pickle
from icdsel.store.reading import open_file

__all__ = ["Foreign", "StoredTensor", "TorchFile", "describe", "open_torch_file"]

_MAX_RECORDS = 2**16
_MAX_PICKLE = 4 * 2**20  # bytes; that of a model of several billion parameters has less than one MiB
_MAX_DEPTH = 64  # of nested containers, and dimensions of a tensor
_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class _Storage:
    record: str
    dtype: torch.dtype


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet, as its file describes it; offset and stride count elements."""

    record: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor once it is read."""
        return math.prod(self.shape) * self.dtype.itemsize


def describe(value: object) -> str:
    """What a value of a file is, for a message."""
    if isinstance(value, Foreign):
        return value.name[:80]
    return f"a {'Tensor' if isinstance(value, StoredTensor) else type(value).__name__}"


class TorchFile:
    """An open file of `torch.save`.

    Attributes:
        size: Bytes of the file.
        content: What it holds: plain containers and values, `StoredTensor` for tensors, `Foreign` for anything else.
        foreign: Names of the classes and functions in it other than those of tensors and plain containers.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive, self.size = archive, size
        self._storages: dict[str, bytearray] = {}
        pickle = _find_pickle(archive.infolist(), size)
        prefix = pickle.removesuffix("data.pkl")
        self._records = set(archive.namelist())
        if f"{prefix}byteorder" in self._records and archive.read(f"{prefix}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        known = dict.fromkeys(_DTYPES) | {
            "collections.OrderedDict": lambda *_: {},
            "torch._utils._rebuild_tensor": _tensor,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
        }
        self.content, foreign = read_pickle(archive.read(pickle), known, lambda key: _storage(prefix, key))
        self.foreign = sorted(foreign)

    def read_tensor(self, stored: StoredTensor) -> Tensor:
        """Reads one tensor.

        Raises:
            ValueError: The file lacks some or all of its values.
        """
        if stored.record not in self._records:
            raise ValueError(f"the storage {stored.record[:80]!a} is missing")
        if stored.record not in self._storages:
            try:
                self._storages[stored.record] = bytearray(self._archive.read(stored.record))
            except Exception as error:  # a damaged archive raises nearly anything
                raise ValueError(str(error)[:200] or "the file is truncated") from error
        content = self._storages[stored.record]
        available = len(content) // stored.dtype.itemsize
        last = stored.offset + sum((size - 1) * step for size, step in zip(stored.shape, stored.stride, strict=True))
        # With strides of 0, a tensor of any size fits a storage of one value.
        if not 0 < math.prod(stored.shape) <= available or last >= available:
            raise ValueError(f"the tensor at {stored.record[:80]!a} does not fit its storage")
        values = torch.frombuffer(content, dtype=stored.dtype, count=available)
        return values.as_strided(stored.shape, stored.stride, stored.offset).clone()

    def read_tensors(self, value: Any) -> Any:
        """Returns `value`, a part of `content`, with all tensors in it read.

        Raises:
            ValueError: A tensor is damaged, containers are nested too deeply, or the result would be larger than the
                file.
        """
        remaining = self.size

        def read(value: Any, depth: int) -> Any:
            nonlocal remaining
            if depth > _MAX_DEPTH:
                raise ValueError(f"its containers are nested more than {_MAX_DEPTH} deep")
            remaining -= value.nbytes if isinstance(value, StoredTensor) else 1
            if remaining < 0:  # the same tensor or container may occur many times
                raise ValueError("its content would be larger than the file")
            if isinstance(value, StoredTensor):
                return self.read_tensor(value)
            if isinstance(value, dict):
                return {key: read(item, depth + 1) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return type(value)([read(item, depth + 1) for item in value])
            return value

        return read(value, 0)


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """Opens a file of `torch.save` (torch 1.6 and later).

    Raises:
        ValueError: It is not such a file, or is damaged.
        OSError: It cannot be opened.
    """
    with open_file(path) as file:
        try:
            if file.read(4) != b"PK\x03\x04":  # torch would read it as a pickle, even before an archive
                raise ValueError("it is not an archive of torch.save: it does not begin like one")
            opened = TorchFile(zipfile.ZipFile(file), os.fstat(file.fileno()).st_size)
        except Exception as error:  # a damaged archive or pickle raises nearly anything
            raise ValueError(str(error)[:200] or type(error).__name__) from error
        yield opened


def _find_pickle(records: list[zipfile.ZipInfo], size: int) -> str:
    """The name of the archive's pickle, once its records are within the limits."""
    if len(records) > _MAX_RECORDS:
        raise ValueError(f"it has more than {_MAX_RECORDS:,} records")
    if any(
        record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size for record in records
    ):
        raise ValueError("its records are compressed, which torch never does")
    if sum(record.file_size for record in records) > size:
        raise ValueError("its records are larger than the file")
    if len({record.filename.lower() for record in records}) < len(records):  # torch ignores the case of names
        raise ValueError("two of its records have the same name")
    pickles = [record for record in records if record.filename.rsplit("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise ValueError("it is not an archive of torch.save: it has no data.pkl")
    if pickles[0].file_size > _MAX_PICKLE:
        raise ValueError(f"its data.pkl is larger than {_MAX_PICKLE:,} bytes")
    return pickles[0].filename


def _storage(prefix: str, key: object) -> _Storage | Foreign:
    """The storage of a persistent id of `torch.save`: ("storage", type, name, device, number of values)."""
    kind, name = key[1:3] if isinstance(key, tuple) else (None, None)
    if not isinstance(kind, Foreign) or not isinstance(name, str):
        raise ValueError("its pickle refers to something other than a storage")
    return _Storage(f"{prefix}data/{name}", _DTYPES[kind.name]) if kind.name in _DTYPES else kind


def _tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> StoredTensor | Foreign:
    """Stands in for the functions that build a tensor."""
    if isinstance(storage, Foreign):  # of a dtype that is not supported
        return storage
    if (
        not isinstance(storage, _Storage)
        or not isinstance(shape, tuple)
        or not isinstance(stride, tuple)
        or len(shape) != len(stride)
        or len(shape) > _MAX_DEPTH
        or not all(type(number) is int and 0 <= number < 2**63 for number in (offset, *shape, *stride))
    ):
        raise ValueError("its pickle describes an impossible tensor")
    assert isinstance(offset, int)
    return StoredTensor(storage.record, storage.dtype, offset, shape, stride)

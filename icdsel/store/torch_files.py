"""Files of `torch.save`, read without running anything in them or believing what they declare.

Such a file is a zip archive with a pickle, which tells of containers, values and tensors, and the tensors' bytes
beside it. Pickle's own reader calls what a file names, and allocates what it declares. Here `pickletools` takes the
pickle apart, and of what it asks for only plain containers, values and descriptions of tensors are made: nothing is
imported, nothing is called. A tensor is read when it is wanted, and only if its storage holds it.
"""

import math
import os
import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icdsel.store.reading import open_file

__all__ = ["Foreign", "StoredTensor", "TorchFile", "described", "open_torch_file"]

_LARGEST_PICKLE = 4 * 2**20  # bytes; that of a model of several billion parameters has less than one MiB
_DEEPEST = 64  # containers within one another
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_STORAGES = {f"torch.{name}": dtype for name, dtype in _DTYPES.items()}
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETER, _ORDERED_DICT = "torch._utils._rebuild_parameter", "collections.OrderedDict"
_KNOWN = {*_STORAGES, *_TENSORS, _PARAMETER, _ORDERED_DICT}


@dataclass(frozen=True)
class Foreign:
    """Stands for whatever a pickle makes that is no tensor, plain value or container: it can only be ignored."""

    name: str


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that still lies in its file, as the file describes it."""

    record: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values, were each stored once."""
        return math.prod(self.shape) * self.dtype.itemsize


def described(value: object) -> str:
    """What a value of a file is, in a few words."""
    if isinstance(value, Foreign):
        return value.name[:80]
    return f"a {'Tensor' if isinstance(value, StoredTensor) else type(value).__name__}"


class TorchFile:
    """An open file of `torch.save`.

    Attributes:
        size: Its bytes.
        content: What it holds: plain containers and values, `StoredTensor` for tensors, `Foreign` for anything else.
        foreign: The names of what it asks for beside tensors and plain containers.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive, self.size = archive, size
        self._storages: dict[str, bytearray] = {}
        records = archive.infolist()
        if any(r.compress_type != zipfile.ZIP_STORED or r.compress_size != r.file_size for r in records):
            raise ValueError("its records are compressed, which torch never does")
        if sum(record.file_size for record in records) > size:
            raise ValueError("its records are larger than the file")
        if len({record.filename.lower() for record in records}) < len(records):  # torch does not tell them apart
            raise ValueError("two of its records have one name")
        pickles = [record for record in records if record.filename.rsplit("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("no archive of torch.save (it has no data.pkl)")
        if pickles[0].file_size > _LARGEST_PICKLE:
            raise ValueError(f"its data.pkl has more than {_LARGEST_PICKLE:,} bytes")
        prefix = pickles[0].filename.removesuffix("data.pkl")
        self._names = {record.filename for record in records}
        if f"{prefix}byteorder" in self._names and archive.read(f"{prefix}byteorder") != b"little":
            raise ValueError("written on a big-endian machine")
        machine = _Machine(prefix)
        self.content: object = machine.run(archive.read(pickles[0]))
        self.foreign = sorted(machine.foreign)

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Reads a tensor.

        Raises:
            ValueError: The file lacks its values or some of them.
        """
        if stored.record not in self._names:
            raise ValueError(f"the storage {stored.record[:80]!a} is missing")
        if stored.record not in self._storages:
            try:
                self._storages[stored.record] = bytearray(self._archive.read(stored.record))
            except Exception as error:  # a damaged archive raises nearly anything
                raise ValueError(str(error)[:200] or "it is cut short") from error
        content = self._storages[stored.record]
        held = len(content) // stored.dtype.itemsize
        reach = stored.offset + sum((size - 1) * step for size, step in zip(stored.shape, stored.stride, strict=True))
        if not 0 < math.prod(stored.shape) <= held or reach >= held:  # a step of 0 would make much of little
            raise ValueError(f"the tensor at {stored.record[:80]!a} does not fit its storage")
        values = torch.frombuffer(content, dtype=stored.dtype, count=held)
        return values.as_strided(stored.shape, stored.stride, stored.offset).clone()

    def whole(self, value: Any) -> Any:
        """The same value with all its tensors read.

        Raises:
            ValueError: A tensor is damaged, all of them are larger than the file, or containers are too deep in one
                another.
        """
        left = self.size

        def read(value: Any, depth: int) -> Any:
            nonlocal left
            if depth > _DEEPEST:
                raise ValueError(f"its containers are more than {_DEEPEST} deep in one another")
            left -= value.nbytes if isinstance(value, StoredTensor) else 1
            if left < 0:
                raise ValueError("it holds more than its size allows")
            if isinstance(value, StoredTensor):
                return self.tensor(value)
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
        ValueError: It is no such file, or a damaged one.
        OSError: It cannot be opened.
    """
    with open_file(path) as file:
        try:
            if file.read(4) != b"PK\x03\x04":  # which torch would take for a pickle, whatever archive follows
                raise ValueError("no archive of torch.save (it does not begin as one)")
            opened = TorchFile(zipfile.ZipFile(file), os.fstat(file.fileno()).st_size)
        except Exception as error:  # a damaged archive or pickle raises nearly anything
            raise ValueError(str(error)[:200] or type(error).__name__) from error
        yield opened


@dataclass(frozen=True)
class _Storage:
    record: str
    dtype: torch.dtype


class _Machine:
    """Follows a pickle's steps, of which those that would call something make `Foreign` instead."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self.foreign: set[str] = set()

    def run(self, content: bytes) -> object:
        """What the pickle describes.

        Raises:
            Exception: Nearly anything, where it is damaged.
        """
        for opcode, argument, _ in pickletools.genops(content):
            self._step(opcode.name, argument)
        return self._stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(name[-1]))))
            case "TUPLE" | "LIST":
                stack.append((tuple if name == "TUPLE" else list)(self._since_mark()))
            case "DICT":
                items = self._since_mark()
                stack.append({})
                self._set(items)
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._extend(self._since_mark())
            case "SETITEM":
                self._set(self._pop(2))
            case "SETITEMS":
                self._set(self._since_mark())
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(self._global(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, called = self._pop(2)
                told = isinstance(module, str) and isinstance(called, str)
                stack.append(self._global(f"{module}.{called}") if told else _foreign())
            case "REDUCE":
                stack.append(self._called(*self._pop(2)))
            case "NEWOBJ":
                stack.append(_foreign(self._pop(2)[0]))
            case "NEWOBJ_EX":
                stack.append(_foreign(self._pop(3)[0]))
            case "INST":
                self._since_mark()
                stack.append(self._global(argument.replace(" ", ".", 1)))
            case "OBJ":
                stack.append(_foreign(*self._since_mark()[:1]))
            case "BUILD":
                self._pop(1)
            case "EMPTY_SET":
                stack.append(Foreign("builtins.set"))
            case "ADDITEMS":
                self._since_mark()
            case "FROZENSET":
                self._since_mark()
                stack.append(Foreign("builtins.frozenset"))
            case "BINPERSID":
                stack.append(self._storage(*self._pop(1)))
            case "POP_MARK":
                self._since_mark()
            case "POP":
                self._pop(1)
            case "DUP":
                stack.append(stack[-1])
            case _ if isinstance(argument, str | bytes | int | float) and not name.startswith(("EXT", "PERSID")):
                stack.append(argument)
            case _:
                raise ValueError(f"its pickle has the step {name}, which torch never writes")

    def _pop(self, count: int) -> list[Any]:
        taken = self._stack[-count:]
        if len(taken) < count:
            raise ValueError("its pickle takes more than there is")
        del self._stack[-count:]
        return taken

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        taken = self._stack[mark:]
        del self._stack[mark:]
        return taken

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        """Puts keys and values into the dict on top; what has no plain key is left out."""
        target = self._stack[-1]
        if isinstance(target, dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update((key, value) for key, value in pairs if key is None or isinstance(key, str | int | float))

    def _global(self, name: str) -> Foreign:
        if name not in _KNOWN:
            self.foreign.add(name)
        return Foreign(name)

    def _called(self, called: object, arguments: object) -> object:
        name = called.name if isinstance(called, Foreign) else ""
        given = arguments if isinstance(arguments, tuple) else ()
        if name == _ORDERED_DICT and not given:
            return {}
        if name in _TENSORS:
            return self._tensor(*given[:4])
        if name == _PARAMETER and given:
            return given[0]
        return _foreign(called)

    def _storage(self, told: object) -> _Storage | Foreign:
        """A storage, as `torch.save` refers to it: ('storage', type, key, location, size)."""
        kind, key = told[1:3] if isinstance(told, tuple) else (None, None)
        if not isinstance(kind, Foreign) or not isinstance(key, str):
            raise ValueError("its pickle refers to something that is no storage")
        return _Storage(f"{self._prefix}data/{key}", _STORAGES[kind.name]) if kind.name in _STORAGES else kind

    def _tensor(self, storage: object, offset: object, shape: object, stride: object) -> StoredTensor | Foreign:
        if isinstance(storage, Foreign):  # of numbers that no selector has
            return storage
        if (
            not isinstance(storage, _Storage)
            or not isinstance(shape, tuple)
            or not isinstance(stride, tuple)
            or len(shape) != len(stride)
            or len(shape) > _DEEPEST
            or not all(type(number) is int and 0 <= number < 2**63 for number in (offset, *shape, *stride))
        ):
            raise ValueError("its pickle describes a tensor that cannot be")
        assert isinstance(offset, int)
        return StoredTensor(storage.record, storage.dtype, offset, shape, stride)


def _foreign(inputs: object = None) -> Foreign:
    """What a class, or what was made of it, makes."""
    return inputs if isinstance(inputs, Foreign) else Foreign("an object")

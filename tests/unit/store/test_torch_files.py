import io
import zipfile
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from icdsel.store.torch_files import Foreign, StoredTensor, describe, open_torch_file


def read(path: Path, content: object, **options: Any) -> Any:
    torch.save(content, path, **options)
    with open_torch_file(path) as file:
        return file.read_tensors(file.content)


def with_record(path: Path, name: str, content: bytes | None) -> None:
    """Replaces a record of an archive, or removes it."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            if not info.filename.endswith(name):
                target.writestr(info.filename, source.read(info))
            elif content is not None:
                target.writestr(info.filename, content)


@pytest.mark.parametrize("protocol", [2, 4])
def test_plain_values_and_containers_are_read(tmp_path: Path, protocol: int) -> None:
    content = {"a": [1, -(2**40), 2.5, None, True, False, "é"], "b": ((), (1,), (1, 2, 3, 4)), 7: {"c": []}}
    assert read(tmp_path / "x.pt", content, pickle_protocol=protocol) == content


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool],
)
def test_tensors_are_read_as_torch_reads_them(tmp_path: Path, dtype: torch.dtype, protocol: int) -> None:
    table = (torch.arange(24).reshape(4, 6) % 5).to(dtype)
    views = {"all": table, "view": table[1:3, ::2], "transposed": table.T, "scalar": table[2, 3]}
    found = read(tmp_path / "x.pt", OrderedDict(views), pickle_protocol=protocol)
    for name, value in views.items():
        assert torch.equal(found[name], value) and found[name].dtype == dtype
    if dtype.is_floating_point:
        parameter = torch.nn.Parameter(table)
        assert torch.equal(read(tmp_path / "x.pt", parameter, pickle_protocol=protocol), table)


def test_tensors_are_described_before_they_are_read(tmp_path: Path) -> None:
    torch.save(torch.zeros(3, 4).half(), tmp_path / "x.pt")
    with open_torch_file(tmp_path / "x.pt") as file:
        assert isinstance(file.content, StoredTensor) and describe(file.content) == "a Tensor"
        assert (file.content.shape, file.content.dtype, file.content.nbytes) == ((3, 4), torch.float16, 24)


def test_anything_else_is_a_placeholder_and_is_listed(tmp_path: Path) -> None:
    torch.save({"number": Fraction(1, 3), "set": {1}, "sparse": torch.eye(2).to_sparse(), "ok": 1}, tmp_path / "x.pt")
    with open_torch_file(tmp_path / "x.pt") as file:
        assert file.content == {
            "number": Foreign("fractions.Fraction"),
            "set": Foreign("__builtin__.set"),
            "sparse": Foreign("torch._utils._rebuild_sparse_tensor"),
            "ok": 1,
        }
        assert {"fractions.Fraction", "__builtin__.set"} <= set(file.foreign) and file.foreign == sorted(file.foreign)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data/0", None, "storage .*/data/0' is missing"),
        ("data/0", bytes(8), "does not fit its storage"),
        ("byteorder", b"big", "big-endian"),
        ("data.pkl", None, "it has no data.pkl"),
        ("data.pkl", b"\x80\x02", "pickle"),
        ("data.pkl", b"\x80\x02\x8f.", "the opcode EMPTY_SET, which torch.save does not write"),
    ],
)
def test_damaged_archives_are_an_error(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.pt"
    torch.save(torch.zeros(4), path)
    with_record(path, name, content)
    with pytest.raises(ValueError, match=message), open_torch_file(path) as file:
        file.read_tensors(file.content)


def test_empty_tensors_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not fit its storage"):
        read(tmp_path / "x.pt", torch.zeros(0, 3))

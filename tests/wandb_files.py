"""Reads the files that Weights & Biases writes offline: records of protobuf in the log format of LevelDB."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HEADER, _BLOCK = 7, 32 * 1024
_FULL, _LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The records of a file, their checksums checked."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    at, parts = _HEADER, b""
    while at + 7 <= len(content):
        if _BLOCK - at % _BLOCK < 7:  # no header fits into the rest of a block
            at += _BLOCK - at % _BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", content[at : at + 7])
        data = content[at + 7 : at + 7 + length]
        assert checksum == zlib.crc32(bytes([kind]) + data)
        parts, at = parts + data, at + 7 + length
        if kind in (_FULL, _LAST):
            yield Record.FromString(parts)
            parts = b""


def offline_runs(folder: Path) -> list[Path]:
    """The files of all runs below a folder, the oldest first."""
    return sorted(folder.rglob("run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def history(path: Path) -> list[dict[str, Any]]:
    """The rows that were logged, without W&B's own columns but the step."""
    rows = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in row.items() if name == "_step" or not name.startswith("_")})
    return rows


def run_of(path: Path) -> Any:
    """The run: its id, name, project, and settings in `config`."""
    return next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")


def summary(path: Path) -> dict[str, Any]:
    """The values of the summary that were set."""
    found: dict[str, Any] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            found |= {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update}
    return found

"""Readers of checkpoints, embeddings and cached features."""

import io
import json
import os
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save

from icdsel.artefacts import rl_data
from icdsel.artefacts.checkpoint import foreign_objects, load_checkpoint
from icdsel.artefacts.checkpoint_conversion import convert_checkpoint
from icdsel.artefacts.checkpoint_writing import save_policy
from icdsel.errors import CheckpointError, DataError, RunError
from icdsel.policy.config import PointerConfig
from icdsel.policy.groups import make_groups
from icdsel.policy.loop import Epoch, train_policy
from icdsel.policy.network import PointerNetwork
from icdsel.retrieval import embeddings
from icdsel.settings.tables import RewardSettings, TrainSettings
from icdsel.stages.training.run_journal import RunJournal
from icdsel.vlm.local.feature_cache import DiskCache, FeatureCache

from .common import DATA, ROW, alone, check_path, ignore, lines
from .harness import Reader
from .mutate import damaged_safetensors, damaged_torch_file
from .rl_data import rl_record


def network(**config: Any) -> PointerNetwork:
    torch.manual_seed(0)
    return PointerNetwork(PointerConfig(**{"d_model": 3, "hidden_dim": 4} | config))


def torch_file(content: object, **options: Any) -> bytes:
    made = io.BytesIO()
    torch.save(content, made, **options)
    return made.getvalue()


@cache
def checkpoints() -> list[bytes]:
    weights = network().state_dict()
    bomb = torch.zeros(1).as_strided((10**6, 10**6), (0, 0))
    made = [
        torch_file({"epoch": 1, "phase": "rce", "model_state_dict": weights, "metrics": {"a": 1.0}, "kl_beta": 0.1})
    ]
    for config in ({}, {"gate": False}, {"num_layers": 2, "tower": 2, "num_heads": 2}):
        policy = network(**config)
        content = {"epoch": 0, "phase": "grpo", "model_state_dict": policy.state_dict(), "kl_beta": 0.5, "metrics": {}}
        made.append(torch_file(content | {"config": vars(policy.config)}))
    made += [
        torch_file({"state_dict": {f"lever_lm.pointer_selector.{name}": value for name, value in weights.items()}}),
        torch_file({"model_state_dict": weights | {"query_proj.weight": bomb}}),
        torch_file({"model_state_dict": weights}, _use_new_zipfile_serialization=False),
        torch_file({"extra": [weights] * 3, "model_state_dict": {**weights, "x": os.getcwd}}),
        torch_file([1, {"a": (1, 2.5, None, True, "x", b"y", {1}, -(2**70))}]),
    ]
    names = ("rce_epoch1.pt", "rce_epoch2_v2format.ckpt", "lightning_v2_with_omegaconf.ckpt")
    return [*made, *((DATA / name).read_bytes() for name in names)]


def use_checkpoint(path: Path) -> None:
    check_path(path)
    checkpoint = load_checkpoint(path)
    f"{checkpoint.epoch} {checkpoint.phase} {checkpoint.kl_beta} {checkpoint.network.config}".encode()
    foreign_objects(path)
    with torch.no_grad():
        d = checkpoint.network.config.d_model
        checkpoint.network.greedy(torch.zeros(1, d), torch.zeros(1, 2, d), 1)
    if path.stat().st_size % 16 == 0:
        convert_checkpoint(path, path.with_name("converted.ckpt"))


TRAINING = TrainSettings(rce_epochs=1, recipe="lever-plus")


def resumed(folder: Path) -> Path:
    metrics = {"phase": "rce", "epoch": 1, "kl_beta": 0.1, "rce_loss": 1.0}
    (folder / "metrics.jsonl").write_bytes(lines(metrics))
    return folder / "resume.pt"


@cache
def resume_files() -> list[bytes]:
    policy = network()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    sum(parameter.sum() for parameter in policy.parameters()).backward()
    optimizer.step()
    for parameter in list(optimizer.state)[2:]:
        del optimizer.state[parameter]
    draws = {"rng": torch.get_rng_state(), "order": torch.Generator().get_state()}
    extra = draws | {"epochs": 1, "work": {"rce": {"seconds": 1.5, "count": 4}}}
    made = []
    for more in ({}, {"start": policy.state_dict()}):
        path = Path(f"/tmp/icdsel-fuzz-{os.getpid()}.pt")
        save_policy(
            path, policy, epoch=0, phase="rce", metrics={}, kl_beta=0.1, optimizer=optimizer, extra=extra | more
        )
        made.append(path.read_bytes())
        path.unlink()
    return made


def use_resume(path: Path) -> None:
    policy = network()
    tracking = SimpleNamespace(log_epoch=lambda *_: None)
    journal = RunJournal(path.parent, policy, tracking, lambda *_: None)  # type: ignore[arg-type]
    state = journal.resume()
    f"{journal.queries} {journal.epochs}".encode()
    table = torch.eye(3).repeat(14, 1)[:40]
    kept: list[Epoch] = []
    # At times one more epoch, which updates the weights with the restored state of the optimizer.
    settings = TRAINING.model_copy(update={"rce_epochs": 2 if path.stat().st_size % 8 == 0 else 1})
    train_policy(
        policy, table, _groups(), _groups(), settings, seed=1, on_epoch=kept.append, on_step=ignore, resume=state
    )


@cache
def _groups() -> Any:
    scored = [{"pointer": [110, 111], "vqa_acc_score": 1.0}, {"pointer": [111, 112], "vqa_acc_score": 0.0}]
    record = rl_record(100, scored)
    return make_groups([rl_data.parse_group(record)[0]], ROW, RewardSettings())


@cache
def vectors() -> list[bytes]:
    table = torch.randn(5, 3)
    strided = torch.zeros(1).as_strided((5, 10**9), (0, 0))
    made = [
        table,
        table.half(),
        table.T.contiguous().T,
        torch.nn.Parameter(table),
        strided,
        {"a": table},
        table.numpy(),
    ]
    return [*map(torch_file, made), torch_file(table, _use_new_zipfile_serialization=False)]


@cache
def safetensors(*metadata: str) -> list[bytes]:
    broken = {"broken": json.dumps({"1": "damaged"})} if metadata else None
    tables = {"image": torch.randn(5, 3), "question": torch.randn(5, 3)} if metadata else {"x": torch.randn(5, 3)}
    return [save(tables, broken), save({"x": torch.zeros(5, 3).half()}), save({"3x2": torch.zeros(6, 4)}), b"\xff" * 9]


def use_cache(path: Path) -> bool:
    kept = embeddings._read(path, {"image": 5, "question": 5})
    if kept is not None:
        assert kept.tables["image"].isfinite().all() and all(0 <= row < 5 for row in kept.broken)
    return kept is not None


def spilled(folder: Path) -> Path:
    (folder / "a.png").write_bytes(b"x")
    file = _features(folder)._file(folder / "a.png")
    assert file is not None
    file.parent.mkdir()
    return file


def _features(folder: Path) -> FeatureCache:
    return FeatureCache(lambda _: [], lambda _: [], 0, disk=DiskCache(folder / "spill", 10**6, "x"))


def use_spilled(path: Path) -> bool:
    image = path.parent.parent / "a.png"
    cache = _features(image.parent)
    found = cache._read_from_disk(image)
    if found:
        rows, columns = cache.grid(image)
        assert cache.features(image).shape[0] == rows * columns
    return found


READERS = [
    Reader("checkpoint", alone("rce_epoch1.pt"), checkpoints, damaged_torch_file, use_checkpoint, (CheckpointError,)),
    Reader("resume", resumed, resume_files, damaged_torch_file, use_resume, (CheckpointError, RunError)),
    Reader(
        "vectors",
        alone("x.pt"),
        vectors,
        damaged_torch_file,
        lambda path: embeddings.read_train_embeddings(path, 5),
        (DataError,),
    ),
    Reader(
        "vectors-safetensors",
        alone("x.safetensors"),
        safetensors,
        damaged_safetensors,
        lambda path: embeddings.read_train_embeddings(path, 5),
        (DataError,),
    ),
    Reader(
        "embeddings-cache", alone("x.safetensors"), partial(safetensors, "broken"), damaged_safetensors, use_cache, ()
    ),
    Reader("feature-cache", spilled, safetensors, damaged_safetensors, use_spilled, ()),
]

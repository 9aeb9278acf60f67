"""Hostile files, and files that the fuzzer found. The docstrings say what each did before it was handled."""

import io
import json
import pickle
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from icdsel.artefacts.checkpoint import foreign_objects, load_checkpoint, load_policy
from icdsel.artefacts.predictions import read_predictions
from icdsel.artefacts.rl_data import parse_group, read_rl_data, summary_of
from icdsel.artefacts.run_folder import read_metrics
from icdsel.data.images import ImageError, open_image
from icdsel.errors import CheckpointError, DataError, RlDataError, RunError, SettingsError, UserError, VlmError
from icdsel.experiments.rates import RECORDED, Rate, Rates
from icdsel.policy.groups import make_groups
from icdsel.retrieval.embeddings import read_train_embeddings
from icdsel.settings.loading import load_settings
from icdsel.settings.tables import RewardSettings, VlmSettings
from icdsel.stages.training import online
from icdsel.store.journal import Journal
from icdsel.store.metadata import environment, read_metadata
from icdsel.vlm.engines import open_engine
from icdsel.vlm.local.feature_cache import FeatureCache
from icdsel.vlm.local.loading import TINY_VLM_DIR
from icdsel.vlm.local.pretrained import require_valid

from .common import lines
from .harness import limited_memory, run_case
from .mutate import packed
from .readers import READERS
from .results import PREDICTIONS, metadata_file, prediction
from .rl_data import RL_RECORDS, candidate, rl_record
from .tensors import network, resume_files, torch_file

# --- files of torch.save ----------------------------------------------------------------------------------


def pickled(opcodes: bytes) -> bytes:
    """A file of torch.save with this pickle."""
    return packed([("archive/data.pkl", b"\x80\x02" + opcodes + b".")])


def error_of(path: Path, content: bytes) -> str:
    """The message of the error that reading a checkpoint with this content raises."""
    path.write_bytes(content)
    with limited_memory(), pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    return str(caught.value)


def with_weights(**more: torch.Tensor) -> dict[str, Any]:
    return {"model_state_dict": network().state_dict() | more}


def test_a_tensor_is_not_larger_than_its_storage(tmp_path: Path) -> None:
    """Strides of 0 turned four bytes into terabytes when the values were checked for NaN."""
    bomb = torch.zeros(1).as_strided((10**6, 10**6), (0, 0))
    message = error_of(tmp_path / "x.pt", torch_file(with_weights(**{"query_proj.weight": bomb})))
    assert "larger than the file" in message
    small = torch.zeros(1).as_strided((4, 4), (0, 0))
    assert "does not fit its storage" in error_of(
        tmp_path / "x.pt", torch_file(with_weights(**{"query_proj.weight": small}))
    )
    (tmp_path / "v.pt").write_bytes(torch_file(torch.zeros(1).as_strided((5, 60_000), (0, 0))))
    with limited_memory(), pytest.raises(DataError, match="does not fit its storage"):
        read_train_embeddings(tmp_path / "v.pt", 5)


def test_many_weights_do_not_share_one_storage(tmp_path: Path) -> None:
    """Each weight was copied: a thousand weights with one large storage took a thousand times its size."""
    shared = torch.zeros(300, 300)
    weights = {f"cross_attn_layers.{i}.in_proj_weight": shared for i in range(100)}
    assert "larger than the file" in error_of(tmp_path / "x.pt", torch_file(with_weights(**weights)))
    extra = torch_file(with_weights() | {"extra": {f"{i}": shared for i in range(100)}})
    assert "its content would be larger" in error_of(tmp_path / "x.pt", extra)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_layers": 10**9}, "more than 256 layers"),  # all of them were built
        ({"d_model": 2**40}, "wider than"),
        ({"hidden_dim": "a"}, "hidden_dim in its config is a str"),
        ({"gate": 1}, "gate in its config is a int"),
        ({"num_layers": True}, "num_layers in its config is a bool"),
        ({"dropout": float("nan")}, "dropout must be in"),
        ({"tower": -1}, "tower must be at least 0"),
        ({3: 4}, "its config has 3"),
    ],
)
def test_the_config_is_validated_before_the_network_is_built(tmp_path: Path, config: dict, message: str) -> None:
    content = with_weights() | {"config": vars(network().config) | config}
    assert message in error_of(tmp_path / "x.pt", torch_file(content))


def test_a_checkpoint_with_too_many_layers_is_rejected(tmp_path: Path) -> None:
    weights = {f"cross_attn_layers.{i}.in_proj_bias": torch.zeros(1) for i in range(300)}
    assert "more than 256 layers" in error_of(tmp_path / "x.pt", torch_file(with_weights(**weights)))


def test_compressed_archives_are_rejected(tmp_path: Path) -> None:
    """A few kilobytes were unpacked to gigabytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(torch_file(with_weights()))) as source, zipfile.ZipFile(made, "w") as file:
        for info in source.infolist():
            file.writestr(info.filename, source.read(info), zipfile.ZIP_DEFLATED)
        file.writestr("archive/data/99", bytes(10**8), zipfile.ZIP_DEFLATED)
    assert "are compressed" in error_of(tmp_path / "x.pt", made.getvalue())


def test_overlapping_records_are_rejected(tmp_path: Path) -> None:
    """Many records at one place in the file were read as many times its size."""
    content = packed([("archive/data.pkl", b"\x80\x02}."), ("archive/data/0", bytes(5000))])
    at = content.index(b"PK\x01\x02")
    directory, end = content[at : content.rindex(b"PK\x05\x06")], content[content.rindex(b"PK\x05\x06") :]
    second = directory[directory.rindex(b"PK\x01\x02") :]
    many = directory + second * 50
    end = end[:8] + struct.pack("<HHII", 52, 52, len(many), at) + end[20:]
    assert "larger than the file" in error_of(tmp_path / "x.pt", content[:at] + many + end)


def test_archives_of_too_many_records_are_rejected(tmp_path: Path) -> None:
    records = [("archive/data.pkl", b"\x80\x02}."), *((f"archive/data/{i}", b"") for i in range(2**16))]
    assert "more than 65,536 records" in error_of(tmp_path / "x.pt", packed(records))


def test_files_that_torch_would_read_differently_are_rejected(tmp_path: Path) -> None:
    """A pickle followed by an archive; two records whose names differ only in case."""
    valid = torch_file(with_weights())
    assert "does not begin like one" in error_of(tmp_path / "x.pt", pickle.dumps(print) + valid)
    made = io.BytesIO(valid)
    with zipfile.ZipFile(made, "a") as file:
        file.writestr("archive/Data.pkl", pickle.dumps(print))
    assert "two of its records have the same name" in error_of(tmp_path / "x.pt", made.getvalue())


def test_the_format_before_torch_1_6_is_rejected(tmp_path: Path) -> None:
    """Its storages are allocated as declared."""
    old = torch_file(with_weights(), _use_new_zipfile_serialization=False)
    assert "torch 1.6 or later" in error_of(tmp_path / "x.pt", old)


MANY = 2**18
LAUGHS = b")q\0" + b"h\0h\0\x86q\0" * 60
EQUAL_HASHES = b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(1, 60_000))


@pytest.mark.parametrize(
    "opcodes",
    [
        pytest.param(b"}r\xff\xff\xff\x7f", id="a memo of two billion entries"),  # Python's own reader took 32 GB
        pytest.param(b"\x96" + struct.pack("<Q", 2**34), id="a bytearray of 16 GB"),
        pytest.param(b"\x8d" + struct.pack("<Q", 2**62), id="a text of exabytes"),
        pytest.param(b"\x8b\xff\xff\xff\x7f", id="an integer of two billion bytes"),
        pytest.param(b"\x95" + b"\xff" * 8, id="a frame without end"),
        pytest.param(b"})" + b"\x85" * MANY + b"Ns", id="a key of very many nested tuples"),  # the process died
        pytest.param(b"]" * MANY + b"a" * (MANY - 1), id="very many nested lists"),
        pytest.param(b"}(" + EQUAL_HASHES + b"u", id="keys with equal hashes"),  # took minutes
        pytest.param(b"]q\x00h\x00a", id="a list in itself"),
        pytest.param(b"}" * 5_000_000, id="five million dicts"),
        pytest.param(b"cos\nsystem\n" * 50_000, id="very many names"),  # each created a class
        pytest.param(b"cos\nsystem\nX\x02\x00\x00\x00id\x85R", id="a call"),
        pytest.param(b"\x8c\x02os\x8c\x06system\x93X\x02\x00\x00\x00id\x85R", id="a call by another opcode"),
        pytest.param(b"\x82\x01", id="a class by number"),
        pytest.param(b"P1\n", id="a storage by name"),
        # Nested tuples, each holding the one before twice: their text is endless.
        pytest.param(LAUGHS + b"h\0h\0\x93", id="billion laughs as a name"),
        pytest.param(LAUGHS + b"h\0Q", id="billion laughs as a storage"),
        pytest.param(LAUGHS + b"ctorch._utils\n_rebuild_tensor_v2\nh\0R", id="billion laughs as a tensor"),
        pytest.param(b"}X\x05\0\0\0extra" + LAUGHS + b"h\0s", id="billion laughs in extra"),
    ],
)
def test_hostile_pickles_take_little_time_and_memory(tmp_path: Path, opcodes: bytes) -> None:
    started = time.process_time()
    error_of(tmp_path / "x.pt", pickled(opcodes))
    assert time.process_time() - started < 5


def test_hostile_parts_of_a_checkpoint_beside_its_weights_are_ignored(tmp_path: Path) -> None:
    nested: list[Any] = []
    nested.append(nested)
    path = tmp_path / "x.pt"
    path.write_bytes(torch_file(with_weights() | {"x": nested, "epoch": 10**5000, "phase": b"rce", "kl_beta": "much"}))
    checkpoint = load_checkpoint(path)
    assert (checkpoint.epoch, checkpoint.phase, checkpoint.kl_beta) == (None, None, None)
    assert "64 deep" in error_of(path, torch_file(with_weights() | {"extra": {"x": nested}}))
    laughs: Any = ()
    for _ in range(50):
        laughs = (laughs, laughs)
    assert "its content would be larger" in error_of(path, torch_file(with_weights() | {"extra": {"x": laughs}}))


def test_foreign_objects_of_a_checkpoint_are_listed_and_not_imported(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(torch_file(with_weights() | {"a": np.float64(1.0), "b": {1, 2}, "c": pickle.Pickler}))
    assert load_policy(path).config.d_model == 3
    assert "pickle.Pickler" in foreign_objects(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["extra"].update(epochs="1"),
        lambda c: c["extra"].pop("epochs"),
        lambda c: c["extra"].update(work={"rce": {"seconds": "x", "count": 1}}),
        lambda c: c["extra"].update(work=[1]),
        lambda c: c["extra"].update(rng=torch.zeros(3)),
        lambda c: c["extra"].update(order=torch.zeros(5, dtype=torch.uint8)),
        lambda c: c["extra"].update(start={"x": 1}),
        lambda c: c["extra"].update(start={7: 1}),
        lambda c: c.update(phase="sft"),
        lambda c: c.update(kl_beta=None),
        lambda c: c["optimizer_state_dict"].update(state={0: {"step": 1}}),
        lambda c: c["optimizer_state_dict"].update(state=[1]),
        lambda c: next(iter(c["optimizer_state_dict"]["state"].values())).update(step=torch.tensor(-(2.0**80))),
    ],
)
def test_the_state_that_training_resumes_from_is_validated(tmp_path: Path, change: Callable[[dict], object]) -> None:
    """Each of these was a traceback, a negative step count only in the first step."""
    reader = next(reader for reader in READERS if reader.name == "resume")
    content = torch.load(io.BytesIO(resume_files()[0]), weights_only=True)
    change(content)
    path = reader.prepare(tmp_path)
    for padding in range(8):  # the reader trains an epoch for one file size in eight
        path.write_bytes(torch_file(content | {"x": "x" * padding}))
        with pytest.raises((RunError, CheckpointError)):
            reader.read(path)


# --- JSON -------------------------------------------------------------------------------------------------

DEEP = "[" * 70 + "]" * 70
VERY_DEEP = "[" * 100_000 + "]" * 100_000
LONG_NUMBER = "9" * 5000


@pytest.mark.parametrize("value", [DEEP, VERY_DEEP, LONG_NUMBER, '"\\ud800"', "1e999", "NaN", "true", '{"a": [1]}'])
@pytest.mark.parametrize(
    ("read", "record", "field", "error"),
    [
        (read_rl_data, RL_RECORDS[0], "question_id", RlDataError),
        (read_rl_data, RL_RECORDS[0], "candidate_pool_ids", RlDataError),
        (read_rl_data, RL_RECORDS[0], "answers", RlDataError),
        (read_predictions, prediction(1, 2), "question_id", RunError),
        (read_predictions, prediction(1, 2), "accuracy", RunError),
        (read_predictions, prediction(1, 2), "accuracy_openflamingo", RunError),
        (read_predictions, prediction(1, 2), "icds", RunError),
        (read_predictions, prediction(1, 2), "shots", RunError),
        (read_metrics, {"phase": "rce", "epoch": 1, "kl": 0.1}, "epoch", RunError),
        (read_metrics, {"phase": "rce", "epoch": 1, "kl": 0.1}, "phase", RunError),
        (read_metrics, {"phase": "rce", "epoch": 1, "kl": 0.1}, "kl", RunError),
        (read_metadata, metadata_file(), "identity", RunError),
        (read_metadata, metadata_file(), "finished", RunError),
        (read_metadata, metadata_file(), "settings", RunError),
        (read_metadata, metadata_file(), "name", RunError),
    ],
)
def test_a_field_of_another_type_is_rejected(
    tmp_path: Path, read: Callable[[Path], object], record: dict, field: str, error: type[UserError], value: str
) -> None:
    if value == '{"a": [1]}' and field in ("identity", "kl"):
        value = "7" if field == "identity" else value
    if value == "true" and field == "settings":
        value = "[]"
    path = tmp_path / "x"
    path.write_text(json.dumps(record | {field: "HERE"}).replace('"HERE"', value) + "\n")
    with pytest.raises(error) as caught:
        read(path)
    str(caught.value).encode()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", [DEEP, VERY_DEEP, LONG_NUMBER, "1e999", "NaN", "true", '{"a": [1]}'])
def test_a_journal_ends_before_a_line_with_a_field_of_another_type(tmp_path: Path, value: str) -> None:
    path, valid = tmp_path / "online.jsonl", lines({"online_epoch": 0} | RL_RECORDS[0])
    path.write_bytes(valid + lines({"online_epoch": "here"} | RL_RECORDS[1]).replace(b'"here"', value.encode()))
    assert len(online.read_journal(Journal(path, RlDataError))) == 1


def test_numbers_of_shots_and_of_settings_are_limited(tmp_path: Path) -> None:
    """Thousands of them were compared with each other for minutes."""
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(prediction(1, shots)) + "\n" for shots in range(200)))
    with pytest.raises(RunError, match="at 200 numbers of shots, at most 100"):
        read_predictions(path)
    path.write_text(json.dumps(metadata_file() | {"identity": {f"data.{number}": 0 for number in range(2000)}}))
    with pytest.raises(RunError, match="at most 1000 items"):
        read_metadata(path)


def test_other_values_are_not_converted_to_ids(tmp_path: Path) -> None:
    """`1.5` and `true` were read as the question 1."""
    for wrong in (1.5, True, [1]):
        (tmp_path / "p.jsonl").write_bytes(lines(prediction(1, 2) | {"question_id": wrong}))
        with pytest.raises(RunError, match="line 1: question_id"):
            read_predictions(tmp_path / "p.jsonl")
        (tmp_path / "r.jsonl").write_bytes(lines(rl_record(100, [candidate(110, wrong)])))
        with pytest.raises(RlDataError, match="not a list of ids"):
            read_rl_data(tmp_path / "r.jsonl")


def test_one_query_far_larger_than_the_others_is_rejected(tmp_path: Path) -> None:
    """A file of a few megabytes took gigabytes: every query was padded to the largest one."""
    large = rl_record(100, [candidate(110, 111)] * 5000)
    groups = [
        parse_group(large)[0],
        *(parse_group(rl_record(i, [candidate(112, 113)]))[0] for i in range(101, 105)),
    ]
    small = [replace(groups[1], question_id=i) for i in range(100, 100_100)]
    row = {i: i for i in range(100, 100_100)}
    with limited_memory(), pytest.raises(RlDataError, match="5,000 pointers, far more"):
        make_groups([*small, groups[0]], row, RewardSettings())
    assert len(make_groups(groups, row, RewardSettings())) == len(groups)


def test_a_query_with_many_pointers_and_a_large_pool_is_read_in_linear_time() -> None:
    """The pool was converted to a set for every pointer."""
    many = 50_000
    record = rl_record(0, [candidate(1, 2)] * many, pool=list(range(1, many)))
    started = time.process_time()
    for variant in (record, record | {"candidate_pool_ids": "all", "excluded_ids": list(range(3, many))}):
        assert len(parse_group(variant)[0].candidates) == many
    assert time.process_time() - started < 10


def test_a_summary_of_damaged_rl_data_is_a_user_error(tmp_path: Path) -> None:
    """An interrupted command's file that somebody had changed was summed up without validation."""
    reason = "a score is not a number"
    messages = [(None, f"is damaged: {reason}"), *((value, f"line 1: {reason}") for value in ({}, [], "a" * 5000))]
    for wrong, message in messages:
        (tmp_path / "x.jsonl").write_bytes(lines(rl_record(100, [candidate(110, 111, vqa_correct=wrong)])))
        with pytest.raises(RlDataError, match=message):
            summary_of(tmp_path / "x.jsonl")


def test_a_name_too_long_for_a_path_is_rejected(tmp_path: Path) -> None:
    """Looking for such a file raised an OSError."""
    (tmp_path / "x.meta.json").write_text(json.dumps(metadata_file(rl_data=["a" * 300])))
    with pytest.raises(RunError, match=r"rl_data\.0: .*not a path"):
        read_metadata(tmp_path / "x.meta.json")


@pytest.mark.parametrize("more", [{}, {"environment": {}}, {"environment": {"cpus": [1]}, "work": {"answering": {}}}])
def test_metadata_files_without_a_rate_are_ignored(tmp_path: Path, more: dict[str, Any]) -> None:
    """A metadata file without the machine that wrote it was a traceback."""
    settings = load_settings({"data": {"results_dir": str(tmp_path)}})
    folder = settings.dataset_dir / "infer/x"
    folder.mkdir(parents=True)
    valid = {"identity": {}, "environment": environment("cpu", 1), "work": {"answering": {"count": 6, "seconds": 3}}}
    for name, content in (("a", {"identity": {}} | more), ("b", valid)):
        (folder / f"{name}.meta.json").write_text(json.dumps(content))
    rates = Rates(SimpleNamespace(settings=settings, vlm_device="cpu"))  # type: ignore[arg-type]
    assert rates._recorded("answering", {}) == Rate(2.0, RECORDED)


@pytest.mark.parametrize("mode", [["hard"], {"hard": 1}, 3])
def test_a_reward_mode_of_another_type_is_a_user_error(mode: Any) -> None:
    """`compare` reads it from a metadata file of predictions."""
    with pytest.raises(SettingsError, match=r"reward\.mode"):
        load_settings({"reward": {"mode": mode}})


def test_messages_are_short_even_if_they_quote_a_file(tmp_path: Path) -> None:
    assert len(str(UserError("x" * 10**6 + "the remedy"))) < 4000
    assert str(UserError("x" * 10**6 + "the remedy")).endswith("the remedy")
    (tmp_path / "p.jsonl").write_bytes(lines(*PREDICTIONS, {"a" * 10**6: 1}))
    with pytest.raises(RunError):
        read_predictions(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    "content", [f"[data]\nseed = {LONG_NUMBER}", "[data]\nseed = 0x" + "f" * 6000, "a = " + "[" * 5000]
)
def test_settings_that_python_cannot_parse_are_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "icdsel.toml").write_text(content)
    with pytest.raises(SettingsError) as caught:
        load_settings({})
    assert len(str(caught.value)) < 1000


# --- images -----------------------------------------------------------------------------------------------


def test_a_jpeg_with_very_many_scans_is_rejected(tmp_path: Path) -> None:
    """A megabyte kept a core busy for minutes: each scan of some 100 bytes is decoded over all pixels."""
    made = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(made, "JPEG", progressive=True)
    content = made.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    (tmp_path / "x.jpg").write_bytes(content[:-2] + last * 80 + content[-2:])
    assert open_image(tmp_path / "x.jpg", 10**6).size == (64, 64)
    (tmp_path / "x.jpg").write_bytes(content[:-2] + last * 200 + content[-2:])
    with pytest.raises(ImageError, match="scans, above the limit of 100"):
        open_image(tmp_path / "x.jpg", 10**6)


def test_scans_hidden_in_a_damaged_segment_of_a_jpeg_count(tmp_path: Path) -> None:
    """They were inside the declared length of a segment, of which a decoder skips the first bytes only."""
    made = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(made, "JPEG", progressive=True)
    content = made.getvalue()
    hidden = b"\xff\x02\xff" + content[content.rindex(b"\xff\xda") : -2] * 200  # the segment declares 65,535 bytes
    (tmp_path / "x.jpg").write_bytes(content[:-2] + hidden.ljust(2**16 + 10, b"\0") + content[-2:])
    with pytest.raises(ImageError, match="of 210 scans, above the limit of 100"):
        open_image(tmp_path / "x.jpg", 10**6)


def test_a_file_far_larger_than_any_image_within_the_limit_is_rejected(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "x.bmp")
    with (tmp_path / "x.bmp").open("ab") as file:
        file.truncate(2**30)
    with limited_memory(), pytest.raises(ImageError, match="bytes, above the limit of 67,124,864"):
        open_image(tmp_path / "x.bmp", 1000)


def test_a_png_that_decompresses_to_gigabytes_is_rejected_or_read_in_little_memory(tmp_path: Path) -> None:
    reader = next(reader for reader in READERS if reader.name == "image")
    made = io.BytesIO()
    Image.new("RGB", (9, 9)).save(made, "PNG")
    text = b"k\0\0" + zlib.compress(bytes(10**8))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    path = tmp_path / "x.png"
    path.write_bytes(made.getvalue()[:33] + chunk * 8 + made.getvalue()[33:])
    with limited_memory():
        outcome, failure = run_case(reader, path)
    assert not failure and outcome.startswith(("ImageError", "read"))


def test_the_declared_size_of_a_png_chunk_is_not_allocated(tmp_path: Path) -> None:
    """Pillow read as many bytes as the last chunk declared, and they were allocated first."""
    made = io.BytesIO()
    Image.effect_noise((9, 9), 50).save(made, "PNG")
    place = made.getvalue().index(b"IDAT") - 4
    path = tmp_path / "x.png"
    path.write_bytes(made.getvalue()[:place] + struct.pack(">I", 2**30) + made.getvalue()[place + 4 :])
    open_image(path, 10**6)  # loads the libraries
    with limited_memory():
        assert open_image(path, 10**6).size == (9, 9)


def test_the_declared_size_of_a_gif_frame_is_not_allocated(tmp_path: Path) -> None:
    """Pillow allocates a frame when it opens the file, before its size can be checked."""
    path = tmp_path / "x.gif"
    screen, control = struct.pack("<HHBBB", 1, 1, 0, 0, 0), b"!\xf9\x04\x08\0\0\0\0"  # "restore to background"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x02L\x01\0;"
    path.write_bytes(b"GIF89a" + screen + control + frame)
    with limited_memory(), pytest.raises(ImageError, match="4294836225 pixels, above the limit of 1000000: "):
        open_image(path, 10**6)


def test_damaged_tags_of_a_tiff_are_not_logged_one_by_one(tmp_path: Path) -> None:
    """Pillow warned about each on stderr, in two lines: 60,000 times for a file of 0.7 MB."""
    valid = [(256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 0), (277, 3, 1), (278, 4, 16)]
    tags = [struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in [*valid, (279, 4, 256)]]
    tags += [struct.pack("<HHII", tag, 1, 10**6, 8) for tag in range(1000, 2000)]  # each larger than the file
    path = tmp_path / "x.tif"
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags) + bytes(300))
    script = "import sys, pathlib, icdsel.cli.process as p, icdsel.data.images as i; p.set_up_process()\n"
    script += "print(i.open_image(pathlib.Path(sys.argv[1]), 10**6).size)"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(16, 16)\n", "")


# --- files of models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors.index.json", {"weight_map": {"a": "../../secret.safetensors"}}, "not beside it"),
        ("model.safetensors.index.json", {"weight_map": {"a": "/etc/passwd"}}, "not beside it"),
        ("model.safetensors.index.json", {"weight_map": {"a": 3}}, "no weight_map"),
        ("model.safetensors.index.json", [1], "no weight_map"),
        ("config.json", {"text_config": {"num_hidden_layers": 10**9}}, "more than 1000 layers"),
        ("config.json", {"x": json.loads(DEEP)}, "nested more than 64 deep"),
    ],
)
def test_model_files_are_validated_before_the_model_is_loaded(
    tmp_path: Path, name: str, content: Any, message: str
) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        require_valid(tmp_path)


TEMPLATE = (TINY_VLM_DIR / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("processor_config.json", ("image_processor", "patch_size"), 0, r"into patches by \(0, 2, 2\)"),
        ("processor_config.json", ("image_processor", "patch_size"), -14, "into patches"),
        ("processor_config.json", ("image_processor", "patch_size"), 700, "into patches"),
        ("processor_config.json", ("image_processor", "merge_size"), [2], "into patches"),
        ("processor_config.json", ("image_processor", "merge_size"), 700, "into patches"),
        ("processor_config.json", ("image_processor", "temporal_patch_size"), 0, "into patches"),
        ("processor_config.json", ("image_processor", "rescale_factor"), "x", "unsupported operand"),
        ("processor_config.json", ("image_processor", "resample"), 99, "99"),
        (
            "processor_config.json",
            ("image_processor", "size"),
            {"shortest_edge": 10**10, "longest_edge": 10**11},
            "enlarges every image",
        ),
        (
            "processor_config.json",
            ("image_processor", "size"),
            {"shortest_edge": 9 * 10**7, "longest_edge": 10**8},
            "--min-pixels",
        ),
        (
            "processor_config.json",
            ("image_processor", "size"),
            {"shortest_edge": "a", "longest_edge": "b"},
            "unsupported operand",
        ),
        ("config.json", ("vision_config", "window_size"), 0, "zero"),
        ("generation_config.json", ("eos_token_id",), ["a", 2], "not a token"),
        ("generation_config.json", ("eos_token_id",), [-7], "not a token"),
        ("chat_template.jinja", (), "{{ 1 / 0 }}", "division by zero"),
        ("chat_template.jinja", (), "{{ raise_exception('not today') }}", "not today"),
        ("chat_template.jinja", (), "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("chat_template.jinja", (), "{{ messages + 1 }}", "concatenate"),
        ("chat_template.jinja", (), "{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
        ("chat_template.jinja", (), "", "chat template"),
        ("chat_template.jinja", (), "hello", "leaves out"),
        ("chat_template.jinja", (), TEMPLATE + "<|image_pad|>", "shows 3 of two images"),
        ("chat_template.jinja", (), TEMPLATE.replace("part.text", "part.text[:3]"), "leaves out"),
    ],
)
def test_a_model_that_cannot_read_prompts_is_rejected_when_it_is_loaded(
    tmp_path: Path, name: str, place: tuple[str, ...], value: Any, message: str
) -> None:
    """All of them ended in a traceback at the first prompt, but the last, which answered without the question."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_VLM_DIR, folder, ignore=shutil.ignore_patterns("__pycache__"))
    if place:
        content = json.loads((folder / name).read_text())
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        value = json.dumps(content)
    (folder / name).write_text(value)
    with limited_memory(), pytest.raises(VlmError, match=message):
        open_engine(VlmSettings(model=str(folder), device="cpu"), 10**8)


def test_small_images_are_enlarged_up_to_the_limit_of_the_user(tmp_path: Path) -> None:
    shutil.copytree(TINY_VLM_DIR, tmp_path / "m")
    path = tmp_path / "m" / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"]["size"] = {"shortest_edge": 2**21, "longest_edge": 2**22}
    path.write_text(json.dumps(content))
    open_engine(VlmSettings(model=str(path.parent), device="cpu", min_pixels=3136), 10**8)


def test_an_error_that_concerns_no_single_image_names_none() -> None:
    """A model without features of single images blamed an image for it."""

    def encode(prepared: Any) -> Any:
        raise VlmError("name another encoder")

    with pytest.raises(VlmError, match=r"^name another encoder$"):
        FeatureCache(list, encode, 10**6).load([Path("a")])

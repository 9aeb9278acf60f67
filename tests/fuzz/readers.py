"""Every reader of files: with what it is fed, and how what it gives is used afterwards."""

import contextlib
import io
import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save

from icdsel import answering, embeddings, generation, online, run_journal
from icdsel.checkpoint import convert, foreign_objects, load_checkpoint, save_policy
from icdsel.compare import compare
from icdsel.comparison_tables import screen_tables
from icdsel.datasets import load_every_split, load_split
from icdsel.errors import CheckpointError, DataError, RlDataError, RunError, SettingsError
from icdsel.feature_cache import FeatureCache, Spill
from icdsel.groups import make_groups, merge
from icdsel.images import FORMATS, ImageError, open_image
from icdsel.lever_plus.rl_data import read_info_score
from icdsel.lever_plus.rl_data_writer import lever_plus_json
from icdsel.page.runs import _read_run
from icdsel.policy import PointerConfig, PointerNetwork
from icdsel.predictions import read_comparable
from icdsel.pretrained import fingerprint, names_code, names_kernel, require_sound
from icdsel.provenance import read_side_file, require_same
from icdsel.records import Example
from icdsel.report import runs_table
from icdsel.rl_data import read_rl_data
from icdsel.run_journal import RunJournal
from icdsel.runs import list_runs
from icdsel.settings import DataSettings, RewardSettings, Settings, TrainSettings, load_settings
from icdsel.training import Epoch, train_policy

from .harness import Reader
from .mutate import (
    damaged_bytes,
    damaged_image,
    damaged_json,
    damaged_lines,
    damaged_safetensors,
    damaged_torch_file,
)

DATA = Path(__file__).parents[1] / "data"
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
MOST_PIXELS = 10_000
IDS = list(range(100, 140))
ROW = {question_id: row for row, question_id in enumerate(IDS)}


def lines(*values: object) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def alone(name: str) -> Callable[[Path], Path]:
    """Nothing stands beside the file."""
    return lambda folder: folder / name


def screen() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=True)


# --- checkpoints and embeddings ---------------------------------------------------------------------------


def network(**config: Any) -> PointerNetwork:
    torch.manual_seed(0)
    return PointerNetwork(PointerConfig(**{"d_model": 3, "hidden_dim": 4} | config))


def torch_file(content: object, **how: Any) -> bytes:
    made = io.BytesIO()
    torch.save(content, made, **how)
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
    checkpoint = load_checkpoint(path)
    f"{checkpoint.epoch} {checkpoint.phase} {checkpoint.kl_beta} {checkpoint.network.config}".encode()
    foreign_objects(path)
    with torch.no_grad():
        d = checkpoint.network.config.d_model
        checkpoint.network.greedy(torch.zeros(1, d), torch.zeros(1, 2, d), 1)
    if path.stat().st_size % 16 == 0:
        convert(path, path.with_name("converted.ckpt"))


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
    events = SimpleNamespace(write=lambda *_: None)
    journal = RunJournal(path.parent, policy, events, lambda *_: None)  # type: ignore[arg-type]
    left = journal.resume()
    f"{journal.queries} {journal.epochs}".encode()
    table = torch.eye(3).repeat(14, 1)[:40]
    kept: list[Epoch] = []
    # One epoch more, which moves the weights with what the optimizer was left with.
    settings = TRAINING.model_copy(update={"rce_epochs": 2 if path.stat().st_size % 8 == 0 else 1})
    train_policy(
        policy, table, _groups(), _groups(), settings, seed=1, on_epoch=kept.append, on_step=_nothing, resume=left
    )


@cache
def _groups() -> Any:
    scored = [{"pointer": [110, 111], "vqa_acc_score": 1.0}, {"pointer": [111, 112], "vqa_acc_score": 0.0}]
    record = rl_record(100, scored)
    return make_groups([generation.read_group(record, _counter())], ROW, RewardSettings())


def _counter() -> Any:
    from collections import Counter

    return Counter()


def _nothing(*_: object) -> None:
    pass


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
    told = {"broken": json.dumps({"1": "damaged"})} if metadata else None
    tables = {"image": torch.randn(5, 3), "question": torch.randn(5, 3)} if metadata else {"x": torch.randn(5, 3)}
    return [save(tables, told), save({"x": torch.zeros(5, 3).half()}), save({"3x2": torch.zeros(6, 4)}), b"\xff" * 9]


def use_cache(path: Path) -> None:
    kept = embeddings._read(path, {"image": 5, "question": 5})
    if kept is not None:
        assert kept.features["image"].isfinite().all() and all(0 <= row < 5 for row in kept.broken)


def spilled(folder: Path) -> Path:
    (folder / "a.png").write_bytes(b"x")
    file = _features(folder)._file(folder / "a.png")
    assert file is not None
    file.parent.mkdir()
    return file


def _features(folder: Path) -> FeatureCache:
    return FeatureCache(lambda _: [], lambda _: [], 0, spill=Spill(folder / "spill", 10**6, "x"))


def use_spilled(path: Path) -> None:
    image = path.parent.parent / "a.png"
    held = _features(image.parent)
    if held._unspill(image):
        rows, columns = held.grid(image)
        assert held.features(image).shape[0] == rows * columns


# --- RL data ----------------------------------------------------------------------------------------------


def candidate(*pointer: int, **more: Any) -> dict[str, Any]:
    told = {"pointer": list(pointer), "gen_method": "cosine-beam", "beam_rank": 0, "logprob_score": -1.5}
    told |= {"temperature": None, "vqa_pred_answer": "a", "vqa_correct": 1, "vqa_acc_score": 0.6, "vqa_gt_prob": 0.5}
    return told | {"vqa_rel_score": 0.5} | more


def rl_record(question_id: int, candidates: list[dict[str, Any]], pool: Any = None) -> dict[str, Any]:
    pool = [i for i in range(110, 118) if i != question_id] if pool is None else pool
    told = {"question_id": question_id, "image_id": 7, "question": "What?", "answers": ["a", "b"]}
    return told | {"candidate_pool_ids": pool, "pointer_candidates": candidates}


FAILED_CANDIDATE = {"pointer": [110, 113], "gen_method": "random", "eval_failed": True, "error": "no memory"}
RL_RECORDS = [
    rl_record(100, [candidate(110, 111), candidate(111, 112, vqa_acc_score=0.0), FAILED_CANDIDATE]),
    rl_record(101, [candidate(112, 111), candidate(113, 110)]),
    rl_record(102, [candidate(112, 111)], pool="all") | {"excluded_ids": [102, 103]},
]


def use_rl_data(path: Path) -> None:
    data = read_rl_data(path)
    groups = merge([data.groups, data.groups])
    _reward(groups)
    from icdsel.rl_data import read_records

    with contextlib.suppress(RlDataError):
        lever_plus_json(read_records(path), ROW, {})


def _reward(groups: Any) -> None:
    with contextlib.suppress(RlDataError):
        made = make_groups(groups, ROW, RewardSettings())
        assert made.raw.nan_to_num().isfinite().all()


LEVER_PLUS_POOL = [40, 9, 77, 5, 12]
LEVER_PLUS = [
    {"3": {"pointer_candidates": [candidate(9, 5), candidate(5, 40)]}},
    {
        "_meta": {"version": "k64"},
        "3": {
            "query": {"question_id": 3, "image_id": 7, "question": "?", "gt_answers_raw": ["a"]},
            "candidate_pool_ids": LEVER_PLUS_POOL,
            "pointer_candidates": [candidate(2, 0, pointer_global=[77, 40], vqa_eval_mode="vqaEval")],
        },
    },
    {
        "4": {
            "query": {},
            "candidate_pool_ids": [5, 3, 9, 5, 40],
            "pointer_candidates": [
                candidate(2, 0, pointer_global=[9, 5], pointer_pos=[80, 81]),
                candidate(5, 6, gen_method="aug_swap", vqa_eval_mode="train", aug_round=1, raw_generation="x"),
                candidate(8, 9, vqa_eval_mode="fallback"),
                candidate(7, 9, vqa_correct=None),
            ],
        }
    },
    {"_meta": {"written_by": "icdsel 1"}, "0": {"pointer_candidates": [candidate(1, 2), {"pointer": [1]}]}},
]
INFO_SCORE = [
    {"3": {"id_list": [[9, 5, 3], [5, 9, 3]], "score_list": [0.1, -0.1]}, "4": {"id_list": [], "score_list": []}}
]


def use_lever_plus(path: Path) -> None:
    whole = path.stat().st_size % 2 == 0
    data = read_rl_data(path, list(range(200)) if whole else None, accept_unsound=whole, skip_fallback=not whole)
    for group in data.groups:
        f"{group.question_id} {group.image_id} {group.question} {group.answers}".encode()
    _reward(merge([data.groups]))


# --- datasets ---------------------------------------------------------------------------------------------


def annotation(question_id: int, image_id: int, **more: Any) -> dict[str, Any]:
    answers = [{"answer_id": i, "raw_answer": "riding", "answer": "rid"} for i in range(3)]
    return {"question_id": question_id, "image_id": image_id, "answers": answers, "question_type": "one"} | more


ANNOTATIONS = [annotation(204, 10), annotation(305, 30), annotation(101, 10)]
QUESTIONS = [
    {"question_id": i, "image_id": j, "question": f"What is {i}?"} for i, j in ((204, 10), (305, 30), (101, 10))
]
OFFICIAL = {
    "questions": "OpenEnded_mscoco_train2014_questions.json",
    "annotations": "mscoco_train2014_annotations.json",
}


def official(folder: Path, mutated: str) -> Path:
    (folder / "okvqa").mkdir()
    for name, content in (("questions", QUESTIONS), ("annotations", ANNOTATIONS)):
        (folder / "okvqa" / OFFICIAL[name]).write_text(json.dumps({"info": {}, name: content}))
    return folder / "okvqa" / OFFICIAL[mutated]


def preprocessed(folder: Path) -> Path:
    (folder / "okvqa/okvqa_hf").mkdir(parents=True)
    return folder / "okvqa/okvqa_hf/vqav2_mscoco_train2014.json"


def use_dataset(path: Path) -> None:
    folder = next(parent for parent in path.parents if (parent / "okvqa").is_dir())
    _use_split(DataSettings(dataset="okvqa", data_dir=folder))


def use_json_lines(path: Path) -> None:
    _use_split(DataSettings(dataset=str(path)))


def _use_split(settings: DataSettings) -> None:
    refused: list[DataError] = []
    with contextlib.suppress(DataError):
        load_every_split(settings, refused.append)  # type: ignore[arg-type]
    split = load_split(settings, "train")
    torch.tensor([example.question_id for example in split])
    for example in split:
        told = [example.question, example.answer, *example.answers, *example.raw_answers, str(example.image_id)]
        " ".join(told).encode()
        example.image.exists()
        assert path_below(example, settings)


def path_below(example: Example, settings: DataSettings) -> bool:
    """Whether an image lies in the folder of the data."""
    folder = Path(settings.dataset).parent if settings.dataset.endswith(".jsonl") else settings.data_dir
    return os.path.normpath(example.image).startswith(os.path.normpath(folder) + "/")


JSON_LINES = [
    {"question_id": 1, "image": "a/b.png", "question": "Which?", "answers": ["x", "y"], "split": "train"},
    {"question_id": 2, "image": "c.png", "question": "What?", "answers": [{"answer": "x", "raw_answer": "xs"}]},
    {
        "question_id": 3,
        "image": "c.png",
        "question": "Who?",
        "answers": ["z"],
        "answer": "z",
        "image_id": 5,
        "split": "val",
    },
]


# --- predictions, side files, runs ------------------------------------------------------------------------


def prediction(question_id: int, shots: int, **more: Any) -> dict[str, Any]:
    told = {"question_id": question_id, "shots": shots, "icds": IDS[:shots], "prediction": "a", "accuracy": 0.6}
    return told | {"accuracy_openflamingo": 1.0} | more


PREDICTIONS = [
    *(prediction(i, shots) for shots in (1, 2) for i in range(4)),
    {"question_id": 5, "shots": 2, "icds": [100, 101], "error": "no memory"},
]
SETTINGS = Settings()


def side_file(**more: Any) -> dict[str, Any]:
    identity = {"selector": "policy", "data.metric": "official", "dataset": "abc", "split": "validation", "model": "x"}
    environment = {"written": "2026-05-01T10:00:00+0000", "machine": "x", "cpus": 2}
    told = {"identity": identity, "settings": SETTINGS.model_dump(mode="json"), "environment": environment}
    return told | {"name": "policy-run-rce_epoch1", "set": "validation-4", "finished": 1} | more


def shortened(side: Mapping[str, Any]) -> dict[str, Any]:
    """With few settings, so that damage comes to other parts as often."""
    tables = {name: dict(list(table.items())[:4]) for name, table in side["settings"].items()}
    return dict(side) | {"settings": tables}


def answered(folder: Path, mutated: str) -> Path:
    path = folder / "policy-run-rce_epoch1_validation-4.jsonl"
    path.write_bytes(lines(*PREDICTIONS))
    path.with_suffix(".meta.json").write_text(json.dumps(side_file()))
    other = folder / "random-1_validation-4.jsonl"
    other.write_bytes(lines(*PREDICTIONS))
    made_of = side_file()["identity"] | {"selector": "random"}
    other.with_suffix(".meta.json").write_text(json.dumps(side_file(name="random-1", identity=made_of)))
    return path.with_name(path.stem + mutated)


def use_predictions(path: Path) -> None:
    size = path.stat().st_size
    read_comparable([path.parent], allow_different=size % 2 == 0)
    if size % 64 == 0:
        screen().print(screen_tables(compare(SETTINGS, [path.parent], allow_different=True)))
    side = next(path.parent.glob("policy*.meta.json"))
    with contextlib.suppress(RunError):
        require_same(side, {"data.metric": "official"}, "it", RunError, "remedy")


def run_folder(folder: Path, mutated: str) -> Path:
    run = folder / "world/model_cpk/run"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(side_file(pair="RandSampler_tiny-vlm", rl_data=["a.jsonl"])))
    epochs = [
        {"phase": "rce", "epoch": i, "expected_reward": i / 10, "oracle_share": i / 5, "kl_beta": 0.1} for i in (1, 2)
    ]
    (run / "metrics.jsonl").write_bytes(lines(*epochs))
    (run / "rce_epoch1.pt").write_bytes(b"x")
    return run / mutated


def use_run(path: Path) -> None:
    run, results = path.parent, path.parents[3]
    found = list_runs(results)
    if path.stat().st_size % 8 == 0:
        screen().print(runs_table(found, NOON))
    read_side_file(run / "run.json")
    row = SimpleNamespace(lead="a", label="a")
    shown = _read_run(row, run)  # type: ignore[arg-type]
    for other in shown.rl_data:
        other.is_file()


# --- journals ---------------------------------------------------------------------------------------------


def use_answers_journal(path: Path) -> None:
    for (question_id, icds), record in answering.whole_units(path).items():
        f"{question_id} {sum(icds)} {record['shots'] + 1}".encode()


def use_generation_journal(path: Path) -> None:
    queries = [SimpleNamespace(question_id=i) for i in (100, 101, 102)]
    units = [[query] for query in queries]
    done, size = generation._whole_units(path, units)  # type: ignore[arg-type]
    assert 0 <= done <= 3 and size <= path.stat().st_size
    path.rename(path.with_name("x.shard-1-of-2.jsonl"))
    for line in generation._scored_in_shards(path.with_name("x.jsonl"), {}).values():
        json.loads(line)
    generation._summary(path.with_name("x.shard-1-of-2.jsonl"))


def shard(folder: Path) -> Path:
    (folder / "x.shard-1-of-2.meta.json").write_text(json.dumps({"identity": {}}))
    return folder / "x.jsonl.part"


def use_online_journal(path: Path) -> None:
    online._read_journal(path)
    sources = SimpleNamespace(train=None, vlm=None, settings=None)
    groups = [generation.read_group(record, _counter()) for record in RL_RECORDS[:2]]
    settings = TrainSettings(online=True, grpo_epochs=3)
    made = online.Rollouts(sources, groups, settings, RewardSettings(), 1, path, _nothing)  # type: ignore[arg-type]
    made.replay(1)
    _reward(made._groups)


def use_metrics(path: Path) -> None:
    for epoch in run_journal.read_metrics(path):
        f"{epoch['phase']} {epoch['epoch'] + 1}".encode()


# --- images, settings, models -----------------------------------------------------------------------------


@cache
def pictures() -> list[bytes]:
    made = []
    for name in FORMATS:
        for mode in ("RGB", "L", "P", "1", "RGBA", "I;16", "CMYK", "LA"):
            picture = io.BytesIO()
            with contextlib.suppress(OSError, ValueError, KeyError):
                how = {"lossless": True} if name == "WEBP" else {}
                Image.new(mode, (9, 7), 1).save(picture, name, **how)
                made.append(picture.getvalue())
    rng = torch.Generator().manual_seed(0)
    noise = Image.fromarray(torch.randint(0, 256, (16, 16, 3), generator=rng, dtype=torch.uint8).numpy())
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 20
    hows: list[tuple[str, dict[str, Any]]] = [
        ("JPEG", {"progressive": True, "exif": exif, "icc_profile": b"x" * 40, "comment": b"c"}),
        ("PNG", {"exif": exif, "icc_profile": b"x" * 40, "save_all": True, "append_images": [noise]}),
        ("TIFF", {"compression": "tiff_lzw", "exif": exif}),
        ("TIFF", {"compression": "tiff_adobe_deflate", "save_all": True, "append_images": [noise]}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"compression": "packbits"}),
        ("GIF", {"save_all": True, "append_images": [noise], "comment": b"c" * 300}),
        ("WEBP", {"save_all": True, "append_images": [noise], "exif": exif, "icc_profile": b"x" * 40}),
        ("BMP", {}),
        ("MPO", {"save_all": True, "append_images": [noise]}),
    ]
    for name, how in hows:
        picture = io.BytesIO()
        noise.save(picture, name, **how)
        made.append(picture.getvalue())
    return [*made, b"P3 2 2 255 1 2 3 4 5 6 7 8 9 1 2 3", b"P1 2 2 1 0 1 0", b"Pf 2 2 -1.0 " + bytes(16)]


def use_image(path: Path) -> None:
    image = open_image(path, MOST_PIXELS)
    assert image.mode == "RGB" and 0 < image.width * image.height <= MOST_PIXELS


TOML = b"""[data]
dataset = "okvqa"
seed = 3
pool_size = "all"
exclude_same_image = true
[vlm]
model = "tiny-vlm"
max_failed = 0.5
[train]
grpo_epochs = 3
rce_lr = 1e-4
warm_start = "x.json"
[infer]
shots = [1, 2]
selector = ["policy", "random"]
"""


def use_settings(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        settings = load_settings({})
        f"{settings.pair_name} {settings.dataset_dir} {settings.usual()}".encode("utf-8", "surrogatepass")
    finally:
        os.chdir(before)


TOML_SEEDS = [
    TOML,
    b"[data]\nseed = " + b"9" * 5000,
    b"[data]\nseed = 0x" + b"f" * 6000,
    b"a = " + b"[" * 3000,
    b'[data]\ndataset = "a\\u0000b"\nresults_dir = "\\u001b[31m"\n',
    b"x = 1\n[data.seed]\na = 1979-05-27T07:32:00Z\n",
]
MODEL_CONFIG = {
    "model_type": "qwen2_5_vl",
    "auto_map": {"AutoConfig": "a.B"},
    "text_config": {"num_hidden_layers": 2, "_attn_implementation": "owner/name"},
    "vision_config": {"depth": 2},
}
WEIGHT_INDEX = {"metadata": {"total_size": 1}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


def model_files(folder: Path, mutated: str) -> Path:
    (folder / "config.json").write_text(json.dumps(MODEL_CONFIG))
    (folder / "model.safetensors.index.json").write_text(json.dumps(WEIGHT_INDEX))
    for number in (1, 2):
        (folder / f"model-{number}.safetensors").write_bytes(b"x" * 10)
    return folder / mutated


def use_model_files(path: Path) -> None:
    require_sound(path.parent)
    names_code(path.parent)
    names_kernel(path.parent)
    fingerprint(path.parent)


# --- all of them ------------------------------------------------------------------------------------------


def json_of(*values: object) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(value).encode() for value in values]


def lines_of(*values: object) -> Callable[[], list[bytes]]:
    return lambda: [lines(*values), lines(*values[:1]), b"", b"\n", b"[]\n"]


_STAMPED = [{"online_epoch": 0} | record for record in RL_RECORDS[:2]]
_UNIT = [prediction(i, 2) for i in range(answering.UNIT)]

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
    Reader("rl-data", alone("x.jsonl"), lines_of(*RL_RECORDS), damaged_lines, use_rl_data, (RlDataError,)),
    Reader("lever-plus", alone("x.json"), json_of(*LEVER_PLUS), damaged_json, use_lever_plus, (RlDataError,)),
    Reader(
        "info-score",
        alone("x.json"),
        json_of(*INFO_SCORE, *LEVER_PLUS[:1]),
        damaged_json,
        lambda path: read_info_score(path, None),
        (RlDataError,),
    ),
    Reader(
        "official-questions",
        partial(official, mutated="questions"),
        json_of({"questions": QUESTIONS}),
        damaged_json,
        use_dataset,
        (DataError,),
    ),
    Reader(
        "official-annotations",
        partial(official, mutated="annotations"),
        json_of({"annotations": ANNOTATIONS}),
        damaged_json,
        use_dataset,
        (DataError,),
    ),
    Reader(
        "preprocessed",
        preprocessed,
        json_of(
            {
                "annotations": [
                    annotation(1, 5, question="?"),
                    annotation(2, 6, question="!", multiple_choice_answer="x"),
                ]
            }
        ),
        damaged_json,
        use_dataset,
        (DataError,),
    ),
    Reader("json-lines", alone("x.jsonl"), lines_of(*JSON_LINES), damaged_lines, use_json_lines, (DataError,)),
    Reader(
        "predictions",
        partial(answered, mutated=".jsonl"),
        lines_of(*PREDICTIONS),
        damaged_lines,
        use_predictions,
        (RunError,),
    ),
    Reader(
        "side-file",
        partial(answered, mutated=".meta.json"),
        json_of(side_file(), shortened(side_file(checkpoint="x.pt", work={"answering": {"seconds": 1.0, "count": 2}}))),
        damaged_json,
        use_predictions,
        (RunError,),
    ),
    Reader(
        "run-json",
        partial(run_folder, mutated="run.json"),
        json_of(shortened(side_file(pair="x", rl_data=["a.jsonl"])), side_file()),
        damaged_json,
        use_run,
        (RunError,),
    ),
    Reader(
        "metrics",
        partial(run_folder, mutated="metrics.jsonl"),
        lines_of(
            {"phase": "rce", "epoch": 1, "expected_reward": 0.5, "oracle_share": 0.5}, {"phase": "grpo", "epoch": 1}
        ),
        damaged_lines,
        lambda path: (use_run(path), use_metrics(path)),
        (RunError,),
    ),
    Reader(
        "answers-journal",
        alone("x.part"),
        lines_of(*_UNIT, *_UNIT[:3]),
        damaged_lines,
        use_answers_journal,
        (RunError,),
    ),
    Reader("generation-journal", shard, lines_of(*RL_RECORDS), damaged_lines, use_generation_journal, (RlDataError,)),
    Reader(
        "online-journal", alone("online.jsonl"), lines_of(*_STAMPED), damaged_lines, use_online_journal, (RlDataError,)
    ),
    Reader("image", alone("x.png"), pictures, damaged_image, use_image, (ImageError,)),
    Reader("settings", alone("icdsel.toml"), lambda: TOML_SEEDS, damaged_bytes, use_settings, (SettingsError,)),
    Reader(
        "model-config",
        partial(model_files, mutated="config.json"),
        json_of(MODEL_CONFIG),
        damaged_json,
        use_model_files,
        (ValueError,),
    ),
    Reader(
        "model-index",
        partial(model_files, mutated="model.safetensors.index.json"),
        json_of(WEIGHT_INDEX),
        damaged_json,
        use_model_files,
        (ValueError,),
    ),
]

"""Readers of images, settings and files of models."""

import contextlib
import io
import json
import os
import shutil
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from icdsel.data.images import FORMATS, ImageError, open_image
from icdsel.errors import SettingsError, VlmError
from icdsel.settings.loading import load_settings
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engines import open_engine
from icdsel.vlm.local.loading import TINY_VLM_DIR
from icdsel.vlm.local.pretrained import fingerprint, names_code, names_kernel, require_valid

from .common import alone, json_of
from .harness import Reader
from .mutate import damaged_bytes, damaged_image, damaged_json

MOST_PIXELS = 10_000


@cache
def pictures() -> list[bytes]:
    made = []
    for name in FORMATS:
        for mode in ("RGB", "L", "P", "1", "RGBA", "I;16", "CMYK", "LA"):
            picture = io.BytesIO()
            with contextlib.suppress(OSError, ValueError, KeyError):
                options = {"lossless": True} if name == "WEBP" else {}
                Image.new(mode, (9, 7), 1).save(picture, name, **options)
                made.append(picture.getvalue())
    rng = torch.Generator().manual_seed(0)
    noise = Image.fromarray(torch.randint(0, 256, (16, 16, 3), generator=rng, dtype=torch.uint8).numpy())
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 20
    variants: list[tuple[str, dict[str, Any]]] = [
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
    for name, options in variants:
        picture = io.BytesIO()
        noise.save(picture, name, **options)
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
        f"{settings.pair_name} {settings.dataset_dir} {settings.defaults()}".encode("utf-8", "surrogatepass")
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
    require_valid(path.parent)
    names_code(path.parent)
    names_kernel(path.parent)
    fingerprint(path.parent)


VLM_FILES = ("config.json", "tokenizer.json", "processor_config.json", "tokenizer_config.json")


def vlm_files(folder: Path, mutated: str) -> Path:
    shutil.copytree(TINY_VLM_DIR, folder / "vlm")
    return folder / "vlm" / mutated


def use_vlm(path: Path) -> None:
    open_engine(VlmSettings(model=str(path.parent), device="cpu"), MOST_PIXELS)


def vlm_reader(name: str) -> Reader:
    """Loads the bundled VLM with one of its files damaged."""
    seeds = [(TINY_VLM_DIR / name).read_bytes()]
    prepare = partial(vlm_files, mutated=name)
    return Reader(f"vlm-{name.removesuffix('.json')}", prepare, lambda: seeds, damaged_json, use_vlm, (VlmError,))


READERS = [
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
    *map(vlm_reader, VLM_FILES),
]

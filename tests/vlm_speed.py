"""The figures in docs/benchmarks.md: how fast families of models are with shared prefixes, next to the plain way.

python tests/vlm_speed.py [FAMILY ...]

Models have random weights and the proportions of small published ones. For each number of shots, with references and
without, a row of the table: pointers per second of CPU time on the plain way and with shared prefixes, and their ratio.
"""

import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText
from vlm_families import FAMILIES

from icdsel.records import Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.local.any_vlm import AnyVlm
from icdsel.vlm.local.loading import load_local
from icdsel.vlm.local.model import LocalModel
from icdsel.vlm.local.shared_prefix import SharedPrefix
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer

REFERENCES = ("doni", "gesa", "a red kite")
QUERIES, POINTERS, POOL, IMAGES = 3, 8, 6, 20
PLAIN = 4  # pointers on the plain way, which is slow
TEXT = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
TEXT |= {"head_dim": 64, "max_position_embeddings": 8192, "vocab_size": 32_768}
VISION = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 4}
TILES = VISION | {"image_size": 224, "patch_size": 14}  # 256 patches per tile
MERGED = {"hidden_size": 256, "intermediate_size": 768, "depth": 3, "num_heads": 4, "patch_size": 14}
EDGES = {"size": {"longest_edge": 448}, "max_image_size": {"longest_edge": 224}}
TILE = {"height": 224, "width": 224}
GRIDS = [[224 * rows, 224 * columns] for rows in range(1, 4) for columns in range(1, 4)]
FREE = {"patch_size": 14, "size": {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28}}
PICTURE = (640, 480)  # as in COCO
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2_vl": {
        "vision_config": {"embed_dim": 256, "depth": 3, "num_heads": 4, "patch_size": 14, "hidden_size": 256},
        "rope": {"mrope_section": [8, 12, 12]},
        "image_processor": FREE,
    },
    "qwen3_vl": {
        "vision_config": MERGED | {"out_hidden_size": 256, "num_position_embeddings": 1024},
        "rope": {"mrope_section": [12, 10, 10]},
        "image_processor": FREE,
    },
    "glm4v": {
        "vision_config": MERGED | {"out_hidden_size": 256, "image_size": 336},
        "rope": {"mrope_section": [8, 12, 12], "partial_rotary_factor": 1.0},
        "image_processor": FREE | {"size": {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 1280 * 28 * 28}},
    },
    "idefics3": {"vision_config": TILES, "image_processor": EDGES, "": {"image_seq_len": 64}},
    "smolvlm": {
        "vision_config": TILES,
        "config": {"scale_factor": 4},
        "image_processor": EDGES,
        "": {"image_seq_len": 16},
    },
    "llava_onevision": {
        "vision_config": TILES,
        "config": {"image_grid_pinpoints": GRIDS},
        "image_processor": {"size": TILE, "image_grid_pinpoints": GRIDS},
        "": {"num_image_tokens": 256},
    },
    "internvl": {
        "vision_config": TILES | {"image_size": [224, 224], "patch_size": [14, 14]},
        "config": {"image_seq_length": 64},
        "image_processor": {"size": TILE, "max_patches": 6},
        "": {"image_seq_length": 64},
    },
}
"""What differs from the small models of the tests: in parts of the configuration, and of the processor's."""


def enlarge(folder: Path, family: str) -> None:
    """Replaces the small model in a folder by a larger one of its family."""
    sizes = SIZES[family]
    path = folder / "config.json"
    config = json.loads(path.read_text()) | sizes.get("config", {})
    config["text_config"] |= TEXT
    config["text_config"]["rope_parameters"] |= sizes.get("rope", {})
    config["text_config"].pop("layer_types", None)  # one for each layer
    config["vision_config"] |= sizes["vision_config"]
    path.write_text(json.dumps(config))
    path = folder / "processor_config.json"
    processor = json.loads(path.read_text()) | sizes.get("", {})
    processor["image_processor"] |= sizes["image_processor"]
    path.write_text(json.dumps(processor))
    generation = (folder / "generation_config.json").read_text()
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    (folder / "generation_config.json").write_text(generation)


def requests_in(folder: Path, shots: int, references: Sequence[str]) -> list[Request]:
    """Pointers of queries, each query's from a small pool, so that they share ICDs."""
    rng, examples = random.Random(shots), []
    for i in range(IMAGES):
        path = folder / f"{i}.jpg"
        coarse = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(PICTURE, Image.Resampling.BICUBIC).save(path)
        examples.append(Example(i, i, path, f"Which code has the shape number {i}?", "doni", REFERENCES))
    made = []
    for query in examples[:QUERIES]:
        pool = rng.sample(examples[QUERIES:], POOL)
        made += [Request(tuple(rng.sample(pool, shots)), query, tuple(references)) for _ in range(POINTERS)]
    return made


def rate(vlm: LocalModel[Any], requests: Sequence[Request]) -> float:
    """Pointers per second of CPU time, with empty caches."""
    vlm.images.clear()
    engine, start = SupervisedEngine(vlm, CallTimer(3600), max_failed=0), time.process_time()
    answers = engine.answer(requests)
    assert all(answer.error is None for answer in answers)
    return len(requests) / (time.process_time() - start)


def main(families: Sequence[str]) -> None:
    print("| family | shots | references | tokens per prompt | plain | shared | ratio |\n|--|--:|--:|--:|--:|--:|--:|")
    for family in families:
        with TemporaryDirectory() as place:
            folder = Path(place)
            FAMILIES[family].build(folder)
            enlarge(folder, family)
            settings = VlmSettings(model=place, device="cpu", **FAMILIES[family].changes)
            shared = load_local(settings, 10**7, family=SharedPrefix)
            plain = load_local(settings, 10**7, family=AnyVlm)
            for shots in (2, 4):
                for references in ((), REFERENCES):
                    requests = requests_in(folder, shots, references)
                    some = random.Random(0).sample(requests, PLAIN)
                    slow, fast = rate(plain, some), rate(shared, requests)
                    tokens = shared.answer(requests[:1])[0].prompt_tokens
                    cells = (
                        family,
                        shots,
                        len(references),
                        tokens,
                        f"{slow:.2f}",
                        f"{fast:.2f}",
                        f"{fast / slow:.1f}×",
                    )
                    print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:] or list(SIZES))

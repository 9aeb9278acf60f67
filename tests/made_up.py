"""A dataset with predictions, a run and RL data that were never computed: everything that a page shows, at will."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from icdsel.artefacts.predictions import predictions_dir
from icdsel.comparison.compare import compare
from icdsel.data.datasets import load_split
from icdsel.errors import DataError
from icdsel.page.content import Content, collect
from icdsel.settings.loading import Settings, load_settings
from icdsel.store.files import write_json
from icdsel.store.fingerprints import fingerprint_examples, fingerprint_file

RUN = "v3_RandSampler_tiny-vlm_grpo-epochs-1"
POLICY = f"policy-{RUN}-grpo_epoch1"
SEEDS = (f"policy-{RUN}_train-seed-43-grpo_epoch1", "random-43", "random-44")
SELECTORS = (POLICY, "nearest-both", "nearest-image", "nearest-question", "random-42", "zero-shot")
QUERIES = range(9000, 10000)

EVIL = (
    '<script>window.hacked = 1</script></script><img src=x onerror="window.hacked = 2"> \'single\' "double" & {{ 7*7 }}'
)


def make_settings(folder: Path) -> Settings:
    """Of a dataset of JSON lines in `folder`."""
    return load_settings(
        {
            "data": {"dataset": str(folder / "made.jsonl"), "results_dir": str(folder / "results")},
            "vlm": {"model": "tiny-vlm"},
        }
    )


def write_dataset(folder: Path, queries: int, train: int = 40, question: str = "What colour is it?") -> None:
    """`queries` validation examples and `train` training examples, each with an image of one colour."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for split, ids in (("train", range(train)), ("validation", QUERIES[:queries])):
        for i in ids:
            Image.new("RGB", (200, 100 + i % 90), (i % 256, 120, (7 * i) % 256)).save(folder / f"images/{i}.png")
            answers = [f"colour {i % 5}"] * 9 + ["unsure"]
            lines.append(
                {"question_id": i, "image": f"images/{i}.png", "question": question, "answers": answers, "split": split}
                | {"answer_type": "number" if i % 2 else "other"}
            )
    (folder / "made.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def write_predictions(settings: Settings, name: str, records: Sequence[Mapping[str, Any]], /, **side: Any) -> None:
    """Predictions of one row, as `infer` leaves them; `side` is added to their metadata, `inputs` to their identity."""
    folder = predictions_dir(settings)
    folder.mkdir(parents=True, exist_ok=True)
    selector = name.split("-")[0] if name.startswith(("policy", "random")) else name
    path = folder / f"{name}_validation.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    inputs = {"dataset": _fingerprint(settings, "train"), "queries": _fingerprint(settings, "validation")}
    identity = inputs | {"split": "validation", "selector": selector} | side.pop("inputs", {})
    write_json(path.with_suffix(".meta.json"), {"identity": identity, "name": name, "set": "validation", **side})


def _fingerprint(settings: Settings, split: str) -> str:
    """What predictions say of a split that they chose from, or answered."""
    try:
        return fingerprint_examples(load_split(settings.data, split))
    except DataError:  # none was made
        return "made"


def choose(
    name: str, queries: int, shots: Sequence[int], train: int = 40, prediction: str = "colour 1"
) -> list[dict[str, Any]]:
    """Choices and accuracies drawn with the name as the seed."""
    rng = random.Random(name)
    return [
        {
            "question_id": question_id,
            "shots": count,
            "icds": rng.sample(range(train), count),
            "prediction": prediction,
            "accuracy": rng.choice([0.0, 0.6, 1.0]),
        }
        for count in ((0,) if name == "zero-shot" else shots)
        for question_id in QUERIES[:queries]
    ]


def write_run(settings: Settings, name: str = RUN) -> Path:
    """A run of two RCE epochs and one of GRPO, and the RL data that it names."""
    folder = settings.dataset_dir / "model_cpk" / name
    folder.mkdir(parents=True)
    data = settings.dataset_dir / "generated_data" / "rl_data_made.jsonl"
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(f"{json.dumps(group)}\n" for group in rl_groups()))
    epochs = [
        {
            "phase": "rce",
            "epoch": i,
            "rce_loss": 5 - i,
            "val_loss": 5.1 - i,
            "expected_reward": 1.0,
            "oracle_share": 0.5,
        }
        for i in (1, 2)
    ]
    epochs.append(
        {"phase": "grpo", "epoch": 1, "grpo_loss": -0.01, "val_loss": 3.0, "expected_reward": 1.2, "oracle_share": 0.6}
        | {"kl": 0.01, "std_advantage": 0.7, "no_signal_share": 0.25}
    )
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(epoch)}\n" for epoch in epochs))
    (folder / "grpo_epoch1.pt").write_bytes(name.encode())
    inputs = {"rl_data": [fingerprint_file(data)]}
    write_json(folder / "run.json", {"identity": inputs, "settings": {"reward": {}}, "rl_data": [str(data)]})
    return folder


def by_checkpoint(run: Path) -> dict[str, Any]:
    """What the metadata of predictions say of the checkpoint that chose."""
    path = run / "grpo_epoch1.pt"
    return {"checkpoint": str(path), "inputs": {"checkpoint": fingerprint_file(path)}}


def rl_groups() -> list[dict[str, Any]]:
    """Four queries: no pointer correct, some, some with graded accuracies, all alike."""

    def candidate(pointer: list[int], method: str, accuracy: float) -> dict[str, Any]:
        return {"pointer": pointer, "gen_method": method, "vqa_correct": int(accuracy > 0), "vqa_acc_score": accuracy}

    made = [
        [("cosine-beam", 0.0), ("retrieval", 0.0), ("random", 0.0)],
        [("cosine-beam", 1.0), ("retrieval", 0.0), ("random", 0.0)],
        [("cosine-beam", 0.6), ("retrieval", 1.0), ("cosine-beam", 1.0)],
        [("cosine-beam", 1.0), ("retrieval", 1.0)],
    ]
    return [
        {
            "question_id": q,
            "image_id": q,
            "question": "?",
            "answers": ["a"] * 10,
            "candidate_pool_ids": [10, 11, 12, 13, 14],
            "pointer_candidates": [candidate([10 + i, 11 + i], *inputs) for i, inputs in enumerate(group)],
        }
        for q, group in enumerate(made)
    ]


def made_content(
    folder: Path, queries: int = 12, shots: Sequence[int] = (1, 2), more: Sequence[str] = (), **how: str
) -> Content:
    """Everything at once, with `more` selectors; `how` may give `question` and `prediction`."""
    settings = make_settings(folder)
    write_dataset(folder, queries, **({"question": how["question"]} if "question" in how else {}))
    run = write_run(settings)
    for name in (*SELECTORS, *more):
        side = by_checkpoint(run) if name == POLICY else {}
        prediction = how.get("prediction", "colour 1")
        write_predictions(settings, name, choose(name, queries, shots, prediction=prediction), **side)
    return collect(settings, compare(settings))

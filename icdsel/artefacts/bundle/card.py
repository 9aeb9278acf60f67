"""The model card of a bundle: what it is, how good, and how to use it, for people and for the hub."""

from collections.abc import Mapping, Sequence
from typing import Any

from icdsel.artefacts.bundle.manifest import EncoderModel, Manifest
from icdsel.tasks.base import TASKS

_IMAGES = {
    "full": "The images of the candidates are in it.",
    "thumbnails": "Small copies of the candidates' images are in it; prompts show these.",
    "none": "The candidates' images are not in it: say where they are with `--image-dir`, or `image_dir=` in Python.",
}


def card(manifest: Manifest) -> str:
    """The text of `README.md`, with the header that the hub reads."""
    data = manifest.settings["data"]
    task = TASKS.named(data["task"]).named_by(data["metric"])
    parts = [_header(manifest), _about(manifest), "## Results\n", f"{manifest.headline or _NOTHING_COMPARED}\n"]
    if rows := [row for row in manifest.figures if row.get("accuracy") is not None]:
        parts += [f"{task.score_name} with its 95 % interval, and the difference to a reference row.\n", _table(rows)]
    return "\n".join([*parts, "", _use(manifest), _limits(manifest)])


_NOTHING_COMPARED = "The policy was not compared with anything before it was exported."


def _header(manifest: Manifest) -> str:
    lines = ["library_name: icdsel", "tags:", "- in-context-learning", "- demonstration-selection", "- vision-language"]
    if manifest.licence and manifest.licence.replace("-", "").replace(".", "").isalnum():
        lines.insert(0, f"license: {manifest.licence.lower()}")
    return "\n".join(["---", *lines, "---", ""])


def _about(manifest: Manifest) -> str:
    encoder = manifest.encoder
    features = f"the image and text features of {encoder.name}" if encoder.of_vlm else encoder.name
    facts = {
        "Dataset of the candidates": f"{_line(manifest.dataset)}, {manifest.candidates:,} examples",
        "Trained with the answers of": f"{_line(manifest.vlm.name)} ({manifest.vlm.dtype})",
        "Trained to show": f"up to {manifest.shots} demonstrations, chosen from {_pools(manifest.pool_size)}",
        "Encoder": f"{_line(features)} (`{encoder.fingerprint}`)",
        "Run": _line(manifest.run),
        "Licence": _line(manifest.licence) or "not stated",
        "Written by": f"icdsel {_line(manifest.icdsel)}",
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])
    return (
        f"# {_line(manifest.name)}\n\nA selector of in-context demonstrations for vision-language models: for a query "
        "(an image and a question) it chooses examples to show in the prompt. It was trained with icdsel on the "
        f"answers that a VLM gave. {_needs(encoder)}\n\n{table}\n\n{_IMAGES[manifest.images]}\n"
    )


def _needs(encoder: EncoderModel) -> str:
    if not encoder.of_vlm:
        return "Choosing needs no VLM and no GPU."
    return f"Choosing needs {_line(encoder.name)}, whose features are the embeddings, and no other VLM."


def _pools(size: str) -> str:
    return "the whole training set" if size == "all" else f"pools of {size} candidates"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| selector | shots | pool | score | difference | to |", "|---|---|---|---|---|---|"]
    for row in rows:
        score = _span(row, "accuracy", "low", "high", "")
        gain = _span(row, "difference", "difference_low", "difference_high", "+")
        pool = row.get("pool") or ""
        reference = _line(str(row.get("reference"))) if gain else ""
        name = _line(str(row.get("label") or row.get("name")))
        lines.append(f"| {name} | {row.get('shots')} | {pool} | {score} | {gain} | {reference} |")
    return "\n".join(lines)


def _span(row: Mapping[str, Any], value: str, low: str, high: str, sign: str) -> str:
    numbers = [row.get(key) for key in (value, low, high)]
    if not isinstance(numbers[0], int | float):
        return ""
    texts = [format(number, f"{sign}.1f") if isinstance(number, int | float) else "?" for number in numbers]
    texts = [text.replace("-", "\N{MINUS SIGN}") for text in texts]
    return texts[0] if texts[1:] == ["?", "?"] else f"{texts[0]} ({texts[1]} … {texts[2]})"


def _use(manifest: Manifest) -> str:
    return f"""## Use

```python
from icdsel import Selector

selector = Selector.load("THIS_FOLDER")  # or "hub:owner/name"
choice = selector.choose("photo.jpg", "What is shown?", shots={min(2, manifest.shots)})
print(choice.icds, choice.scores)  # the chosen examples, and their log-probs
print(choice.messages)  # chat messages for any VLM that speaks OpenAI's protocol
```

```
icdsel choose --run THIS_FOLDER --image photo.jpg --question "What is shown?"
icdsel serve --run THIS_FOLDER --vlm-url http://localhost:8000/v1
```
"""


def _limits(manifest: Manifest) -> str:
    lines = ["## Limits", ""]
    lines.append(
        "The choice was learnt from one VLM on one dataset. For another VLM, other questions or other images, compare "
        "it with nearest neighbours first: `icdsel infer`, `icdsel compare`."
    )
    if manifest.pool_size != "all":
        lines.append(
            f"\nIt was trained within pools of {manifest.pool_size} candidates and chooses here from all "
            f"{manifest.candidates:,}."
        )
    return "\n".join([*lines, ""])


def _line(text: str) -> str:
    """A text on one line of a table, without markup of its own."""
    return " ".join(text.replace("|", "/").replace("<", "(").replace(">", ")").split())

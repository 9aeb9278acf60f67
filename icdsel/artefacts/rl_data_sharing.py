"""RL data for others: a copy without what is nobody else's business, its metadata, and a dataset card."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, NamedTuple

from icdsel import __version__
from icdsel.artefacts.bundle.manifest import portable_name
from icdsel.artefacts.rl_data import metadata_path, read_groups
from icdsel.errors import RlDataError
from icdsel.records import QueryGroup
from icdsel.store.files import digest_of, json_bytes
from icdsel.store.metadata import Metadata, read_metadata

FILE = "rl_data.jsonl"
METADATA = metadata_path(Path(FILE)).name
_NOT_SHARED = "the call failed; the reason is not shared"
_DESCRIBED = {
    "data": ("sampler", "pool_size", "task", "metric", "embed"),
    "proposals": ("query_split", "shots", "min_shots"),
}
"""Settings that say what the data are. Where they and the model lay is not said, nor how the machine was used."""


_TYPES = {int: "int64", str: "string"}


class Types(NamedTuple):
    """The types of question_ids and of image_ids, as the library `datasets` calls them."""

    question_id: str
    image_id: str


class SharedRlData(NamedTuple):
    """RL data as others get them.

    Attributes:
        lines: The content of the file: a line for each query.
        metadata: The content of the metadata file.
        queries: How many queries there are.
        pointers: How many scored pointers.
        methods: How many of them each proposal method found.
        dataset: The name of the dataset.
        vlm: The VLM that answered.
        inputs: Everything that decided the content.
        settings: What the data are, by table.
        types: The types of the ids; None if those of different lines differ.
        whole_split: Whether the pools are the whole training split.
    """

    lines: bytes
    metadata: bytes
    queries: int
    pointers: int
    methods: Mapping[str, int]
    dataset: str
    vlm: str
    inputs: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    types: Types | None
    whole_split: bool


def shared(path: Path) -> SharedRlData:
    """What others get of a complete file of RL data.

    Left out are reasons of failed calls, which may name files and servers, and unknown fields; an image_id that is a
    path of this machine is replaced by its digest. Everything else is as it was, to the byte.

    Raises:
        RlDataError: The file is missing, damaged or incomplete, or has no metadata.
    """
    metadata = _metadata(path)
    lines, methods = [], Counter[str]()
    of_questions, of_images, pools = set[type](), set[type](), set[bool]()
    for group, _ in read_groups(path, strict=True):
        mine = _cleaned(group)
        lines.append(json.dumps(mine.to_json(), ensure_ascii=False) + "\n")
        methods.update(candidate.method or "unknown" for candidate in mine.candidates)
        of_images.add(type(mine.image_id))
        of_questions |= {type(mine.question_id), *map(type, (*(mine.pool or ()), *mine.excluded))}
        pools.add(mine.pool is None)
    if not lines:
        raise RlDataError(f"{path} is empty: there is nothing to share")
    settings = {
        table: {name: metadata.settings[table][name] for name in names if name in metadata.settings.get(table, {})}
        for table, names in _DESCRIBED.items()
    }
    inputs = {name: _without_folders(value) for name, value in metadata.inputs.items()}
    vlm = portable_name(str(metadata.settings.get("vlm", {}).get("model", "an unknown VLM")))
    dataset = str(inputs.get("data.dataset", "an unknown dataset"))
    settings["data"]["dataset"], settings["vlm"] = dataset, {"model": vlm}
    environment = {"icdsel": metadata.environment.get("icdsel", __version__)}
    content = {"identity": inputs, "settings": settings, "environment": environment, "queries": len(lines)}
    one_type = all(len(found) == 1 for found in (of_questions, of_images, pools))
    return SharedRlData(
        lines="".join(lines).encode(),
        metadata=json_bytes(content, indent=1),
        queries=len(lines),
        pointers=methods.total(),
        methods=dict(methods.most_common()),
        dataset=dataset,
        vlm=vlm,
        inputs=inputs,
        settings=settings,
        types=Types(_TYPES[of_questions.pop()], _TYPES[of_images.pop()]) if one_type else None,
        whole_split=pools == {True},
    )


def _metadata(path: Path) -> Metadata:
    place = metadata_path(path)
    if not path.is_file():
        raise RlDataError(f"{path} does not exist: name a bundle's folder, or a file of RL data (icdsel gen-rl-data)")
    if not place.is_file():
        raise RlDataError(
            f"{place} is missing: RL data are shared with their metadata, which say what they were made from. Copy it "
            "too, or generate the data with `icdsel gen-rl-data`"
        )
    metadata = read_metadata(place)
    if metadata.queries is None:
        raise RlDataError(f"{place} does not say how many queries there are: {path} is not complete, or not RL data")
    return metadata


def _cleaned(group: QueryGroup) -> QueryGroup:
    candidates = tuple(
        candidate if candidate.error is None else replace(candidate, error=_NOT_SHARED)
        for candidate in group.candidates
    )
    image = group.image_id
    if isinstance(image, str) and _is_place(image):
        image = digest_of(image)[:32]
    return replace(group, candidates=candidates, image_id=image)


def _is_place(text: str) -> bool:
    """Whether a text is a path of one machine."""
    return text.startswith(("/", "~")) or PureWindowsPath(text).is_absolute()


def _without_folders(value: Any) -> Any:
    """A value of the metadata; paths keep their last part alone."""
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    if not isinstance(value, str) or not _is_place(value):
        return value
    return (PurePath(value) if "/" in value else PureWindowsPath(value)).name


# --- the card -----------------------------------------------------------------------------------------------


def card(data: SharedRlData, name: str, licence: str) -> str:
    """The text of `README.md`, with the header by which the hub and the library `datasets` read the file.

    Args:
        data: What it describes.
        name: `owner/name`.
        licence: Under which the data may be used; empty if that is not said.
    """
    title, described = name.partition("/")[2], data.settings["data"]
    facts = {
        "Queries": f"{data.queries:,} of the split {data.settings['proposals'].get('query_split', 'train')}",
        "Scored pointers": f"{data.pointers:,}",
        "Dataset": f"{_line(data.dataset)} (`{data.inputs.get('dataset', 'unknown')}`)",
        "Answered by": f"{_line(data.vlm)} (`{data.inputs.get('model', 'unknown')}`, {data.inputs.get('dtype', '')})",
        "Sampler": f"{described.get('sampler', '')}, pool size {described.get('pool_size', '')}",
        "Proposed by": ", ".join(f"{_line(method)} ({count:,})" for method, count in data.methods.items()),
        "Licence": _line(licence) or "not stated",
        "Written by": f"icdsel {__version__}",
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())])
    return f"""{_header(data, licence)}
# {_line(title)}

For each query (an image and a question of {_line(data.dataset)}), sequences of demonstrations, *pointers*, with the
answer that a VLM gave when it was shown them, and how good that answer is. A selector of demonstrations is trained on
them, with icdsel. There are no images here: `question_id` names examples of the dataset, which has them.

{table}

## Use

```
icdsel train --rl-data hub:{name} --dataset {_argument(data.dataset)}
```

```python
from datasets import load_dataset

queries = load_dataset("{name}", split="train")
```

## Fields

A line of `{FILE}` is a query:

* `question_id`, `image_id`, `question`, `answers`: the query, and the human answers
* `candidate_pool_ids`: the candidates that it could be shown, by `question_id`; `all` for the whole training split
  without `excluded_ids`
* `pointer_candidates`: the scored pointers. `pointer` has the demonstrations in prompt order, by `question_id`;
  `vqa_pred_answer` is the VLM's answer, `vqa_acc_score` its score, `vqa_correct` whether it counts as correct,
  `gen_method` who proposed the pointer. Others are described in icdsel's documentation (docs/files.md)

`{METADATA}` has all settings that decided the content.
"""


def _header(data: SharedRlData, licence: str) -> str:
    lines = ["tags:", "- icdsel", "- in-context-learning", "- demonstration-selection", "- vision-language"]
    if licence and licence.replace("-", "").replace(".", "").isalnum():
        lines.insert(0, f"license: {licence.lower()}")
    lines += ["configs:", "- config_name: default", "  data_files:", "  - split: train", f"    path: {FILE}"]
    if data.types:
        lines += ["dataset_info:", "  config_name: default", "  features:", *_features(data.types, data.whole_split)]
    return "\n".join(["---", *lines, "---", ""])


def _features(types: Types, whole_split: bool) -> Sequence[str]:
    """The types of the fields. Without them, a field that is null in the first lines would be read as null."""
    ids = types.question_id
    texts = {"gen_method": "string", "vqa_pred_answer": "string", "error": "string", "eval_failed": "bool"}
    whole = {"beam_rank": "int64", "vqa_correct": "int64", "prompt_tokens": "int64"}
    scores = (
        "vqa_acc_score",
        "vqa_gt_prob",
        "vqa_gt_prob_norm",
        "vqa_rel_token_f1",
        "vqa_rel_edit_sim",
        "vqa_rel_score",
    )
    kinds = texts | whole | dict.fromkeys(("logprob_score", "temperature", *scores), "float64")
    lines = [f"  - name: {name}\n    dtype: {kind}" for name, kind in types._asdict().items()]
    lines += ["  - name: question\n    dtype: string", "  - name: answers\n    list: string"]
    lines.append(f"  - name: candidate_pool_ids\n    {'dtype: string' if whole_split else f'list: {ids}'}")
    lines += [f"  - name: excluded_ids\n    list: {ids}", "  - name: task\n    dtype: string"]
    lines += ["  - name: pointer_candidates\n    list:", f"    - name: pointer\n      list: {ids}"]
    return [*lines, *(f"    - name: {name}\n      dtype: {kind}" for name, kind in kinds.items())]


def _line(text: str) -> str:
    """A text on one line of a table, without markup of its own."""
    return " ".join(text.replace("|", "/").replace("<", "(").replace(">", ")").split())


def _argument(dataset: str) -> str:
    """A dataset as it is given on the command line, if that can be known from its name."""
    return dataset if dataset.replace("-", "").replace("_", "").isalnum() else "DATASET"

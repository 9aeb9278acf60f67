"""Where the files of a model are: a folder, or a name on the hub that is downloaded once. Runs no code in them."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub

SAFELY = {"local_files_only": True, "trust_remote_code": False}
"""How transformers reads what `model_folder` gives, unless a setting trusts its code."""
DESCRIPTIONS = ("*.json", "*.jinja", "*.txt", "*.model")
SAFE_WEIGHTS = "*.safetensors"
SAMPLED_FROM = 2**26  # bytes: smaller weights are read whole for their fingerprint, of larger ones a part of each MiB
OLD_WEIGHTS = "pytorch_model*.bin"
CODE = "*.py"


def model_folder(name: str, old_weights: bool = False, code: bool = False) -> Path:
    """The folder with a model's files; a name on the hub is downloaded unless it was before.

    Args:
        name: A folder, or `owner/name` on the hub.
        old_weights: Whether weights of before safetensors will do, which torch reads with `weights_only`.
        code: Whether Python files of a model on the hub are downloaded too.

    Raises:
        OSError: There is no such folder, and no such name that this machine can reach.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise OSError("it is no folder, and no name on the Hugging Face hub (owner/name)")
    wanted = (SAFE_WEIGHTS, OLD_WEIGHTS) if old_weights else (SAFE_WEIGHTS,)
    with quiet():
        try:
            known = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
            if any(_is_whole(known, weights) for weights in wanted) and (not code or _has_its_code(known)):
                return known
        except Exception:  # noqa: BLE001 - whatever its cache lacks, the hub is asked next
            pass
        try:
            huggingface_hub.HfApi().model_info(name, timeout=10)  # one question: a download repeats its own for long
            for weights in wanted:
                patterns = [*DESCRIPTIONS, weights, *([CODE] if code else [])]
                folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
                if _is_whole(folder, weights):
                    break
        except Exception as error:  # noqa: BLE001 - the hub's library has changed its HTTP client, and so its errors
            raise OSError(reason_of(error)) from None
    return folder


def _is_whole(folder: Path, weights: str) -> bool:
    """Whether a downloaded folder has a configuration and all of its weights."""
    files = list(folder.glob(weights))
    for index in folder.glob(f"{weights.removeprefix('pytorch_model')}.index.json"):
        files += [folder / shard for shard in set(json.loads(index.read_text())["weight_map"].values())]
    return (folder / "config.json").is_file() and bool(files) and all(file.is_file() for file in files)


def names_code(folder: Path) -> bool:
    """Whether files of a model name Python code of its own."""
    return any(held.get("auto_map") for held in _objects(folder))


def names_kernel(folder: Path) -> bool:
    """Whether files of a model name code on the hub (owner/name) that transformers would run to compute attention."""
    implementations = [
        value for held in _objects(folder) for name, value in held.items() if name.endswith("attn_implementation")
    ]
    return "/" in json.dumps(implementations)


def _objects(folder: Path) -> list[dict[str, Any]]:
    """Every object in the configuration files of a model, inner ones too."""
    found: list[dict[str, Any]] = []

    def keep(held: dict[str, Any]) -> dict[str, Any]:
        found.append(held)
        return held

    for path in folder.glob("*config.json"):
        json.loads(path.read_text(encoding="utf-8"), object_hook=keep)
    return found


def _has_its_code(folder: Path) -> bool:
    """Whether the Python files are there of a model that was downloaded, if it names any."""
    return any(folder.glob(CODE)) or not names_code(folder)


def reason_of(error: Exception) -> str:
    """Why something failed, for a sentence: the first line of what the library says, or the error's kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def fingerprint(folder: Path, code: bool = False) -> str:
    """Of every file that says how to read an input, and of the weights; with `code`, of Python files too.

    Of weights above 64 MiB the first 4 KiB of every MiB count: training moves whole matrices, so that no other
    revision is alike in all of them.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if any(path.match(pattern) for pattern in (*DESCRIPTIONS, *([CODE] if code else []))):
            digest.update(path.name.encode() + path.read_bytes())
        elif path.match(SAFE_WEIGHTS) or path.match(OLD_WEIGHTS):
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}:".encode())
            step = size if size < SAMPLED_FROM else 2**20
            with path.open("rb") as file:
                for start in range(0, size, step or 1):
                    file.seek(start)
                    digest.update(file.read(size if step == size else 2**12))
    return digest.hexdigest()[:16]


@contextmanager
def quiet() -> Iterator[None]:
    """No notes, warnings or progress bars of the libraries that load models: what matters raises."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        hub.setLevel(level)

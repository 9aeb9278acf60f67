"""Where the files of a model are: a folder, or a name on the hub that is downloaded once. Runs no code in them."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch

from icdsel.store.json_reading import parsed
from icdsel.store.reading import open_file, read_whole

SAFELY = {"local_files_only": True, "trust_remote_code": False}
"""How transformers reads what `model_folder` gives, unless a setting trusts its code."""
DESCRIPTIONS = ("*.json", "*.jinja", "*.txt", "*.model")
SAFE_WEIGHTS = "*.safetensors"
SAMPLED_FROM = 2**26  # bytes: smaller weights are read whole for their fingerprint, of larger ones a part of each MiB
OLD_WEIGHTS = "pytorch_model*.bin"
CODE = "*.py"
_LARGEST_JSON = 256 * 2**20  # bytes of a description at most; tokenizers have some 20 MB
_LAYERS = re.compile(r"layers$|^depths?$|^n_layer$")
_MOST_LAYERS = 1000
_PARAMETERS_A_BYTE = 4  # at most; packed weights have two
# Keys with which transformers reads further files, or one attribute of a configuration as another.
_LEADING_ELSEWHERE = {"configuration_files", "audio_tokenizer", "audio_tokenizer_name_or_path", "attribute_map"}
_BUILT_IN = (None, "eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm")  # ways to compute a layer


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
        files += [folder / shard for shard in _shards(index)]
    return (folder / "config.json").is_file() and bool(files) and all(file.is_file() for file in files)


def _shards(index: Path) -> set[str]:
    """The files in an index of weights.

    Raises:
        ValueError: It is damaged, or names a file that is not beside it.
    """
    held = _value(index)
    shards = held.get("weight_map") if isinstance(held, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) and name for name in shards.values()):
        raise ValueError(f"{index.name} is damaged: it has no weight_map of file names")
    if outside := [name for name in shards.values() if Path(name).name != name]:
        raise ValueError(f"{index.name} names a file that is not beside it, {outside[0][:80]!a}")
    return set(shards.values())


def require_valid(folder: Path) -> None:
    """Refuses model files that name files elsewhere or rename attributes, or a model too deep to be one.

    Raises:
        ValueError: It says which.
    """
    for path in (found for pattern in DESCRIPTIONS for found in folder.glob(pattern)):
        if not path.is_file() or path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"{path.name} is no file, or has more than {_LARGEST_JSON:,} bytes")
    for index in folder.glob("*.index.json"):
        _shards(index)
    for held in _objects(folder):
        if leading := [name for name in sorted(_LEADING_ELSEWHERE & held.keys()) if held[name]]:
            raise ValueError(f"its configuration leads elsewhere ({leading[0]}), which is not followed")
        for name, value in held.items():
            if _LAYERS.search(name) and isinstance(value, int) and value > _MOST_LAYERS:
                raise ValueError(f"its configuration tells of more than {_MOST_LAYERS} layers ({name[:40]})")


def require_weights(folder: Path, auto: Any, config: Any) -> None:
    """Refuses a model whose configuration describes far more than its files hold: what lacks would be made anew.

    Args:
        folder: Where the files are.
        auto: The class of transformers that loads it.
        config: The configuration.

    Raises:
        ValueError: It tells how much there is of each.
    """
    with torch.device("meta"):  # sizes alone
        parameters = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    size = sum(path.stat().st_size for weights in (SAFE_WEIGHTS, OLD_WEIGHTS) for path in folder.glob(weights))
    if parameters > _PARAMETERS_A_BYTE * size:
        raise ValueError(f"its configuration describes {parameters:,} parameters, its weights have {size:,} bytes")


def _value(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        return parsed(read_whole(path, _LARGEST_JSON))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None


def names_code(folder: Path) -> bool:
    """Whether files of a model name Python code of its own."""
    return any(held.get("auto_map") for held in _objects(folder))


def names_kernel(folder: Path) -> bool:
    """Whether files of a model name code on the hub (owner/name) that transformers would run to compute attention."""
    implementations = [
        value for held in _objects(folder) for name, value in held.items() if name.endswith("attn_implementation")
    ]
    return "/" in json.dumps(implementations)


def takes_kernel(config: Any) -> bool:
    """Whether a configuration, or one in it, has a layer computed by what is neither transformers' own nor installed.

    What it names in the end counts, by whatever key of its file it came there.
    """
    from transformers import PretrainedConfig
    from transformers.utils import is_flash_attn_2_available

    named = [getattr(config, f"_{what}_implementation", None) for what in ("attn", "experts")]
    known = (*_BUILT_IN, *(["flash_attention_2"] if is_flash_attn_2_available() else []))
    inner = [value for value in vars(config).values() if isinstance(value, PretrainedConfig)]
    return any(name not in known for name in named) or any(map(takes_kernel, inner))


def _objects(folder: Path) -> list[dict[str, Any]]:
    """Every object in the configuration files of a model, inner ones too."""
    left = [_value(path) for path in folder.glob("*config.json")]
    found: list[dict[str, Any]] = []
    while left:
        held = left.pop()
        if isinstance(held, dict):
            found.append(held)
        left += held.values() if isinstance(held, dict) else held if isinstance(held, list) else ()
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
            digest.update(os.fsencode(path.name) + read_whole(path, _LARGEST_JSON))
        elif path.match(SAFE_WEIGHTS) or path.match(OLD_WEIGHTS):
            size = path.stat().st_size
            digest.update(os.fsencode(path.name) + f":{size}:".encode())
            step = size if size < SAMPLED_FROM else 2**20
            with open_file(path) as file:
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
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # of the tokenizers, written in Rust: no Exception
            raise RuntimeError(str(error)) from error
        raise
    finally:
        hub.setLevel(level)

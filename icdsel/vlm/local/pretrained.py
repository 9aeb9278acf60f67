"""Finds the files of a model and validates them before transformers reads them, without running code in them."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.utils import filter_repo_objects

from icdsel.console import err, note
from icdsel.errors import reason_of
from icdsel.store.json_reading import parsed
from icdsel.store.reading import open_file, read_whole

SAFE_LOADING = {"local_files_only": True, "trust_remote_code": False}
"""Arguments with which transformers reads a model's folder, unless a setting trusts its code."""
DESCRIPTIONS = ("*.json", "*.jinja", "*.txt", "*.model")
SAFE_WEIGHTS = "*.safetensors"
SAMPLED_FROM = 2**26  # bytes: for files of weights of at least this size, the fingerprint reads a part of each MiB
OLD_WEIGHTS = "pytorch_model*.bin"
CODE = "*.py"
_LARGEST_JSON = 256 * 2**20  # bytes; tokenizer files have about 20 MB
_LAYERS = re.compile(r"layers$|^depths?$|^n_layer$")
_MOST_LAYERS = 1000
_PARAMETERS_PER_BYTE = 4  # upper limit; 4-bit weights have two
# Keys that make transformers read other files, or rename attributes of a configuration.
_REDIRECTIONS = {"configuration_files", "audio_tokenizer", "audio_tokenizer_name_or_path", "attribute_map"}
_BUILT_IN = (None, "eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm")  # implementations of layers
_FLASH = re.compile(r"flash_attention_\d")
_INSTALLED = "is_flash_attn_{}_available"  # of transformers


def model_folder(name: str, old_weights: bool = False, code: bool = False) -> Path:
    """Finds the folder with a model's files; a model on the hub is downloaded once.

    Args:
        name: A folder, or `owner/name` on the hub.
        old_weights: Whether weights older than safetensors are accepted, which torch reads with `weights_only`.
        code: Whether Python files of a model on the hub are downloaded too.

    Raises:
        OSError: There is neither such a folder nor such a model on the hub, or the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise OSError("it is neither a folder nor a name on the Hugging Face hub (owner/name)")
    wanted = (SAFE_WEIGHTS, OLD_WEIGHTS) if old_weights else (SAFE_WEIGHTS,)
    with quiet():
        try:
            cached = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
            if any(_is_complete(cached, weights) for weights in wanted) and (not code or _has_its_code(cached)):
                return cached
        except Exception:  # noqa: BLE001 - whatever is wrong with the cache, the hub is queried next
            pass
    with quiet(bars=err.is_terminal):
        try:
            # It fails early, where a download would keep retrying.
            files = huggingface_hub.HfApi().model_info(name, timeout=10, files_metadata=True).siblings or []
            patterns = [[*DESCRIPTIONS, weights, *([CODE] if code else [])] for weights in wanted]
            size = next(filter(None, (_size(files, [weights]) for weights in wanted)), 0) + _size(files, DESCRIPTIONS)
            shown = f"{size / 1e9:.1f} GB" if size else "of unknown size"
            note(f"Downloading {name} ({shown}), once, to {huggingface_hub.constants.HF_HUB_CACHE}")
            for weights, allowed in zip(wanted, patterns, strict=True):
                folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=allowed))
                if _is_complete(folder, weights):
                    break
        except Exception as error:  # noqa: BLE001 - errors depend on the version of the hub's library
            raise OSError(reason_of(error)) from None
    return folder


def _size(files: Sequence[Any], patterns: Sequence[str]) -> int:
    """The size in bytes of those files on the hub whose names match a pattern."""
    matching = filter_repo_objects(files, allow_patterns=list(patterns), key=lambda file: str(file.rfilename))
    return sum(file.size or 0 for file in matching)


def _is_complete(folder: Path, weights: str) -> bool:
    """Whether a downloaded folder has a configuration and all of its weights."""
    files = list(folder.glob(weights))
    for index in folder.glob(f"{weights.removeprefix('pytorch_model')}.index.json"):
        files += [folder / shard for shard in _shards(index)]
    return (folder / "config.json").is_file() and bool(files) and all(file.is_file() for file in files)


def _shards(index: Path) -> set[str]:
    """The files listed in an index of weights.

    Raises:
        ValueError: The index is damaged, or lists a file in another folder.
    """
    content = _value(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) and name for name in shards.values()):
        raise ValueError(f"{index.name} is damaged: it has no weight_map of file names")
    if outside := [name for name in shards.values() if Path(name).name != name]:
        raise ValueError(f"{index.name} names a file that is not beside it, {outside[0][:80]!a}")
    return set(shards.values())


def require_valid(folder: Path) -> None:
    """Rejects files that refer to other files or rename attributes, and models with too many layers.

    Raises:
        ValueError: A file is rejected; the message names the file or key.
    """
    for path in (path for pattern in DESCRIPTIONS for path in folder.glob(pattern)):
        if not path.is_file() or path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"{path.name} is not a file, or has more than {_LARGEST_JSON:,} bytes")
    for index in folder.glob("*.index.json"):
        _shards(index)
    for content in _objects(folder):
        if keys := [name for name in sorted(_REDIRECTIONS & content.keys()) if content[name]]:
            raise ValueError(f"its configuration refers to something else ({keys[0]}), which is not followed")
        for name, value in content.items():
            if _LAYERS.search(name) and isinstance(value, int) and value > _MOST_LAYERS:
                raise ValueError(f"its configuration has more than {_MOST_LAYERS} layers ({name[:40]})")


def require_weights(folder: Path, auto: Any, config: Any) -> None:
    """Rejects a model whose configuration describes far more parameters than its files contain.

    transformers would allocate and initialise the missing ones.

    Args:
        folder: The model's files.
        auto: The transformers class that loads it.
        config: The configuration.

    Raises:
        ValueError: The model is rejected; the message states both sizes.
    """
    with torch.device("meta"):  # allocates nothing
        parameters = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    size = sum(path.stat().st_size for weights in (SAFE_WEIGHTS, OLD_WEIGHTS) for path in folder.glob(weights))
    if parameters > _PARAMETERS_PER_BYTE * size:
        raise ValueError(f"its configuration describes {parameters:,} parameters, its weights have {size:,} bytes")


def _value(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        return parsed(read_whole(path, _LARGEST_JSON))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None


def model_type(folder: Path) -> str | None:
    """The kind of model that a folder's configuration names; None if there is none.

    Raises:
        ValueError: The configuration cannot be read.
    """
    path = folder / "config.json"
    content = _value(path) if path.exists() else {}
    return content.get("model_type") if isinstance(content, dict) else None


def names_code(folder: Path) -> bool:
    """Whether a model's files refer to custom Python code."""
    return any(content.get("auto_map") for content in _objects(folder))


def names_kernel(folder: Path) -> bool:
    """Whether a model's files refer to code on the hub (owner/name) that transformers would run for attention."""
    implementations = [
        value for content in _objects(folder) for name, value in content.items() if name.endswith("attn_implementation")
    ]
    return "/" in json.dumps(implementations)


def uses_kernel(config: Any) -> bool:
    """Whether a configuration or a nested one selects code for layers that is not transformers'.

    Flash attention is a package, not such code: see `replace_flash_attention`. The loaded configuration is checked, so
    it does not matter under which key a file refers to the code.
    """
    named = [*_implementations(config, "attn"), *_implementations(config, "experts")]
    return any(name not in _BUILT_IN and not _FLASH.fullmatch(str(name)) for name in named)


def _implementations(config: Any, layer: str) -> Iterator[Any]:
    """What a configuration and those nested in it select for a kind of layer."""
    from transformers import PretrainedConfig

    yield getattr(config, f"_{layer}_implementation", None)
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _implementations(value, layer)


def replace_flash_attention(config: Any, model: Any, name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Selects PyTorch's own attention in a configuration, with a note, if it asks for one that cannot be used.

    Otherwise transformers would fail, or load a kernel from the hub if the package `kernels` is installed.

    Args:
        config: The configuration; those nested in it change too.
        model: The class of the model; None if it is not known.
        name: The name that the user specified.
        device: The device that the model will run on.
        dtype: The dtype that it will compute in.
    """
    from transformers.utils import import_utils

    asked = [str(kind) for kind in _implementations(config, "attn") if _FLASH.fullmatch(str(kind))]
    lacking = [kind for kind in asked if not getattr(import_utils, _INSTALLED.format(kind[-1]), lambda: False)()]
    if not asked:
        return
    if lacking:
        install = " (pip install flash-attn)" if lacking[0] == "flash_attention_2" else ""
        why = f"{lacking[0]}, which is not installed{install}"
    elif device.type == "cpu" or dtype == torch.float32:
        why = f"{asked[0]}, which needs a GPU and --dtype bfloat16"
    else:
        return
    own = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
    note(f"{name} asks for {why}: using PyTorch's attention ({own}) instead, with the same results up to rounding")
    config._attn_implementation = own


def missing_package(error: BaseException) -> str | None:
    """Why a model cannot be loaded for lack of a package, and how to install it; None for other errors."""
    text = " ".join(str(error).split())
    named = re.search(r"pip install ['\"`]?([\w.\[\]-]+)", text)
    if not named and not isinstance(error, ImportError):
        return None
    package = named[1] if named else getattr(error, "name", None)
    install = f". Install it: pip install {package}" if package else ""
    return f"it needs a package that is not installed: {text[:300].rstrip('. ')}{install}"


def _objects(folder: Path) -> list[dict[str, Any]]:
    """All objects in the configuration files of a model, including nested ones."""
    values = [_value(path) for path in folder.glob("*config.json")]
    objects: list[dict[str, Any]] = []
    while values:
        value = values.pop()
        if isinstance(value, dict):
            objects.append(value)
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return objects


def _has_its_code(folder: Path) -> bool:
    """Whether a downloaded model includes its Python files, if it needs any."""
    return any(folder.glob(CODE)) or not names_code(folder)


def fingerprint(folder: Path, code: bool = False) -> str:
    """A hash of the weights and of every file that determines how inputs are read; with `code`, also of Python files.

    In files of weights of 64 MiB or more, only the first 4 KiB of every MiB are read. Training changes whole matrices,
    so two revisions differ in some of these.
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
def quiet(bars: bool = False) -> Iterator[None]:
    """Hides the logs, warnings and progress bars of the libraries that load models; failures are raised as exceptions.

    What was shown before is shown again afterwards.

    Args:
        bars: Whether progress bars are shown.
    """
    from transformers.utils import logging as transformers_logging

    had_bars = transformers_logging.is_progress_bar_enabled()
    hidden = {transformers_logging.get_logger("transformers"): logging.ERROR}
    hidden[logging.getLogger("huggingface_hub")] = logging.CRITICAL
    before = {logger: logger.level for logger in hidden}
    _show_bars(bars)
    for logger, level in hidden.items():
        logger.setLevel(level)
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # from tokenizers, written in Rust; it is not an Exception
            raise RuntimeError(str(error)) from error
        raise
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
        _show_bars(had_bars)


def _show_bars(shown: bool) -> None:
    """Shows or hides the progress bars of transformers and of the hub's library."""
    from transformers.utils import logging as transformers_logging

    (transformers_logging.enable_progress_bar if shown else transformers_logging.disable_progress_bar)()

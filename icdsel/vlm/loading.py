"""Finds a vision-language model and reads it: the tiny VLM, a folder, or a name on the Hugging Face hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from icdsel.errors import VlmError
from icdsel.settings.presets import MODEL_ALIASES, TINY_VLM
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.base import Vlm
from icdsel.vlm.pretrained import (
    CODE,
    SAFELY,
    fingerprint,
    model_folder,
    names_code,
    names_kernel,
    quiet,
    reason_of,
    require_valid,
    require_weights,
    takes_kernel,
)

TINY_VLM_DIR = Path(__file__).parent.parent / "tiny_vlm" / "weights"
OWN_CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM")
"""As what a model may name a class of its own; those that transformers has are the first."""


@dataclass(frozen=True)
class VlmIdentity:
    """What the results of a VLM depend on, beside its settings.

    Attributes:
        fingerprint: Of the model's files.
        dtype: Arithmetic of the model: "float32" or "bfloat16".
    """

    fingerprint: str
    dtype: str


def resolve_device(name: str, flag: str = "--device") -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU. A GPU has its number.

    Args:
        name: The name in the settings.
        flag: The setting's flag, for the message.

    Raises:
        VlmError: an unknown device, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise VlmError(f"unknown device {name!r}: use {flag} auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise VlmError(f"device {name!r} is not there ({torch.cuda.device_count()} GPUs found): use {flag} cpu")
    return torch.device("cuda:0") if device == torch.device("cuda") else device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(name, automatic)


def identify_vlm(settings: VlmSettings) -> VlmIdentity:
    """What `load_vlm` would load, without loading weights: fingerprint and dtype are those of the loaded model.

    Raises:
        VlmError: The model does not exist, or its files cannot be read.
    """
    name = settings.model or TINY_VLM
    dtype = resolve_dtype(settings.dtype, resolve_device(settings.device))
    try:
        files = fingerprint(_folder(name, settings.trust_remote_code), code=settings.trust_remote_code)
    except Exception as error:
        raise _cannot_load(name, error) from error
    return VlmIdentity(files, str(dtype).removeprefix("torch."))


def load_vlm(settings: VlmSettings, max_image_pixels: int) -> Vlm:
    """Load the model that `settings.model` names: the tiny VLM, a folder, or a name on the Hugging Face hub.

    Code that comes with a model is run only where `settings.trust_remote_code` says so; weights are read from
    safetensors only. A model that was downloaded before is loaded without the network.

    Args:
        settings: Which model, where, and how it is asked.
        max_image_pixels: Images of more pixels than this are refused as damaged.

    Raises:
        VlmError: the model is not there, is damaged, needs code of its own that is not trusted, or cannot be asked
            about images.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration  # takes a while

    from icdsel.vlm.any_vlm import OtherVlm
    from icdsel.vlm.qwen_vl import QwenVl

    name = settings.model
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    try:
        folder = _folder(name, settings.trust_remote_code)
        with quiet():
            processor, model = _read(name, folder, dtype, settings.trust_remote_code)
        inputs = fingerprint(folder, code=settings.trust_remote_code)
        kind = QwenVl if type(model) is Qwen2_5_VLForConditionalGeneration else OtherVlm
        with quiet():  # it is tried
            return kind(model.to(device).eval(), processor, settings, name, inputs, max_image_pixels)
    except _NeedsCode:
        code = ", ".join(sorted(path.name for path in folder.glob(CODE))) or "code in another place"
        raise VlmError(
            f"the model {name!r} needs code of its own ({code}), which is not run: read it in {folder}, and where you "
            f"trust it, add --trust-remote-code. Without it: --model qwen2.5-vl-3b, or --model {TINY_VLM}"
        ) from None
    except VlmError:
        raise
    except Exception as error:  # damaged files lead transformers to errors of many kinds
        raise _cannot_load(name, error) from error


def _folder(name: str, trust_code: bool) -> Path:
    return TINY_VLM_DIR if name == TINY_VLM else model_folder(name, code=trust_code)


def _cannot_load(name: str, error: Exception) -> VlmError:
    return VlmError(
        f"cannot load the model {name!r}: {reason_of(error)}. "
        f"Give a folder (--model /path/to/model), a Hugging Face name that this machine can reach, a short name "
        f"({', '.join(MODEL_ALIASES)}), or --model {TINY_VLM} (bundled)."
    )


class _NeedsCode(Exception):
    """A model needs code of its own, and it is not to be run."""


def _read(name: str, folder: Path, dtype: torch.dtype, trust_code: bool) -> tuple[Any, Any]:
    """Processor and model in `folder`; `_NeedsCode` where code in it were to be run and is not trusted."""
    import transformers
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoProcessor

    source, how = str(folder), SAFELY | {"trust_remote_code": trust_code}
    require_valid(folder)
    if names_kernel(folder) and not trust_code:
        raise _NeedsCode
    needs_code = _NeedsCode if names_code(folder) and not trust_code else ValueError
    try:
        config = AutoConfig.from_pretrained(source, **how)
    except ValueError as error:  # transformers has no class for it
        raise needs_code(reason_of(error)) from None
    if takes_kernel(config) and not trust_code:
        raise _NeedsCode
    known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not config.is_encoder_decoder
    own = [kind for kind in OWN_CLASSES if kind in (getattr(config, "auto_map", None) or {})]
    if not known and own and not trust_code:
        raise _NeedsCode
    if not known and not own:
        raise VlmError(
            f"{name} is a {config.model_type}, which does not answer questions about images. "
            f"Try --model qwen2.5-vl-3b, or --model {TINY_VLM}"
        )
    try:
        processor = AutoProcessor.from_pretrained(source, **how)
    except ValueError as error:
        raise needs_code(reason_of(error)) from None
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise VlmError(f"{name} has no processor for images and text (processor_config.json)")
    auto = getattr(transformers, OWN_CLASSES[0] if known else own[0])
    if known:
        require_weights(folder, auto, config)
    model, notes = auto.from_pretrained(source, dtype=dtype, use_safetensors=True, output_loading_info=True, **how)
    if notes["missing_keys"]:
        missing = sorted(notes["missing_keys"])
        raise VlmError(f"the weights of {name} lack {len(missing)} tensors, first {missing[0]}: download it again")
    return processor, model

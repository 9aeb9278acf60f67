"""Finds a vision-language model and loads it: the tiny VLM, a folder, or a name on the Hugging Face hub."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from icdsel.console import note
from icdsel.errors import UserError, VlmError, reason_of
from icdsel.settings.presets import MODEL_ALIASES, TINY_VLM
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.devices import vlm_device, vlm_dtype
from icdsel.vlm.local.any_vlm import AnyVlm
from icdsel.vlm.local.model import LocalModel
from icdsel.vlm.local.pretrained import (
    CODE,
    SAFE_LOADING,
    fingerprint,
    missing_package,
    model_folder,
    model_type,
    names_kernel,
    quiet,
    replace_flash_attention,
    require_valid,
    require_weights,
    uses_kernel,
)
from icdsel.vlm.local.qwen_vl import Glm4v, Qwen3Vl, QwenVl
from icdsel.vlm.local.shared_prefix import SharedPrefix, UnlikeFamilyError
from icdsel.vlm.local.tiled_families import Idefics3, InternVl, LlavaOnevision
from icdsel.vlm.time_limit import CallTimer

TINY_VLM_DIR = Path(__file__).parents[2] / "tiny_vlm" / "weights"
FAMILIES: Sequence[type[SharedPrefix]] = (QwenVl, Qwen3Vl, Glm4v, Idefics3, InternVl, LlavaOnevision)
"""The classes that run families of models fast. `AnyVlm` runs all others."""
VERSION, SHARED_VERSION = 2, 3
"""Parts of the fingerprints of models that `AnyVlm` runs and of those that share prefixes, other than Qwen2.5-VL. They
are raised if prompts, answers or scores change."""
_UNVERSIONED = "qwen2_5_vl"
"""The kind of model whose fingerprint is that of its files, since it was the first one."""
CUSTOM_CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM")
"""The `auto_map` entries under which a model may specify a custom class. transformers' own classes use the first."""


def load_local(
    settings: VlmSettings,
    max_image_pixels: int,
    timer: CallTimer | None = None,
    family: type[LocalModel[Any]] | None = None,
) -> LocalModel[Any]:
    """Loads the model `settings.model`: the tiny VLM, a folder, or a name on the Hugging Face hub.

    Code that comes with a model runs only if `settings.trust_remote_code` is set; weights are read only from
    safetensors. A model that has already been downloaded is loaded without network access.

    Args:
        settings: The model, where it runs and how it is used.
        max_image_pixels: Images with more pixels are rejected.
        timer: Limits the time of each call that encodes images; None for no limit.
        family: The class that runs the model, or its base class; None to choose the fastest that supports the model.

    Raises:
        VlmError: The model does not exist, is damaged, needs code that is not trusted, or does not accept images.
    """
    name = settings.model
    device = vlm_device(settings)
    dtype = vlm_dtype(settings)
    limit_call = {} if timer is None else {"limit_call": timer.call}
    try:
        folder = _folder(settings)
        with quiet():
            processor, model = _read(name, folder, device, dtype, settings.trust_remote_code)
            classes: list[type[LocalModel[Any]]] = [*FAMILIES, AnyVlm]
            fitting = [each for each in classes if each.supports(model)]
            model = model.to(device).eval()
            for chosen in (each for each in fitting if issubclass(each, family or LocalModel)):
                key = _fingerprint(folder, settings, usual=chosen is fitting[0] or family is None)
                try:
                    return chosen(model, processor, settings, name, key, max_image_pixels, **limit_call)
                except UnlikeFamilyError as error:
                    note(f"{name} is not like other models of its kind, so its prompts share nothing: {error}")
            raise VlmError(f"{name} is a {model.config.model_type}, which this engine does not run: --engine auto")
    except _NeedsCode:
        code = ", ".join(sorted(path.name for path in folder.glob(CODE))) or "code in another place"
        raise VlmError(
            f"the model {name!r} needs custom code ({code}), which is not run: read it in {folder}, and if you "
            f"trust it, add --trust-remote-code. Without it: --model qwen2.5-vl-3b, or --model {TINY_VLM}"
        ) from None
    except VlmError:
        raise
    except Exception as error:  # damaged files make transformers raise many kinds of errors
        raise _cannot_load(name, error) from error


def identify_local(settings: VlmSettings) -> tuple[str, str]:
    """Fingerprint and dtype of the model that `load_local` would load with its default class; loads no weights.

    Raises:
        VlmError: The model does not exist, or its files cannot be read.
    """
    dtype = vlm_dtype(settings)
    try:
        files = _fingerprint(_folder(settings), settings)
    except UserError:
        raise
    except Exception as error:
        raise _cannot_load(settings.model, error) from error
    return files, str(dtype).removeprefix("torch.")


def _fingerprint(folder: Path, settings: VlmSettings, usual: bool = True) -> str:
    """Identifies the files, and what is done with them: by the class that usually runs such a model, or by `AnyVlm`."""
    files, kind = fingerprint(folder, code=settings.trust_remote_code), model_type(folder)
    if kind == _UNVERSIONED:
        return files if usual else f"{files}-{AnyVlm.__name__}"
    shares = any(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(str(kind)) in family.models for family in FAMILIES)
    return f"{files}-{SHARED_VERSION if usual and shares else VERSION}"


def _folder(settings: VlmSettings) -> Path:
    if settings.model == TINY_VLM:
        return TINY_VLM_DIR
    return model_folder(settings.model, code=settings.trust_remote_code)


def _cannot_load(name: str, error: Exception) -> VlmError:
    if missing := missing_package(error):
        return VlmError(f"cannot load the model {name!r}: {missing}")
    return VlmError(
        f"cannot load the model {name!r}: {reason_of(error)}. "
        f"Give a folder (--model /path/to/model), a Hugging Face name that this machine can reach, a short name "
        f"({', '.join(MODEL_ALIASES)}), or --model {TINY_VLM} (bundled)."
    )


class _NeedsCode(Exception):
    """The model needs custom code, which is not trusted."""


@contextmanager
def _code_is_named(trust_code: bool) -> Iterator[None]:
    """Raises `_NeedsCode` where transformers rejects custom code; other errors have other causes."""
    try:
        yield
    except ValueError as error:
        if not trust_code and "trust_remote_code" in str(error):
            raise _NeedsCode from None
        raise


def _read(name: str, folder: Path, device: torch.device, dtype: torch.dtype, trust_code: bool) -> tuple[Any, Any]:
    """Loads the processor and the model from a folder.

    Raises:
        _NeedsCode: The model needs custom code, which is not trusted.
    """
    import transformers
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoProcessor

    source, options = str(folder), SAFE_LOADING | {"trust_remote_code": trust_code}
    require_valid(folder)
    if names_kernel(folder) and not trust_code:
        raise _NeedsCode
    with _code_is_named(trust_code):
        config = AutoConfig.from_pretrained(source, **options)
    if uses_kernel(config) and not trust_code:
        raise _NeedsCode
    known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not config.is_encoder_decoder
    custom = [kind for kind in CUSTOM_CLASSES if kind in (getattr(config, "auto_map", None) or {})]
    if not known and custom and not trust_code:
        raise _NeedsCode
    if not known and not custom:
        raise VlmError(
            f"{name} is a {config.model_type}, which does not answer questions about images. "
            f"Try --model qwen2.5-vl-3b, or --model {TINY_VLM}"
        )
    with _code_is_named(trust_code):
        processor = AutoProcessor.from_pretrained(source, **options)
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise VlmError(f"{name} has no processor for images and text (processor_config.json)")
    auto = getattr(transformers, CUSTOM_CLASSES[0] if known else custom[0])
    own_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    replace_flash_attention(config, own_class, name, device, dtype)
    if known:
        require_weights(folder, auto, config)
    model, notes = auto.from_pretrained(
        source, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
    )
    if notes["missing_keys"]:
        missing = sorted(notes["missing_keys"])
        raise VlmError(f"the weights of {name} lack {len(missing)} tensors, first {missing[0]}: download it again")
    return processor, model

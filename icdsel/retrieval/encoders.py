"""Encoders convert images and questions to vectors: a CLIP-like model, or the VLM itself."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import Tensor

from icdsel.data.images import ImageError, open_image
from icdsel.errors import VlmError, reason_of
from icdsel.settings.presets import CLIP_B32, VLM_ENCODER
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.devices import vlm_device
from icdsel.vlm.engine import Engine
from icdsel.vlm.engines import EngineIdentity, identify_engine, open_engine
from icdsel.vlm.local.pretrained import (
    SAFE_LOADING,
    fingerprint,
    missing_package,
    model_folder,
    names_code,
    names_kernel,
    quiet,
    replace_flash_attention,
    require_valid,
    require_weights,
    uses_kernel,
)

BATCH = 64  # images or texts per call of a model
DECODERS = min(8, os.cpu_count() or 1)  # threads that read images while the device computes

# For these models texts are padded to the maximum length, and the padding is part of the input: the models were trained
# this way, and take a text's vector from the last position. Shorter padding or a mask leads to meaningless vectors.
PADDED_TO_THE_END = ("siglip", "siglip2")


class Encoder(Protocol):
    """Computes features of images and texts, all of the same width."""

    @property
    def name(self) -> str:
        """The name that the user specified."""

    @property
    def fingerprint(self) -> str:
        """Identifies the model's files and everything else that determines its features."""

    @property
    def dtype(self) -> object:
        """What the model computes in: a torch.dtype, or its name."""

    @property
    def centred(self) -> bool:
        """Whether features are centred on the training split before they are normalised."""

    @property
    def truncated(self) -> int:
        """The number of texts that have been truncated so far."""

    def embed_images(self, paths: Sequence[Path]) -> tuple[Tensor, dict[int, str]]:
        """Returns features, float32 (N, d) on the CPU, and position → reason for failed images, whose rows are 0."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Returns features, float32 (N, d) on the CPU."""


class VlmEncoder:
    """Uses the features of the VLM itself.

    Args:
        open_engine: Opens the engine; called when something is first embedded.
        identify: Returns the engine's identity, without opening it if possible.
        settings: The settings that the engine is opened with.
        max_image_pixels: Images with more pixels are rejected by the engine.
    """

    name = VLM_ENCODER
    centred = True  # the features share a large component, which hides the differences
    truncated = 0

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        identify: Callable[[], EngineIdentity],
        settings: VlmSettings,
        max_image_pixels: int,
    ) -> None:
        self._open_engine, self._identify = open_engine, identify
        self._image_limits = (settings.min_pixels, settings.max_pixels, max_image_pixels)

    @cached_property
    def engine(self) -> Engine:
        """The engine, opened at first use."""
        return self._open_engine()

    @property
    def fingerprint(self) -> str:
        """Identifies the model's files, its dtype and the limits of image sizes."""
        return _digest(*self._identify(), *self._image_limits)

    @property
    def dtype(self) -> str:
        """What the model computes in."""
        return self._identify().dtype

    def embed_images(self, paths: Sequence[Path]) -> tuple[Tensor, dict[int, str]]:
        """Returns features of images, float32 (N, d), and position → reason for those that cannot be read.

        Raises:
            VlmError: The engine does not compute features of single images.
        """
        if not self.engine.can_embed:
            raise VlmError(
                f"{self.engine.name} has no features of single images: name another encoder, such as "
                f"--encoder {CLIP_B32}"
            )
        return self.engine.embed_images(paths)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, float32 (N, d)."""
        return self.engine.embed_texts(texts)


class ClipEncoder:
    """A CLIP-like model: any transformers model with `get_image_features` and `get_text_features`.

    The weights are loaded when something is first embedded, so they are not loaded if all embeddings are cached.

    Args:
        name: The name that the user specified.
        folder: The folder with its files.
        config: The model's configuration.
        device: The device that it runs on.
        max_image_pixels: Images with more pixels are rejected.
        dtype: The dtype that it computes in; the features are always float32.
    """

    centred = False

    def __init__(
        self, name: str, folder: Path, config: Any, device: torch.device, max_image_pixels: int, dtype: torch.dtype
    ) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self.fingerprint = _digest(fingerprint(folder), str(dtype), max_image_pixels)
        self.truncated = 0
        self._folder, self._config = folder, config
        self._max_image_pixels = max_image_pixels

    @cached_property
    def model(self) -> Any:
        """The model, on its device."""
        from transformers import MODEL_MAPPING, AutoModel

        with _explained(self.name):
            own_class = MODEL_MAPPING.get(type(self._config), None)
            replace_flash_attention(self._config, own_class, self.name, self.device, self.dtype)
            require_weights(self._folder, AutoModel, self._config)
            # Weights in a format older than safetensors are read by torch with `weights_only`, transformers' default.
            model, notes = AutoModel.from_pretrained(
                str(self._folder), config=self._config, dtype=self.dtype, output_loading_info=True, **SAFE_LOADING
            )
            if notes["missing_keys"]:  # these would be initialised at random
                missing = sorted(notes["missing_keys"])
                raise ValueError(f"its files lack {len(missing)} tensors, first {missing[0]}.")
        return model.to(self.device).eval()

    @cached_property
    def _processor(self) -> Any:
        from transformers import AutoProcessor

        with _explained(self.name):
            processor = AutoProcessor.from_pretrained(str(self._folder), **SAFE_LOADING)
            known, wanted = len(processor.tokenizer), self._config.text_config.vocab_size
            if known < wanted / 2:  # transformers creates an empty tokenizer if the files are missing
                raise ValueError(f"its tokenizer has {known} tokens of {wanted}: tokenizer.json is missing or wrong.")
        return processor

    # ---- images ----

    @torch.inference_mode()
    def embed_images(self, paths: Sequence[Path]) -> tuple[Tensor, dict[int, str]]:
        """Returns projected image features, float32 (N, d), and position → reason for images that cannot be read."""
        features = torch.zeros(len(paths), self._width)
        broken: dict[int, str] = {}
        start = 0
        for batch in self._prepared(paths):
            broken |= {start + i: image for i, image in enumerate(batch) if isinstance(image, str)}
            read = {start + i: image for i, image in enumerate(batch) if not isinstance(image, str)}
            if read:
                inputs = {key: torch.cat([image[key] for image in read.values()]) for key in next(iter(read.values()))}
                features[list(read)] = self._features(self.model.get_image_features, inputs)
            start += len(batch)
        return features, broken

    def _prepared(self, paths: Sequence[Path]) -> Iterator[list[dict[str, Tensor] | str]]:
        """Yields batches of the model's inputs, with the reason in place of an image that cannot be read.

        While the device computes a batch, threads prepare the next two. Decoded images are not kept.
        """
        _ = self._processor  # loads it here rather than in several threads at once
        threads = ThreadPoolExecutor(DECODERS)
        try:
            ahead = deque(threads.submit(self._prepare, path) for path in paths[: 2 * BATCH])
            for start in range(0, len(paths), BATCH):
                batch = [ahead.popleft().result() for _ in paths[start : start + BATCH]]
                ahead += [threads.submit(self._prepare, path) for path in paths[start + 2 * BATCH : start + 3 * BATCH]]
                yield batch
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, path: Path) -> dict[str, Tensor] | str:
        try:
            image = open_image(path, self._max_image_pixels)
        except ImageError as error:
            return str(error)
        return dict(self._processor(images=image, return_tensors="pt"))

    # ---- texts ----

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Returns projected text features, float32 (N, d). Texts that are too long are truncated and counted."""
        parts = []
        for start in range(0, len(texts), BATCH):
            inputs = self._tokens(list(texts[start : start + BATCH]))
            parts.append(self._features(self.model.get_text_features, inputs))
        return torch.cat(parts)

    def _tokens(self, texts: list[str]) -> dict[str, Tensor]:
        tokenizer = self._processor.tokenizer
        limit = min(tokenizer.model_max_length, self._config.text_config.max_position_embeddings)
        self.truncated += sum(len(ids) > limit for ids in tokenizer(texts)["input_ids"])
        to_the_end = self._config.model_type in PADDED_TO_THE_END
        padding = "max_length" if to_the_end else True
        tokens = self._processor(text=texts, padding=padding, truncation=True, max_length=limit, return_tensors="pt")
        return {"input_ids": tokens["input_ids"]} if to_the_end else dict(tokens)

    # ---- both ----

    def _features(self, embed: Callable[..., Any], inputs: dict[str, Tensor]) -> Tensor:
        """Calls `embed` and returns its features, float32 (B, d) on the CPU."""
        placed = {
            key: value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)
            for key, value in inputs.items()
        }
        output = embed(**placed)
        # It is a tensor, or (in transformers 5) an output object whose pooled vector is the projected one.
        features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
        return features.float().cpu()

    @cached_property
    def _width(self) -> int:
        """The width d, which not every model's configuration contains."""
        return int(self.embed_texts([""]).shape[1])


def load_clip(
    name: str, device: torch.device, max_image_pixels: int, dtype: torch.dtype = torch.float32
) -> ClipEncoder:
    """Finds a CLIP-like model (CLIP, SigLIP, SigLIP 2, …). Code in its files is not run.

    Args:
        name: A folder, or a name on the hub.
        device: The device that it runs on.
        max_image_pixels: Images with more pixels are rejected.
        dtype: float32 as in Lever-Plus, or bfloat16 for speed.

    Raises:
        VlmError: There is no such model, or it does not embed both images and texts. If the weights cannot be loaded,
            it is raised only when something is first embedded.
    """
    from transformers import MODEL_MAPPING, AutoConfig

    with _explained(name):
        folder = model_folder(name, old_weights=True)
        require_valid(folder)
        try:
            config = None if names_kernel(folder) else AutoConfig.from_pretrained(str(folder), **SAFE_LOADING)
        except ValueError:
            if not names_code(folder):
                raise
            config = None
        if config is None or uses_kernel(config):
            raise ValueError("it needs custom code, which is never run for an encoder.")
        model = MODEL_MAPPING.get(type(config), None)
        both = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
        if not both or not hasattr(config, "text_config"):
            raise ValueError(f"it is a {config.model_type}, which does not embed both images and texts.")
        return ClipEncoder(name, folder, config, device, max_image_pixels, dtype)


def open_encoder(name: str, settings: VlmSettings, max_image_pixels: int) -> Encoder:
    """An encoder of its own: of a VLM that nothing else uses, in this process, or a CLIP-like model.

    Args:
        name: `vlm`, or the folder or name of a CLIP-like model.
        settings: The VLM, and the device.
        max_image_pixels: Images with more pixels are rejected.

    Raises:
        VlmError: There is no such model. If its weights cannot be loaded, it is raised only when something is
            first embedded.
    """
    if name != VLM_ENCODER:
        return load_clip(name, vlm_device(settings), max_image_pixels)

    def identify() -> EngineIdentity:
        return identify_engine(settings) or EngineIdentity(opened.engine.fingerprint, opened.engine.dtype)

    opened = VlmEncoder(lambda: open_engine(settings, max_image_pixels), identify, settings, max_image_pixels)
    return opened


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Converts exceptions of transformers for a model that cannot be loaded to errors for the user."""
    try:
        with quiet():
            yield
    except UnpicklingError:
        raise VlmError(f"{name!r} has weights that contain code, which is not run: choose another --encoder") from None
    except VlmError:
        raise
    except Exception as error:  # damaged files make transformers raise errors of many kinds
        if missing := missing_package(error):
            raise VlmError(f"cannot load the encoder {name!r}: {missing}") from error
        raise VlmError(
            f"cannot load the encoder {name!r}: {reason_of(error)}. Give a folder (--encoder /path/to/clip), a Hugging "
            f"Face name that this machine can reach, or --encoder {VLM_ENCODER}, which needs no second model "
            f"(--sampler-encoder takes the same)."
        ) from error


def _digest(*parts: str | int | None) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

"""What turns images and questions into vectors: a CLIP-like model, or the VLM that is asked anyway."""

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
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from icdsel.data.images import ImageError, open_image
from icdsel.errors import CallsError, VlmError
from icdsel.settings.presets import VLM_ENCODER
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.pretrained import (
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
from icdsel.vlm.time_limit import GIVEN_UP

if TYPE_CHECKING:
    from icdsel.vlm.base import Vlm
    from icdsel.vlm.loading import VlmIdentity

BATCH = 64  # images or texts that a model reads at once
DECODERS = min(8, os.cpu_count() or 1)  # threads that read images while the device computes

# Their texts are padded to the longest that the model knows, and the padding is read: so they were trained, and
# their text vector is taken from the last place. Shorter padding or a mask gives vectors of no meaning.
PADDED_TO_THE_END = ("siglip", "siglip2")


class Encoder(Protocol):
    """Gives raw features, of one width, of images and texts."""

    @property
    def name(self) -> str:
        """As the user named it."""

    @property
    def fingerprint(self) -> str:
        """Of the model's files or revision and of everything else that decides what it gives."""

    @property
    def centred(self) -> bool:
        """Whether features are centred on the training split before they are normalised."""

    @property
    def truncated(self) -> int:
        """Texts so far that were longer than the model reads, and were cut."""

    def embed_images(self, paths: Sequence[Path]) -> tuple[Tensor, dict[int, str]]:
        """Float32 (N, d) on the CPU, and position → reason of images that cannot be read; their rows are 0."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Float32 (N, d) on the CPU."""


class VlmEncoder:
    """The VLM's own features: an image's mean visual token, the mean input embedding of a text's tokens.

    Args:
        load: Gives the VLM; called when something is first embedded.
        identify: Gives the VLM's fingerprint and dtype without loading it.
        settings: The settings that the VLM is loaded with.
        max_image_pixels: Images with more pixels are rejected by the VLM.
    """

    name = VLM_ENCODER
    centred = True  # such features share a large part that hides the differences
    truncated = 0

    def __init__(
        self,
        load: "Callable[[], Vlm]",
        identify: "Callable[[], VlmIdentity]",
        settings: VlmSettings,
        max_image_pixels: int,
    ) -> None:
        self._load, self._identify = load, identify
        self._image_limits = (settings.min_pixels, settings.max_pixels, max_image_pixels)

    @cached_property
    def vlm(self) -> "Vlm":
        """The VLM, loaded."""
        return self._load()

    @property
    def fingerprint(self) -> str:
        """Of the model's files, its arithmetic and the limits of an image's size."""
        vlm = self._identify()
        return _digest(vlm.fingerprint, vlm.dtype, *self._image_limits)

    @torch.inference_mode()
    def embed_images(self, paths: Sequence[Path]) -> tuple[Tensor, dict[int, str]]:
        """Mean visual tokens, float32 (N, d), and position → reason of images that cannot be read."""
        images = self.vlm.images
        features = torch.zeros(len(paths), self.embed_texts([""]).shape[1])
        broken: dict[int, str] = {}
        for at in range(0, len(paths), BATCH):  # not all at once: the cache holds whatever is asked for in one go
            images.load(paths[at : at + BATCH])
            for i, path in enumerate(paths[at : at + BATCH], at):
                if path in images.lacked_memory:
                    raise CallsError(f"{images.broken[path]}. Free memory of the device, or take another (--device)")
                if path in images.hung:
                    raise CallsError(f"{images.broken[path]}. {GIVEN_UP}")
                if path in images.broken:
                    broken[i] = images.broken[path]
                else:
                    features[i] = images.features(path).float().mean(0)  # (T, d) → (d)
        return features, broken

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Mean input embeddings, float32 (N, d)."""
        return self.vlm.embed_texts(texts)


class ClipEncoder:
    """A CLIP-like model: whatever transformers has `get_image_features` and `get_text_features` for.

    The weights are loaded when something is first embedded, so cached embeddings cost none of it.

    Args:
        name: As the user named it.
        folder: Where its files are.
        config: The model's configuration.
        device: Where it computes.
        max_image_pixels: Images of more pixels are refused.
        dtype: Its arithmetic; the features are float32 whatever it is.
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
    def _model(self) -> Any:
        from transformers import AutoModel

        with _explained(self.name):
            require_weights(self._folder, AutoModel, self._config)
            # Weights of before safetensors are read by torch with `weights_only`, transformers' default.
            model, notes = AutoModel.from_pretrained(
                str(self._folder), dtype=self.dtype, output_loading_info=True, **SAFELY
            )
            if notes["missing_keys"]:  # they would be random
                missing = sorted(notes["missing_keys"])
                raise ValueError(f"its files lack {len(missing)} tensors, first {missing[0]}.")
        return model.to(self.device).eval()

    @cached_property
    def _processor(self) -> Any:
        from transformers import AutoProcessor

        with _explained(self.name):
            processor = AutoProcessor.from_pretrained(str(self._folder), **SAFELY)
            known, wanted = len(processor.tokenizer), self._config.text_config.vocab_size
            if known < wanted / 2:  # transformers makes an empty tokenizer where the files are missing
                raise ValueError(f"its tokenizer knows {known} tokens of {wanted}: tokenizer.json is missing or wrong.")
        return processor

    # ---- images ----

    @torch.inference_mode()
    def embed_images(self, paths: Sequence[Path]) -> tuple[Tensor, dict[int, str]]:
        """Projected image features, float32 (N, d), and position → reason of images that cannot be read."""
        features = torch.zeros(len(paths), self._width)
        broken: dict[int, str] = {}
        at = 0
        for batch in self._prepared(paths):
            broken |= {at + i: image for i, image in enumerate(batch) if isinstance(image, str)}
            read = {at + i: image for i, image in enumerate(batch) if not isinstance(image, str)}
            if read:
                inputs = {key: torch.cat([image[key] for image in read.values()]) for key in next(iter(read.values()))}
                features[list(read)] = self._features(self._model.get_image_features, inputs)
            at += len(batch)
        return features, broken

    def _prepared(self, paths: Sequence[Path]) -> Iterator[list[dict[str, Tensor] | str]]:
        """The images as the model takes them (or why they cannot be read), in batches.

        While a batch is with the device, threads make the next ones; whole pictures live no longer than that.
        """
        _ = self._processor  # loaded here, not in many threads at once
        threads = ThreadPoolExecutor(DECODERS)
        try:
            ahead = deque(threads.submit(self._prepare, path) for path in paths[: 2 * BATCH])
            for at in range(0, len(paths), BATCH):
                batch = [ahead.popleft().result() for _ in paths[at : at + BATCH]]
                ahead += [threads.submit(self._prepare, path) for path in paths[at + 2 * BATCH : at + 3 * BATCH]]
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
        """Projected text features, float32 (N, d); longer texts than the model reads are cut, and counted."""
        parts = []
        for at in range(0, len(texts), BATCH):
            inputs = self._tokens(list(texts[at : at + BATCH]))
            parts.append(self._features(self._model.get_text_features, inputs))
        return torch.cat(parts)

    def _tokens(self, texts: list[str]) -> dict[str, Tensor]:
        tokenizer = self._processor.tokenizer
        limit = min(tokenizer.model_max_length, self._config.text_config.max_position_embeddings)
        self.truncated += sum(len(ids) > limit for ids in tokenizer(texts)["input_ids"])
        to_the_end = self._config.model_type in PADDED_TO_THE_END
        padding = "max_length" if to_the_end else True
        made = self._processor(text=texts, padding=padding, truncation=True, max_length=limit, return_tensors="pt")
        return {"input_ids": made["input_ids"]} if to_the_end else dict(made)

    # ---- both ----

    def _features(self, embed: Callable[..., Any], inputs: dict[str, Tensor]) -> Tensor:
        """What `embed` gives, float32 (B, d) on the CPU."""
        placed = {
            key: value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)
            for key, value in inputs.items()
        }
        out = embed(**placed)
        # A tensor, or (transformers 5) an output whose pooled vector is the projected one.
        features: Tensor = out if isinstance(out, Tensor) else out.pooler_output
        return features.float().cpu()

    @cached_property
    def _width(self) -> int:
        """d, which not every model's configuration tells."""
        return int(self.embed_texts([""]).shape[1])


def load_clip(
    name: str, device: torch.device, max_image_pixels: int, dtype: torch.dtype = torch.float32
) -> ClipEncoder:
    """Finds a CLIP-like model (CLIP, SigLIP, SigLIP 2, …); no code in its files is run.

    Args:
        name: A folder, or a name on the hub.
        device: Where it computes.
        max_image_pixels: Images of more pixels are refused as damaged.
        dtype: float32 as in Lever-Plus; bfloat16 where speed counts more.

    Raises:
        VlmError: There is no such model, or it does not embed both images and texts. Weights that cannot be
            loaded are told of when something is first embedded.
    """
    from transformers import MODEL_MAPPING, AutoConfig

    with _explained(name):
        folder = model_folder(name, old_weights=True)
        require_valid(folder)
        try:
            config = None if names_kernel(folder) else AutoConfig.from_pretrained(str(folder), **SAFELY)
        except ValueError:
            if not names_code(folder):
                raise
            config = None
        if config is None or takes_kernel(config):
            raise ValueError("it needs code of its own, which is never run of an encoder.")
        model = MODEL_MAPPING.get(type(config), None)
        both = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
        if not both or not hasattr(config, "text_config"):
            raise ValueError(f"it is a {config.model_type}, which does not embed both images and texts.")
        return ClipEncoder(name, folder, config, device, max_image_pixels, dtype)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns what transformers raises where a model cannot be loaded into an error for a person."""
    try:
        with quiet():
            yield
    except UnpicklingError:
        raise VlmError(f"{name!r} has weights that hold code, which is not run: take another --encoder") from None
    except VlmError:
        raise
    except Exception as error:  # damaged files lead transformers to errors of many kinds
        raise VlmError(
            f"cannot load the encoder {name!r}: {reason_of(error)}. Give a folder (--encoder /path/to/clip), a Hugging "
            f"Face name that this machine can reach, or --encoder {VLM_ENCODER}, which needs no second model "
            f"(--sampler-encoder takes the same)."
        ) from error


def _digest(*parts: str | int | None) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

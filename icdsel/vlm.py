"""A vision-language model: prompts in, answers and log-probs of reference answers out.

For any batch, order or cache state the answers are those of one prompt at a time. Models of the Qwen2.5-VL family
are read by `icdsel.qwen_vl`, which encodes an image once and reads a prompt once; all others that transformers
can load by `icdsel.other_vlm`.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from icdsel.decoding import Search
from icdsel.errors import CallsError, VlmError
from icdsel.feature_cache import FeatureCache, Features, Spill
from icdsel.pretrained import (
    CODE,
    SAFELY,
    fingerprint,
    model_folder,
    names_code,
    names_kernel,
    quiet,
    reason_of,
    require_sound,
    require_weights,
)
from icdsel.prompts import PromptStyle
from icdsel.records import Answer, Example
from icdsel.settings import MODEL_ALIASES, TINY_VLM, VlmSettings
from icdsel.time_limit import GIVEN_UP, time_limit

TINY_VLM_DIR = Path(__file__).parent / "demo" / "tiny_vlm"
NOT_FINITE = "the model's logits are not finite"
HANGS = 3  # calls in a row that take too long: it is not what they were given
_Prompt = TypeVar("_Prompt")
FEW = 32  # calls: of fewer, as many may fail as of so many
OWN_CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM")
"""As what a model may name a class of its own; those that transformers has are the first."""


@dataclass(frozen=True)
class Request:
    """One prompt: ICDs in order, the query, and the reference answers whose log-probs are wanted."""

    icds: tuple[Example, ...]
    query: Example
    references: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[Example, ...]:
        """What the prompt shows, in order: the ICDs, then the query."""
        return (*self.icds, self.query)


class Vlm(ABC):
    """A model and its processor, and how it is asked.

    Attributes:
        name: What the user calls the model.
        fingerprint: Of its weights and of how it reads prompts.
        images: Visual features of images already seen, and the images that cannot be read.
    """

    chunk: int
    """Requests whose images are held at once."""
    images_at_once: int
    """Images that the vision tower reads at once."""

    def __init__(
        self, model: Any, processor: Any, settings: VlmSettings, name: str, fingerprint: str, max_image_pixels: int
    ) -> None:
        self.model, self.processor, self.settings = model, processor, settings
        self.name, self.fingerprint, self.max_image_pixels = name, fingerprint, max_image_pixels
        self.device = next(model.parameters()).device
        self.style = PromptStyle(
            settings.system_prompt, settings.icd_template, settings.query_template, settings.layout
        )
        self.images = FeatureCache(
            self._prepare_images,
            self._encode_in_time,
            settings.image_cache_mb * 2**20,
            self.images_at_once,
            self._spill(),
        )
        self._asked = 0
        self._hung = 0  # calls in a row
        self._failures: list[str] = []
        self._fits: int | None = None  # prompts that are tried at once, after the memory did not suffice for more
        eos = model.generation_config.eos_token_id
        self._stops = {*(eos if isinstance(eos, list) else [eos]), processor.tokenizer.eos_token_id} - {None}
        if not all(type(stop) is int and stop >= 0 for stop in self._stops):
            raise ValueError(f"its end of an answer (eos_token_id) is {eos!r}, no token's number")
        # Text between special tokens recurs in thousands of prompts.
        self._encode = lru_cache(65_536)(
            lambda piece: tuple(processor.tokenizer.encode(piece, add_special_tokens=False))
        )

    @property
    def dtype(self) -> str:
        """Arithmetic of the model: "float32" or "bfloat16"."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def search(self) -> Search:
        """How answers are searched."""
        penalty = self.settings.repetition_penalty
        if penalty == "model":
            penalty = self.model.generation_config.repetition_penalty or 1.0
        return Search(
            self.settings.num_beams,
            self.settings.length_penalty,
            float(penalty),
            self.settings.max_new_tokens,
            tuple(sorted(self._stops)),
        )

    def _spill(self) -> Spill | None:
        """Where visual features go that memory has no room for."""
        folder, settings = self.settings.image_cache_dir, self.settings
        if folder is None:
            return None
        name = f"{self.fingerprint}-{self.dtype}-{settings.min_pixels}-{settings.max_pixels}-{self.max_image_pixels}"
        return Spill(folder, settings.image_cache_disk_mb * 2**20, name)

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Interrupts a call of the model that takes too long.

        Raises:
            TimeoutError: it did.
            CallsError: so did those before it.
        """
        try:
            with time_limit(self.settings.call_timeout):
                yield
        except TimeoutError as error:
            self._hung += 1
            if self._hung == HANGS:
                raise CallsError(f"{error}, {HANGS} times in a row. {GIVEN_UP}") from None
            raise
        self._hung = 0

    def _encode_in_time(self, prepared: Sequence[Any]) -> list[Features]:
        with self._in_time():
            return self._encode_images(prepared)

    def _within_memory(
        self, batches: Iterable[list[int]], answer: Callable[[list[int]], dict[int, Answer]]
    ) -> Iterator[dict[int, Answer]]:
        """The answers of batches; one that fails is halved, and for want of memory later ones are too.

        A prompt that fails alone has failed. Of a batch that takes too long each prompt is tried alone, until one of
        them takes too long again: what is left of it has failed as well, and is asked once more by itself.

        Raises:
            CallsError: batch after batch takes too long.
        """
        self._hung = 0  # prompts that are asked once more do not stop the run
        for whole in batches:
            most = self._fits or len(whole)
            parts = deque(whole[at : at + most] for at in range(0, len(whole), most))
            while parts:
                batch = parts.popleft()
                try:
                    with self._in_time():
                        answers = answer(batch)
                except CallsError:
                    raise
                except TimeoutError as error:
                    parted, reason = 1, reason_of(error)  # halves would be waited for again and again
                    if len(batch) == 1 and parts:  # the others of its batch have their turn alone, later
                        yield {i: Answer("", error=reason) for part in parts for i in part}
                        parts.clear()
                except (torch.OutOfMemoryError, MemoryError) as error:
                    parted, reason = len(batch) // 2, f"out of memory for a single prompt: {reason_of(error)}"
                    self._fits = parted or self._fits
                except Exception as error:  # noqa: BLE001 - what a model raises differs; too many stop the run
                    parted, reason = len(batch) // 2, f"{type(error).__name__}: {reason_of(error)}"
                else:
                    yield answers
                    continue
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()  # after the exception is gone: it held the batch's tensors
                if len(batch) == 1:
                    yield {batch[0]: Answer("", error=reason)}
                else:
                    parts.extendleft(reversed([batch[at : at + parted] for at in range(0, len(batch), parted)]))

    def answer(
        self, requests: Sequence[Request], on_answers: Callable[[Mapping[int, Answer]], None] | None = None
    ) -> list[Answer]:
        """Answer every request and score its references; a request that fails twice carries its error.

        `on_answers` is called with answers as they come, by their place in `requests`.

        Raises:
            CallsError: of all calls so far more failed than `max_failed` allows.
        """
        answers: dict[int, Answer] = {}
        for at in range(0, len(requests), self.chunk):
            for made in self._answer_chunk(requests, at):
                answers |= made
                if on_answers:
                    on_answers(made)
            self._stop_if_too_many_failed()
        return [answers[i] for i in range(len(requests))]

    def _answer_chunk(self, requests: Sequence[Request], at: int) -> Iterator[dict[int, Answer]]:
        """The answers of the chunk that begins at `at`, by their place in `requests`."""
        chunk, upcoming = (requests[start : start + self.chunk] for start in (at, at + self.chunk))
        failed: dict[int, Answer] = {}
        fine: dict[int, Request] = {}
        self._open(_images(chunk), _images(upcoming))
        for i, request in enumerate(chunk, at):
            broken = [example.image for example in request.shown if example.image in self.images.broken]
            if broken:
                failed[i] = Answer("", error=self.images.broken[broken[0]])
            else:
                fine[i] = request
        if failed:
            self._failures += [answer.error or "" for answer in failed.values()]
            yield failed
        again: list[int] = []
        for made in self._answer_all(fine):
            again += [i for i, answer in made.items() if answer.error is not None]
            yield {i: answer for i, answer in made.items() if answer.error is None}
        for i in again:  # alone: it may have been the company, or have passed
            for made in self._answer_all({i: fine[i]}):
                self._failures += [answer.error for answer in made.values() if answer.error is not None]
                yield made
        self._asked += len(chunk)

    def _stop_if_too_many_failed(self) -> None:
        failed, most = len(self._failures), self.settings.max_failed
        if failed > most * max(self._asked, FEW):
            raise CallsError(
                f"{failed} of {self._asked} VLM calls failed, more than --max-failed {most:g} allows; the last: "
                f"{self._failures[-1]}. What was finished is kept: give the same command again when this is mended."
            )

    @torch.inference_mode()
    def embed_images(self, paths: Sequence[Path]) -> Tensor:
        """Mean visual token of each image, float32 (N, d).

        Raises:
            VlmError: an image cannot be read.
        """
        self.images.load(paths)
        broken = [path for path in paths if path in self.images.broken]
        if broken:
            raise VlmError(f"{len(broken)} images cannot be read. The first: {self.images.broken[broken[0]]}")
        return torch.stack([self.images.features(path).float().mean(0).cpu() for path in paths])

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Mean input embedding of each text's tokens, float32 (N, d)."""
        table = self.model.get_input_embeddings().weight
        nothing = min(self._stops)  # what stands for a text without tokens
        distinct = {text: table[list(self._encode(text) or [nothing])].float().mean(0).cpu() for text in set(texts)}
        return torch.stack([distinct[text] for text in texts])

    @abstractmethod
    def _prepare_images(self, paths: Sequence[Path]) -> list[Any]:
        """Images as the vision tower takes them; OSError or ValueError in the place of one that cannot be read."""

    @abstractmethod
    def _encode_images(self, prepared: Sequence[Any]) -> list[Features]:
        """Visual tokens of prepared images."""

    @abstractmethod
    def _open(self, paths: Iterable[Path], upcoming: Iterable[Path]) -> None:
        """Hold what `_answer_all` needs of these images; those that cannot be read go into `images.broken`.

        The `upcoming` ones are asked for next.
        """

    @abstractmethod
    def _answer_all(self, requests: Mapping[int, Request]) -> Iterator[dict[int, Answer]]:
        """The answers, by the requests' keys, a batch at a time; all images can be read and are held."""


def _images(requests: Sequence[Request]) -> list[Path]:
    return list(dict.fromkeys(example.image for request in requests for example in request.shown))


def prompts_of(
    requests: Mapping[int, Request], make: Callable[[Request], _Prompt]
) -> tuple[dict[int, _Prompt], dict[int, Answer]]:
    """The prompts of requests, and the answers of those whose prompt cannot be made: failures with their reasons."""
    prompts: dict[int, _Prompt] = {}
    failed: dict[int, Answer] = {}
    for i, request in requests.items():
        try:
            prompts[i] = make(request)
        except Exception as error:  # noqa: BLE001 - what a template raises differs; too many stop the run
            failed[i] = Answer("", error=f"{type(error).__name__}: {reason_of(error)}")
    return prompts, failed


def batches(groups: Iterable[Sequence[int]], lengths: Mapping[int, int], budget: int) -> Iterator[list[int]]:
    """Keys in batches of similar length whose padded size stays within `budget` tokens, the longest first.

    A group stays together where the budget lets it.
    """
    batch: list[int] = []
    longest = 0
    for most, group in sorted(((max(lengths[key] for key in group), group) for group in groups), reverse=True):
        fits = max(1, budget // most)
        for part in (group[at : at + fits] for at in range(0, len(group), fits)):
            if batch and longest * (len(batch) + len(part)) > budget:
                yield batch
                batch = []
            longest = longest if batch else most
            batch += part
    if batch:
        yield batch


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU.

    Raises:
        VlmError: an unknown device, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise VlmError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise VlmError(f"device {name!r} is not there ({torch.cuda.device_count()} GPUs found): use --device cpu")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(name, automatic)


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
    from transformers import Qwen2_5_VLForConditionalGeneration

    from icdsel.other_vlm import OtherVlm
    from icdsel.qwen_vl import QwenVl

    name = settings.model or TINY_VLM
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    try:
        folder = TINY_VLM_DIR if name == TINY_VLM else model_folder(name, code=settings.trust_remote_code)
        with quiet():
            processor, model = _read(name, folder, dtype, settings.trust_remote_code)
        made_of = fingerprint(folder, code=settings.trust_remote_code)
        kind = QwenVl if type(model) is Qwen2_5_VLForConditionalGeneration else OtherVlm
        with quiet():  # it is tried
            return kind(model.to(device).eval(), processor, settings, name, made_of, max_image_pixels)
    except _NeedsCode:
        code = ", ".join(sorted(path.name for path in folder.glob(CODE))) or "code in another place"
        raise VlmError(
            f"the model {name!r} needs code of its own ({code}), which is not run: read it in {folder}, and where you "
            f"trust it, add --trust-remote-code. Without it: --model qwen2.5-vl-3b, or --model {TINY_VLM}"
        ) from None
    except VlmError:
        raise
    except Exception as error:  # damaged files lead transformers to errors of many kinds
        raise VlmError(
            f"cannot load the model {name!r}: {reason_of(error)}. "
            f"Give a folder (--model /path/to/model), a Hugging Face name that this machine can reach, a short name "
            f"({', '.join(MODEL_ALIASES)}), or --model {TINY_VLM} (bundled)."
        ) from error


class _NeedsCode(Exception):
    """A model needs code of its own, and it is not to be run."""


def _read(name: str, folder: Path, dtype: torch.dtype, trust_code: bool) -> tuple[Any, Any]:
    """Processor and model in `folder`; `_NeedsCode` where code in it were to be run and is not trusted."""
    import transformers
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoProcessor

    source, how = str(folder), SAFELY | {"trust_remote_code": trust_code}
    require_sound(folder)
    if names_kernel(folder) and not trust_code:
        raise _NeedsCode
    needs_code = _NeedsCode if names_code(folder) and not trust_code else ValueError
    try:
        config = AutoConfig.from_pretrained(source, **how)
    except ValueError as error:  # transformers has no class for it
        raise needs_code(reason_of(error)) from None
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

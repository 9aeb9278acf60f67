"""The base class of models that run in this process: settings, image features, planning, embeddings.

Two classes derive from it: `SharedPrefix`, which is fast and needs to know a family of models, and `AnyVlm`, which runs
any. `icdsel.vlm.local.shared_prefix` says how to add a family.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor

from icdsel.data.images import open_image, within_pixels
from icdsel.errors import CallsError, reason_of
from icdsel.records import Answer, Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Engine, Request
from icdsel.vlm.local.answer_tokens import AnswerTokens
from icdsel.vlm.local.chat_template import THINKS, ChatTemplate, thinks
from icdsel.vlm.local.decoding import Search
from icdsel.vlm.local.feature_cache import READ_AHEAD, DiskCache, FeatureCache, Features, Grid, Shown
from icdsel.vlm.prompts import PromptStyle, harmless
from icdsel.vlm.time_limit import RESUME

NOT_FINITE = "the model's logits are not finite"
EMBEDDED_TOGETHER = 64  # images; the cache keeps all that are loaded together, even beyond its size limit
Prompt = TypeVar("Prompt")


class LocalModel(Engine, Generic[Prompt]):
    """A model and its processor, in this process.

    Args:
        model: The model, on its device.
        processor: Its processor.
        settings: How it is used.
        name: The name that the user specified.
        fingerprint: Identifies its files and the class that runs it.
        max_image_pixels: Images with more pixels are rejected.
        limit_call: Returns a context manager that limits the time of one call.

    Attributes:
        images: The visual features of images, and the images that cannot be read.
        style: How prompts are laid out.
        chat: How the model's chat template renders prompts.
        answers: The tokens of answers.
        search: How answers are decoded.

    Raises:
        Exception: The model's files contradict each other; the message is meant for the user.
    """

    images_at_once: int
    """Images that are encoded in one call."""
    read_ahead = READ_AHEAD
    """Images that are read and cut before they are needed."""

    can_score_references = True

    @classmethod
    def supports(cls, model: Any) -> bool:
        """Whether this class can run the model; by default, any."""
        del model
        return True

    def __init__(
        self,
        model: Any,
        processor: Any,
        settings: VlmSettings,
        name: str,
        fingerprint: str,
        max_image_pixels: int,
        limit_call: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model, self.processor, self.settings = model, processor, settings
        self.name, self.fingerprint, self.max_image_pixels = name, fingerprint, max_image_pixels
        self.device = str(next(model.parameters()).device)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.can_embed = callable(getattr(model, "get_image_features", None))
        self.style = PromptStyle.of(settings)
        self.images = FeatureCache(
            self._prepare_images,
            self._encode_in_time,
            settings.image_cache_mb * 2**20,
            self.images_at_once,
            self._disk_cache(),
            self._count,
            self.read_ahead,
        )
        self._limit_call = limit_call
        self._ready: frozenset[Request] = frozenset()  # requests whose images are open
        self._planned: dict[Request, Prompt] = {}
        eos = model.generation_config.eos_token_id
        ends = {*(eos if isinstance(eos, list) else [eos]), processor.tokenizer.eos_token_id} - {None}
        if not all(type(end) is int and end >= 0 for end in ends):
            raise ValueError(f"its end of an answer (eos_token_id) is {eos!r}, which is not a token")
        self.chat = ChatTemplate(processor, name, self.style)
        self.answers = AnswerTokens(processor.tokenizer, self.chat, ends, name)
        self._set_up()

    def _set_up(self) -> None:
        """Called last when the model is created: what a family derives from the model's files, and checks in them.

        Raises:
            Exception: The model's files contradict each other; the message is meant for the user.
        """

    @property
    def context(self) -> int | None:
        """The number of tokens that the model can read at once; None if its files do not say."""
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return most if type(most) is int and most > 0 else None

    @property
    def search(self) -> Search:
        """How answers are decoded."""
        penalty = self.settings.repetition_penalty
        if penalty == "model":
            penalty = self.model.generation_config.repetition_penalty or 1.0
        return Search(
            self.settings.num_beams,
            self.settings.length_penalty,
            float(penalty),
            self.settings.max_new_tokens,
            self.answers.stops,
        )

    # ---- texts ----

    def _harmless(self, content: str) -> str:
        """Neutralises chat markup and the tokenizer's special tokens in a text from the dataset."""
        return harmless(self.answers.markers.sub(lambda marker: f"{marker[0][0]} {marker[0][1:]}", content))

    def _harmless_example(self, example: Example) -> Example:
        return replace(example, question=self._harmless(example.question), answer=self._harmless(example.answer))

    # ---- images ----

    def picture(self, path: Path) -> Image.Image:
        """Opens an image, and resizes it to between `min_pixels` and `max_pixels` if these are set.

        Raises:
            ImageError: It cannot be read, or has too many pixels.
        """
        picture = open_image(path, self.max_image_pixels)
        return within_pixels(picture, self.settings.min_pixels, self.settings.max_pixels)

    def processed(self, texts: Sequence[str], pictures: Sequence[Sequence[Image.Image]]) -> Any:
        """What the processor makes of prompts and their images: it also tells the image processor how to cut them."""
        begin = self.processor.tokenizer.bos_token
        no_second_begin = {"add_special_tokens": False} if begin and texts[0].startswith(begin) else {}
        return self.processor(
            text=list(texts),
            images=[list(row) for row in pictures],
            padding=len(texts) > 1,
            return_tensors="pt",
            **no_second_begin,
        )

    def _shown(self, image: Path, alone: bool) -> Shown:
        """An image as it is shown in a prompt, and whether it is `alone` there, which matters to few families."""
        del alone
        return image

    def _images(self, request: Request) -> list[Shown]:
        """The images of a request, in order."""
        images = request.images
        return [self._shown(image, len(images) == 1) for image in images]

    def _disk_cache(self) -> DiskCache | None:
        folder, settings = self.settings.image_cache_dir, self.settings
        if folder is None:
            return None
        key = f"{self.fingerprint}-{self.dtype}-{settings.min_pixels}-{settings.max_pixels}-{self.max_image_pixels}"
        return DiskCache(folder, settings.image_cache_disk_mb * 2**20, key)

    def _encode_in_time(self, prepared: Sequence[Any]) -> list[Features]:
        with self._limit_call():
            return self._encode_images(prepared)

    def _count(self, grid: Grid) -> int:
        """The number of visual tokens of an image with this grid."""
        return grid[0] * grid[1]

    @abstractmethod
    def _prepare_images(self, images: Sequence[Any]) -> list[Any]:
        """Reads images as inputs of the vision encoder; returns an Exception in place of one that cannot be read."""

    @abstractmethod
    def _encode_images(self, prepared: Sequence[Any]) -> list[Features]:
        """Visual tokens of prepared images."""

    @abstractmethod
    def _open_images(self, requests: Sequence[Request], upcoming: Sequence[Request]) -> None:
        """Prepares the images of requests for prompts; those that cannot be read are added to `images.broken`.

        Images opened by previous calls may be closed. The `upcoming` ones will be opened next.
        """

    # ---- answers ----

    @abstractmethod
    def prompt(self, request: Request) -> Prompt:
        """The prompt of a request whose images are open."""

    @abstractmethod
    def _length(self, prompt: Prompt) -> int:
        """The number of tokens of a prompt, at least approximately."""

    @abstractmethod
    def _groups(self, requests: Mapping[int, Request]) -> Iterable[list[int]]:
        """Groups the keys of requests that should be answered in the same batch."""

    def _kinds(self, prompts: Mapping[int, Prompt]) -> list[Mapping[int, Prompt]]:
        """Separates prompts whose answers would depend on each other in one batch; by default there are none."""
        return [prompts]

    @abstractmethod
    def _answer_prompts(self, prompts: Mapping[int, Prompt], requests: Sequence[Request]) -> dict[int, Answer]:
        """Answers prompts. Keys are positions of the requests in `requests`."""

    def batches(self, requests: Sequence[Request], upcoming: Sequence[Request] = ()) -> Iterator[Sequence[int]]:
        """Yields batches of prompts of similar length, each within `batch_tokens`; opens the images of all requests."""
        self._open_images(requests, upcoming)
        self._ready = frozenset(requests)
        self._planned = {}
        prompts, failed = self._prompts(requests)
        self._planned = {requests[i]: prompt for i, prompt in prompts.items()}
        if failed:
            yield list(failed)
        lengths = {i: self._length(prompt) for i, prompt in prompts.items()}
        for kind in self._kinds(prompts):
            groups = self._groups({i: requests[i] for i in kind})
            yield from pack(groups, lengths, self.settings.batch_tokens)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers requests in one batch of each kind, whatever its size."""
        if not self._ready.issuperset(requests):
            self._open_images(requests, ())
            self._ready = frozenset(requests)
        prompts, answers = self._prompts(requests)
        for kind in self._kinds(prompts) if prompts else ():
            answers |= self._answer_prompts(kind, requests)
        return [answers[i] for i in range(len(requests))]

    def _prompts(self, requests: Sequence[Request]) -> tuple[dict[int, Prompt], dict[int, Answer]]:
        """Creates the prompts of requests, by position, and failed answers for requests without a prompt."""
        prompts: dict[int, Prompt] = {}
        failed: dict[int, Answer] = {}
        for i, request in enumerate(requests):
            if broken := [image for image in self._images(request) if image in self.images.broken]:
                failed[i] = Answer("", error=self.images.broken[broken[0]])
                continue
            try:
                prompts[i] = self._planned[request] if request in self._planned else self.prompt(request)
            except Exception as error:  # noqa: BLE001 - templates raise any error; too many stop the run
                failed[i] = Answer("", error=f"{type(error).__name__}: {reason_of(error)}")
                continue
            length = self._length(prompts[i])
            if self.context is not None and length > self.context:
                failed[i] = Answer("", error=_too_long(length, len(request.icds), self.context))
                del prompts[i]
        return prompts, failed

    def _answer(
        self, tokens: list[int] | None, log_probs: tuple[float, ...], lengths: tuple[int, ...], prompt_tokens: int
    ) -> Answer:
        """The answer with these tokens to a prompt of this length, with log-probs (nats) and lengths of its references.

        It has failed if its logits are not finite (`tokens` is None), or if the model thinks instead of answering.
        """
        if tokens is None or not all(map(math.isfinite, log_probs)):
            return Answer("", error=NOT_FINITE)
        decode = self.processor.tokenizer.decode
        if thinks(decode(tokens)):
            return Answer("", error=THINKS)
        text = decode(tokens, skip_special_tokens=True)
        return Answer(text, log_probs, lengths, cut=self.search.is_cut(tokens), prompt_tokens=prompt_tokens)

    def release_memory(self) -> None:
        """Returns the allocator's unused memory to the GPU."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.empty_cache()

    def advice(self) -> str | None:
        """Suggests a larger image cache if images had to be encoded again; else None."""
        return self.images.shortage()

    # ---- embeddings ----

    @torch.inference_mode()
    def embed_images(self, paths: Sequence[Path]) -> tuple[Tensor, dict[int, str]]:
        """Returns each image's mean visual token, float32 (N, d), and position → reason for unreadable images.

        Raises:
            CallsError: The device lacks memory for a single image, or hangs.
        """
        self._ready = frozenset()  # the cache may drop their features
        shown = [self._shown(path, alone=True) for path in paths]
        features = torch.zeros(len(shown), self.embed_texts([""]).shape[1])
        failed: dict[int, str] = {}
        for start in range(0, len(shown), EMBEDDED_TOGETHER):
            together = shown[start : start + EMBEDDED_TOGETHER]
            self.images.load(together)
            for i, image in enumerate(together, start):
                if image in self.images.lacked_memory:
                    remedy = "Free memory of the device, or use another one (--device)"
                    raise CallsError(f"{self.images.broken[image]}. {remedy}")
                if image in self.images.timed_out:
                    raise CallsError(f"{self.images.broken[image]}. {RESUME}")
                if image in self.images.broken:
                    failed[i] = self.images.broken[image]
                else:
                    features[i] = self.images.features(image)[:, : features.shape[1]].float().mean(0)  # (T, …) → (d)
        return features, failed

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Mean input embedding of each text's tokens, float32 (N, d)."""
        table = self.model.get_input_embeddings().weight  # (V, d)
        placeholder = self.answers.stops[0]  # used for an empty text
        encode = self.processor.tokenizer.encode
        tokens = {text: encode(text, add_special_tokens=False) or [placeholder] for text in set(texts)}
        embedded = {text: table[ids].float().mean(0).cpu() for text, ids in tokens.items()}
        return torch.stack([embedded[text] for text in texts])


def _too_long(length: int, icds: int, context: int) -> str:
    return (
        f"a prompt with {icds} ICDs has about {length:,} tokens, the model's context holds {context:,}: use fewer ICDs "
        "(--shots, --max-shots, --pointer-shots) or smaller images (--max-pixels)"
    )


def pack(groups: Iterable[Sequence[int]], lengths: Mapping[int, int], budget: int) -> Iterator[list[int]]:
    """Packs keys into batches of similar length, the longest first, each of at most `budget` tokens when padded.

    A group stays together if the budget allows it.
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

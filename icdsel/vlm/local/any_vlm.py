"""Runs models of any family that transformers can load and whose processor has a chat template.

Prompts are built with the model's own chat template and processor, answers come from its `generate`, and references
are scored one after another, each in a forward pass. Each of these passes encodes the images again;
`icdsel.vlm.local.shared_prefix` avoids that.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image
from qwen_vl_utils import extract_vision_info
from torch import Tensor

from icdsel.data.images import ImageError
from icdsel.errors import VlmError
from icdsel.records import Answer, Example
from icdsel.vlm.engine import Request
from icdsel.vlm.local.decoding import Search, are_finite, penalised, until
from icdsel.vlm.local.feature_cache import Features
from icdsel.vlm.local.model import LocalModel
from icdsel.vlm.prompts import chat_messages


@dataclass(frozen=True)
class TextPrompt:
    """A prompt as text, and the images that it shows, in order."""

    text: str
    images: tuple[Path, ...]


class AnyVlm(LocalModel[TextPrompt]):
    """Runs a model through its chat template, its processor and its own `generate`.

    Attributes:
        image_tokens: Estimated number of tokens per image; it is raised when prompts turn out longer.

    Raises:
        VlmError: There is no chat template, or a prompt with several images cannot be created.
    """

    chunk = 64
    images_at_once = 1
    read_ahead = 16  # a processor may cut an image into dozens of tiles

    def _set_up(self) -> None:
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._processing = Lock()  # images are prepared in threads, and a tokenizer serves one at a time
        query = Example(0, 0, Path("none"), "What is this?", "", ("grey",))
        self._alone = self.chat.prompt(chat_messages([], query, self.style))  # the prompt of an image that is embedded
        self._accepted = set(inspect.signature(self.model.forward).parameters)
        self._pictures: dict[Path, Image.Image] = {}
        self.image_tokens = self._try_prompt()

    # ---- images ----

    def _open_images(self, requests: Sequence[Request], upcoming: Sequence[Request]) -> None:
        del upcoming  # decoded pictures are large, so they are not opened ahead of time
        self._pictures = {}
        for path in dict.fromkeys(image for request in requests for image in request.images):
            if path not in self.images.broken:
                try:
                    self._pictures[path] = self.picture(path)
                except ImageError as error:
                    self.images.broken[path] = str(error)

    def _prepare_images(self, paths: Sequence[Path]) -> list[Any]:
        prepared: list[Any] = []
        for path in paths:
            try:
                picture = self.picture(path)
                with self._processing:
                    prepared.append(self.processed([self._alone], [[picture]]))
            except Exception as error:  # noqa: BLE001 - it becomes the reason why the image is broken
                prepared.append(error)
        return prepared

    @torch.inference_mode()
    def _encode_images(self, prepared: Sequence[Any]) -> list[Features]:
        """The mean visual token (1, d) of each image, over all of its tiles."""
        return [(self._visual_tokens(image).float().mean(0, keepdim=True), (1, 1)) for image in prepared]

    def _visual_tokens(self, inputs: Any) -> Tensor:
        encode = self.model.get_image_features
        accepted = inspect.signature(encode).parameters
        output = encode(**{key: self._placed(value) for key, value in inputs.items() if key in accepted})
        output = getattr(output, "pooler_output", output)
        tiles = [output] if isinstance(output, Tensor) else output
        return torch.cat([tile.reshape(-1, tile.shape[-1]) for tile in tiles])  # (T, d)

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.device, self.model.dtype) if value.is_floating_point() else value.to(self.device)

    # ---- prompts ----

    def prompt(self, request: Request) -> TextPrompt:
        """Creates the prompt of a request, with special tokens in its texts neutralised.

        Raises:
            Exception: The chat template fails.
        """
        icds, query = ([self._harmless_example(e) for e in request.icds], self._harmless_example(request.query))
        messages = chat_messages(icds, query, self.style)
        images = tuple(part["image"] for part in extract_vision_info(messages))
        return TextPrompt(self.chat.prompt(messages), images)

    def _length(self, prompt: TextPrompt) -> int:
        return len(self.processor.tokenizer.encode(prompt.text)) + len(prompt.images) * self.image_tokens

    def _groups(self, requests: Mapping[int, Request]) -> Iterable[list[int]]:
        """Every request is its own group, since prompts share no computation."""
        return [[i] for i in requests]

    def _kinds(self, prompts: Mapping[int, TextPrompt]) -> list[Mapping[int, TextPrompt]]:
        """Separates prompts by their number of images: Mllama computes with those that pad a row, too."""
        counts = sorted({len(prompt.images) for prompt in prompts.values()})
        return [{i: prompt for i, prompt in prompts.items() if len(prompt.images) == count} for count in counts]

    def _inputs(self, texts: Sequence[str], pictures: Sequence[Sequence[Image.Image]]) -> dict[str, Any]:
        """Creates the model's inputs, one row per prompt, padded on the left."""
        with self._processing:
            inputs = self.processed(texts, pictures)
        return {key: self._placed(value) for key, value in inputs.items() if key in self._accepted}

    def _try_prompt(self) -> int:
        """Creates a prompt with two images, and returns the estimated number of tokens per image."""
        picture = Image.new("RGB", (256, 256), "gray")
        icd = Example(0, 0, Path("none"), "What is this?", "grey", ("grey",))
        rendered = self.chat.prompt(chat_messages([icd], icd, self.style))
        try:
            inputs = self._inputs([rendered], [[picture, picture]])
        except (ValueError, TypeError, IndexError, KeyError) as error:  # processors raise different errors
            raise VlmError(f"the processor of {self.name} cannot create a prompt with two images: {error}") from None
        return int(max(1, inputs["input_ids"].shape[1] // 2))

    # ---- answers ----

    def _answer_prompts(self, prompts: Mapping[int, TextPrompt], requests: Sequence[Request]) -> dict[int, Answer]:
        targets = {
            i: [self.answers.of(prompt.text, self._harmless(reference)) for reference in requests[i].references]
            for i, prompt in prompts.items()
        }
        return dict(self._answer_or_split(prompts, targets))

    def _answer_or_split(
        self, prompts: Mapping[int, TextPrompt], targets: Mapping[int, Sequence[tuple[int, ...]]]
    ) -> Iterator[tuple[int, Answer]]:
        """Yields the answers to a batch; splits it if it turns out too large or the processor rejects a prompt."""
        batch = list(prompts)
        try:
            pictures = [[self._pictures[image] for image in prompt.images] for prompt in prompts.values()]
            inputs = self._inputs([prompt.text for prompt in prompts.values()], pictures)
        except ValueError as error:
            if len(batch) == 1:
                yield batch[0], Answer("", error=f"the processor rejects the prompt: {error}")
                return
            inputs = None
        if inputs is not None:
            length = inputs["input_ids"].shape[1]
            most_images = max(len(prompt.images) for prompt in prompts.values())
            self.image_tokens = max(self.image_tokens, length // max(1, most_images))
            if len(batch) == 1 or len(batch) * length <= self.settings.batch_tokens:
                yield from zip(batch, self._answer_batch(inputs, [targets[i] for i in batch]), strict=True)
                return
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            yield from self._answer_or_split({i: prompts[i] for i in part}, targets)

    @torch.inference_mode()
    def _answer_batch(self, inputs: dict[str, Any], targets: Sequence[Sequence[tuple[int, ...]]]) -> list[Answer]:
        watch = ScoreWatcher(inputs, self.search)
        generated = self.model.generate(
            **inputs,
            logits_processor=[watch],
            do_sample=False,
            num_beams=self.search.num_beams,
            length_penalty=self.search.length_penalty,
            early_stopping=False,
            num_return_sequences=1,
            repetition_penalty=1.0,  # `watch` applies it, since `generate` would penalise padding too
            no_repeat_ngram_size=0,
            min_new_tokens=0,
            max_new_tokens=self.search.max_new_tokens,
            eos_token_id=list(self.search.stops),
            pad_token_id=self.processor.tokenizer.pad_token_id,
            use_cache=True,
        )  # (B, L + T)
        rows = generated[:, inputs["input_ids"].shape[1] :].tolist()
        scored = self._score_references(inputs, targets)
        answers = [
            until(row, self.search.stops) if finite else None
            for row, finite in zip(rows, watch.finite.tolist(), strict=True)
        ]
        lengths = inputs["attention_mask"].sum(1).tolist()  # without padding
        return [
            self._answer(answer, *score, length) for answer, score, length in zip(answers, scored, lengths, strict=True)
        ]

    def _score_references(
        self, inputs: dict[str, Any], targets: Sequence[Sequence[tuple[int, ...]]]
    ) -> list[tuple[tuple[float, ...], tuple[int, ...]]]:
        """Log-probs and lengths of each row's references; the n-th references of all rows are scored in one pass."""
        scores: list[list[float]] = [[] for _ in targets]
        for n in range(max(map(len, targets))):
            log_probs = self._log_probs([row[n] if n < len(row) else (self.answers.stop,) for row in targets], inputs)
            for b, row in enumerate(targets):
                if n < len(row):
                    scores[b].append(log_probs[b])
        return [(tuple(score), tuple(map(len, row))) for score, row in zip(scores, targets, strict=True)]

    def _log_probs(self, targets: Sequence[tuple[int, ...]], inputs: dict[str, Any]) -> list[float]:
        """The log-prob of one target per prompt. Padding is on the right, so that positions start at 0 in every row."""
        own = inputs["attention_mask"].bool()  # (B, L)
        starts = own.sum(1).tolist()
        width = max(start + len(target) for start, target in zip(starts, targets, strict=True))
        extended = dict(inputs)
        for key, value in inputs.items():
            if isinstance(value, Tensor) and value.shape[:2] == own.shape:  # it has an entry for each token
                extended[key] = wide = value.new_zeros(len(own), width, *value.shape[2:])
                for b, (start, target) in enumerate(zip(starts, targets, strict=True)):
                    wide[b, :start] = value[b][own[b]]
                    wide[b, start : start + len(target)] = value[b, -1]  # a target is text, like a prompt's last token
        ids = extended["input_ids"]
        for b, (start, target) in enumerate(zip(starts, targets, strict=True)):
            ids[b, start : start + len(target)] = torch.tensor(target)
            ids[b, start + len(target) :] = self.processor.tokenizer.pad_token_id
        skipped = 0
        if "logits_to_keep" in self._accepted:
            skipped = min(starts) - 1
            extended["logits_to_keep"] = width - skipped
        logits = self.model(**extended, use_cache=False).logits  # (B, width - skipped, V)
        rows = [b for b, target in enumerate(targets) for _ in target]
        places = [
            start - 1 + k - skipped for start, target in zip(starts, targets, strict=True) for k in range(len(target))
        ]
        wanted = torch.tensor([token for target in targets for token in target], device=logits.device)
        each = logits[rows, places].float().log_softmax(-1).gather(1, wanted[:, None])[:, 0]
        return [float(part.sum()) for part in each.cpu().split([len(target) for target in targets])]


class ScoreWatcher:
    """A logits processor for `generate`: records which rows have non-finite scores, and penalises repetition.

    Padding is not penalised, so answers do not depend on the batch.
    """

    def __init__(self, inputs: Mapping[str, Tensor], search: Search) -> None:
        self._ids, self._own = inputs["input_ids"], inputs["attention_mask"].bool()
        self._penalty = search.repetition_penalty
        self.finite = torch.ones(len(self._ids), dtype=torch.bool, device=self._ids.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the penalised scores (B * num_beams, V) of the token after `input_ids`."""
        count, beams = len(self._ids), len(scores) // len(self._ids)
        self.finite &= are_finite(scores).view(count, beams).all(1)
        if self._penalty == 1:
            return scores
        seen = torch.zeros(count, scores.shape[1], dtype=torch.bool, device=scores.device)
        rows, places = self._own.nonzero(as_tuple=True)
        seen[rows, self._ids[rows, places]] = True
        seen = seen.repeat_interleave(beams, 0).scatter(1, input_ids[:, self._ids.shape[1] :], True)
        return penalised(scores, seen, self._penalty)

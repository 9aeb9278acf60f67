"""Models of any family that transformers can load and whose processor has a chat template.

Prompts go through the model's own chat template and processor, answers come from its `generate`, and each round of
reference answers takes a forward pass. Images are encoded anew in each of these; `icdsel.vlm.qwen_vl` need not.
"""

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from icdsel.data.images import ImageError, open_image
from icdsel.errors import VlmError
from icdsel.records import Answer, Example
from icdsel.settings.presets import CLIP_B32
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.base import NOT_FINITE, Request, Vlm, batches, prompts_of
from icdsel.vlm.decoding import Search, are_finite, penalised, until
from icdsel.vlm.feature_cache import Features
from icdsel.vlm.prompts import Message, chat_messages, harmless

MARK = "QZX"  # a text that no chat template holds


class OtherVlm(Vlm):
    """A model that is asked through its chat template, its processor and its own `generate`.

    Raises:
        VlmError: There is no chat template, or it or the processor cannot lay out a prompt with several images.
    """

    chunk = 64
    images_at_once = 1

    def __init__(
        self, model: Any, processor: Any, settings: VlmSettings, name: str, fingerprint: str, max_image_pixels: int
    ) -> None:
        super().__init__(model, processor, settings, name, fingerprint, max_image_pixels)
        tokenizer = processor.tokenizer
        if not getattr(processor, "chat_template", None):
            raise VlmError(
                f"the processor of {name} has no chat template (chat_template.jinja), so what a prompt looks like "
                f"is not known: take a model that was tuned for chat, often named -Instruct or -it"
            )
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        added = sorted(filter(_is_mark, tokenizer.get_added_vocab()), key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, added)) or r"(?!)")
        self._accepted = set(inspect.signature(model.forward).parameters)
        self._pictures: dict[Path, Image.Image] = {}
        self._plain_text = self._takes_plain_text()
        self._before, self._end = self._answer_frame()
        self._stops |= {self._end[-1]}
        self._image_tokens = self._try_two_images()  # of one image; an estimate

    # ---- images ----

    def _picture(self, path: Path) -> Image.Image:
        """The image, between `min_pixels` and `max_pixels` large where these are set."""
        picture = open_image(path, self.max_image_pixels)
        pixels = picture.width * picture.height
        wanted = max(min(pixels, self.settings.max_pixels or pixels), self.settings.min_pixels or 1)
        if wanted == pixels:
            return picture
        scale = math.sqrt(wanted / pixels)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        return picture.resize(size, Image.Resampling.BICUBIC)

    def _open(self, paths: Iterable[Path], upcoming: Iterable[Path]) -> None:
        del upcoming  # pictures are opened when their time comes
        self._pictures = {}
        for path in paths:
            if path not in self.images.broken:
                try:
                    self._pictures[path] = self._picture(path)
                except ImageError as error:
                    self.images.broken[path] = str(error)

    def _prepare_images(self, paths: Sequence[Path]) -> list[Any]:
        found: list[Any] = []
        for path in paths:
            try:
                found.append(self.processor.image_processor(images=[self._picture(path)], return_tensors="pt"))
            except Exception as error:  # noqa: BLE001 - told with the image
                found.append(error)
        return found

    @torch.inference_mode()
    def _encode_images(self, prepared: Sequence[Any]) -> list[Features]:
        """The mean visual token (1, d) of each image, over all of its tiles."""
        return [(self._visual_tokens(image).float().mean(0, keepdim=True), (1, 1)) for image in prepared]

    def _visual_tokens(self, inputs: Any) -> Tensor:
        encode = getattr(self.model, "get_image_features", None)
        if encode is None:
            raise VlmError(
                f"{self.name} has no features of single images: name another encoder, such as --encoder {CLIP_B32}"
            )
        taken = inspect.signature(encode).parameters
        found = encode(**{key: self._placed(value) for key, value in inputs.items() if key in taken})
        found = getattr(found, "pooler_output", found)
        tiles = [found] if isinstance(found, Tensor) else found
        return torch.cat([tile.reshape(-1, tile.shape[-1]) for tile in tiles])  # (T, d)

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.device, self.model.dtype) if value.is_floating_point() else value.to(self.device)

    # ---- prompts ----

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, plain_text: bool) -> str:
        """The prompt as text; with `plain_text`, turns without an image have a text as content, not parts."""
        shown: list[Message] = []
        for message in messages:
            parts = [{k: v for k, v in part.items() if k != "image"} for part in message["content"]]
            if plain_text and all(part["type"] == "text" for part in parts):
                shown.append(message | {"content": "".join(part["text"] for part in parts)})
            else:
                shown.append(message | {"content": parts})
        text: str = self.processor.apply_chat_template(
            shown, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text

    def _harmless(self, text: str) -> str:
        """A text of the dataset without the tokenizer's special tokens."""
        return harmless(self._marks.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", text))

    def _text(self, request: Request) -> str:
        icds, query = ([self._shown(e) for e in request.icds], self._shown(request.query))
        return self._render(chat_messages(icds, query, self.style), True, self._plain_text)

    def _shown(self, example: Example) -> Example:
        return replace(example, question=self._harmless(example.question), answer=self._harmless(example.answer))

    def _inputs(self, texts: Sequence[str], pictures: Sequence[Sequence[Image.Image]]) -> dict[str, Any]:
        """What the model takes, one row a prompt, padded on the left."""
        bos = self.processor.tokenizer.bos_token
        again = {"add_special_tokens": False} if bos and texts[0].startswith(bos) else {}
        made = self.processor(
            text=list(texts), images=[list(row) for row in pictures], padding=True, return_tensors="pt", **again
        )
        return {key: self._placed(value) for key, value in made.items() if key in self._accepted}

    # ---- what is found out about the template and the processor ----

    def _takes_plain_text(self) -> bool:
        """Whether turns without an image must be plain texts in this chat template."""
        system, *turns = _probe(self.style.system or MARK)
        reasons = [self._refusal([system, *turns] if self.style.system else turns, plain) for plain in (False, True)]
        if None in reasons:
            return reasons[0] is not None
        if self.style.system and None in [self._refusal(turns, plain) for plain in (False, True)]:
            raise VlmError(
                f"the chat template of {self.name} takes no system turn ({reasons[0]}): "
                f'leave it out with --system-prompt ""'
            )
        raise VlmError(f"the chat template of {self.name} cannot lay out turns with images: {reasons[0]}")

    def _refusal(self, messages: Sequence[Message], plain_text: bool) -> str | None:
        """Why the chat template cannot lay out these turns; None where it can."""
        try:
            text = self._render(messages, True, plain_text)
        except (TemplateError, TypeError, ValueError) as error:
            return str(error)
        wanted = [part["text"] for turn in messages for part in turn["content"] if part["type"] == "text"]
        lost = [piece for piece in wanted if piece.strip() not in text]
        if lost or "{'type'" in text:
            return f"it leaves out {lost[0]!r}" if lost else "it shows parts of a turn as code"
        return None

    def _answer_frame(self) -> tuple[str, tuple[int, ...]]:
        """What the template puts before an assistant's text, after the generation prompt; the tokens after it."""
        _, turn, answer, *_ = _probe("")
        opened = self._render([turn], True, self._plain_text)
        whole = self._render([turn, answer], False, self._plain_text)
        at = whole.rindex(MARK)
        before = whole[len(opened) : at] if whole[:at].startswith(opened) else ""
        after = self._encode(whole[at + len(MARK) :])
        added = self.processor.tokenizer.added_tokens_decoder
        ends = self._stops | {number for number, token in added.items() if token.special}
        cut = next((i for i, token in enumerate(after) if token in ends), None)
        if cut is not None:
            return before, after[: cut + 1]
        if not self._stops:
            raise VlmError(f"{self.name} has no token that ends an answer (eos_token_id in generation_config.json)")
        eos = self.processor.tokenizer.eos_token_id
        return before, (min(self._stops) if eos is None else eos,)

    def _try_two_images(self) -> int:
        """Tokens of one image, after a prompt with two has been made."""
        _, *turns = _probe("")
        text = self._render(turns, True, self._plain_text)
        picture = Image.new("RGB", (256, 256), "gray")
        try:
            inputs = self._inputs([text], [[picture, picture]])
        except (ValueError, TypeError, IndexError, KeyError) as error:  # what processors raise differs
            raise VlmError(f"the processor of {self.name} makes no prompt with two images: {error}") from None
        return int(max(1, inputs["input_ids"].shape[1] // 2))

    # ---- answers ----

    def _answer_all(self, requests: Mapping[int, Request]) -> Iterator[dict[int, Answer]]:
        texts, failed = prompts_of(requests, self._text)
        if failed:
            yield failed
        count = self.processor.tokenizer.encode
        lengths = {i: len(count(text)) + len(requests[i].shown) * self._image_tokens for i, text in texts.items()}
        yield from self._within_memory(
            batches([[i] for i in lengths], lengths, self.settings.batch_tokens),
            lambda batch: dict(pair for made in self._answer_or_split(batch, requests, texts) for pair in made.items()),
        )

    def _answer_or_split(
        self, batch: Sequence[int], requests: Mapping[int, Request], texts: Mapping[int, str]
    ) -> Iterator[dict[int, Answer]]:
        """The answers to a batch, in halves where it turns out too large or the processor refuses a prompt."""
        try:
            pictures = [[self._pictures[example.image] for example in requests[i].shown] for i in batch]
            inputs = self._inputs([texts[i] for i in batch], pictures)
        except ValueError as error:
            if len(batch) == 1:
                yield {batch[0]: Answer("", error=f"the processor refuses the prompt: {error}")}
                return
            inputs = None
        if inputs is not None:
            length = inputs["input_ids"].shape[1]
            self._image_tokens = max(self._image_tokens, length // max(len(requests[i].shown) for i in batch))
            if len(batch) == 1 or len(batch) * length <= self.settings.batch_tokens:
                made = self._answer_batch(inputs, [requests[i].references for i in batch])
                yield dict(zip(batch, made, strict=True))
                return
        half = len(batch) // 2
        yield from self._answer_or_split(batch[:half], requests, texts)
        yield from self._answer_or_split(batch[half:], requests, texts)

    @torch.inference_mode()
    def _answer_batch(self, inputs: dict[str, Any], references: Sequence[Sequence[str]]) -> list[Answer]:
        watch = _Watch(inputs, self.search)
        made = self.model.generate(
            **inputs,
            logits_processor=[watch],
            do_sample=False,
            num_beams=self.search.num_beams,
            length_penalty=self.search.length_penalty,
            early_stopping=False,
            num_return_sequences=1,
            repetition_penalty=1.0,  # `watch` does it, without what pads the prompts
            no_repeat_ngram_size=0,
            min_new_tokens=0,
            max_new_tokens=self.search.max_new_tokens,
            eos_token_id=list(self.search.stops),
            pad_token_id=self.processor.tokenizer.pad_token_id,
            use_cache=True,
        )  # (B, L + T)
        rows = made[:, inputs["input_ids"].shape[1] :].tolist()
        decode = self.processor.tokenizer.decode
        texts = [decode(until(row, self.search.stops), skip_special_tokens=True) for row in rows]
        scored = self._score_references(inputs, references)
        return [
            Answer(text, *score) if fine and all(map(math.isfinite, score[0])) else Answer("", error=NOT_FINITE)
            for text, score, fine in zip(texts, scored, watch.finite.tolist(), strict=True)
        ]

    def _score_references(
        self, inputs: dict[str, Any], references: Sequence[Sequence[str]]
    ) -> list[tuple[tuple[float, ...], tuple[int, ...]]]:
        """Log-probs and lengths of each row's references: the first of all rows in one pass, and so on."""
        targets = [[(*self._encode(self._before + self._harmless(t)), *self._end) for t in row] for row in references]
        scores: list[list[float]] = [[] for _ in targets]
        for n in range(max(map(len, targets))):
            read = self._read([row[n] if n < len(row) else self._end for row in targets], inputs)
            for b, row in enumerate(targets):
                if n < len(row):
                    scores[b].append(read[b])
        return [(tuple(score), tuple(map(len, row))) for score, row in zip(scores, targets, strict=True)]

    def _read(self, targets: Sequence[tuple[int, ...]], inputs: dict[str, Any]) -> list[float]:
        """The log-prob of one target after each prompt, padded on the right: positions start at 0 in every row."""
        own = inputs["attention_mask"].bool()  # (B, L)
        starts = own.sum(1).tolist()
        width = max(start + len(target) for start, target in zip(starts, targets, strict=True))
        grown = dict(inputs)
        for key, value in inputs.items():
            if isinstance(value, Tensor) and value.shape[:2] == own.shape:  # something for each token
                grown[key] = wide = value.new_zeros(len(own), width, *value.shape[2:])
                for b, (start, target) in enumerate(zip(starts, targets, strict=True)):
                    wide[b, :start] = value[b][own[b]]
                    wide[b, start : start + len(target)] = value[b, -1]  # a target is text, as a prompt's last token
        ids = grown["input_ids"]
        for b, (start, target) in enumerate(zip(starts, targets, strict=True)):
            ids[b, start : start + len(target)] = torch.tensor(target)
            ids[b, start + len(target) :] = self.processor.tokenizer.pad_token_id
        skipped = 0
        if "logits_to_keep" in self._accepted:
            skipped = min(starts) - 1
            grown["logits_to_keep"] = width - skipped
        logits = self.model(**grown, use_cache=False).logits  # (B, width - skipped, V)
        rows = [b for b, target in enumerate(targets) for _ in target]
        places = [
            start - 1 + k - skipped for start, target in zip(starts, targets, strict=True) for k in range(len(target))
        ]
        wanted = torch.tensor([token for target in targets for token in target], device=logits.device)
        each = logits[rows, places].float().log_softmax(-1).gather(1, wanted[:, None])[:, 0]
        return [float(part.sum()) for part in each.cpu().split([len(target) for target in targets])]


class _Watch:
    """Sees the scores of each step of `generate`: notes rows that are not finite, and penalises repetition.

    A prompt's padding is not penalised, so batches do not matter.
    """

    def __init__(self, inputs: Mapping[str, Tensor], search: Search) -> None:
        self._ids, self._own, self._penalty = (
            inputs["input_ids"],
            inputs["attention_mask"].bool(),
            search.repetition_penalty,
        )
        self.finite = torch.ones(len(self._ids), dtype=torch.bool, device=self._ids.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B * num_beams, V) of what follows `input_ids`."""
        count, beams = len(self._ids), len(scores) // len(self._ids)
        self.finite &= are_finite(scores).view(count, beams).all(1)
        if self._penalty == 1:
            return scores
        seen = torch.zeros(count, scores.shape[1], dtype=torch.bool, device=scores.device)
        rows, places = self._own.nonzero(as_tuple=True)
        seen[rows, self._ids[rows, places]] = True
        seen = seen.repeat_interleave(beams, 0).scatter(1, input_ids[:, self._ids.shape[1] :], True)
        return penalised(scores, seen, self._penalty)


def _probe(system: str) -> list[Message]:
    """A conversation to try a template on."""

    def turn(role: str, text: str, *before: Message) -> Message:
        return {"role": role, "content": [*before, {"type": "text", "text": text}]}

    image = {"type": "image"}
    return [
        turn("system", system),
        turn("user", "What is this?", image),
        turn("assistant", MARK),
        turn("user", "And that?", image),
    ]


def _is_mark(token: str) -> bool:
    return len(token) > 1 and not token.isspace()

"""Runs models so that each image is encoded once, and common prefixes of prompts are computed once.

A prompt consists of a header and one block per image. The prompts of a batch form a tree of such blocks, which is read
level by level. Where a prompt ends, its references are scored and its answer is decoded from the same KV cache. Masks
and positions are explicit, so the model keeps no state between calls.

To add a family of models, derive a class from `SharedPrefix` and put it into `icdsel.vlm.local.loading.FAMILIES`. It
says what differs between families, and nothing else:

* `models`: the classes of transformers that it runs.
* `_inputs`: what the vision encoder gets for opened pictures.
* `_encode_images`: the visual tokens (T, …) of images that were prepared so, and each image's grid: two numbers that
  decide the form of the image's tokens in a prompt, such as rows and columns.
* `_expansion`: the tokens in a prompt of an image with such a grid; T of them are image tokens, which the visual tokens
  replace. Other ones may stand around or between them (marks of tiles, line breaks).
* `axes` and `_positions`, if the position of a token is not a single number that counts tokens.
* `_show`, if visual tokens do more than replace embeddings.
* `_set_up`, if the family's files can contradict each other, or hold something that the above needs. A model that does
  something else than its family raises `UnlikeFamilyError`, and is run by `AnyVlm`.

The features of an image may not depend on the other images that are encoded with it. They may depend on whether it is
the only one of its prompt, if `_shown` tells the two apart. Every layer of the language model must attend to all
earlier tokens, and to no later one.
`tests/unit/vlm/test_qwen_vl.py` shows how a family is compared with transformers.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import transformers
from PIL import Image
from qwen_vl_utils import extract_vision_info
from torch import Tensor

from icdsel.data.images import ImageError
from icdsel.records import Answer, Example, QuestionId
from icdsel.vlm.engine import Request
from icdsel.vlm.local.decoding import decode
from icdsel.vlm.local.feature_cache import Grid, Shown, path_of
from icdsel.vlm.local.kv_reader import Decoder, KvReader, attends_to_all
from icdsel.vlm.local.model import LocalModel
from icdsel.vlm.local.prefix_tree import prefix_tree
from icdsel.vlm.prompts import chat_messages


class UnlikeFamilyError(Exception):
    """A model, though of a family's class, does something else than its family."""


@dataclass(frozen=True)
class Block:
    """A part of a prompt, up to the next image.

    Attributes:
        ids: Its tokens.
        image: The image that it begins with; the image's features replace the image tokens.
        grid: The grid of the image's visual tokens.
    """

    ids: tuple[int, ...]
    image: Shown | None = None
    grid: Grid = (0, 0)


class Prompt(NamedTuple):
    """A prompt as text, whose tokens decide those of an answer, and as blocks."""

    text: str
    blocks: tuple[Block, ...]


class SharedPrefix(LocalModel[Prompt]):
    """Runs a family of models; results equal those of transformers' `generate` and forward passes for single prompts.

    Attributes:
        models: The names of the classes of transformers that it runs.
        axes: How many numbers are the position of a token.
        decoder: The language model.
    """

    chunk = 512
    images_at_once = 64
    models: ClassVar[tuple[str, ...]] = ()
    axes: ClassVar[int] = 1

    @classmethod
    def supports(cls, model: Any) -> bool:
        """Whether the model is exactly of a class of transformers; a subclass could compute something else."""
        name = type(model).__name__
        known = name in cls.models and type(model) is getattr(transformers, name, None)
        return known and attends_to_all(model)

    # ---- what differs between families ----

    @abstractmethod
    def _inputs(self, pictures: Sequence[Image.Image]) -> list[Any]:
        """Converts each picture to inputs of the vision encoder. Called in threads.

        Raises:
            Exception: The processor rejects one of the pictures.
        """

    @abstractmethod
    def _expansion(self, grid: Grid) -> tuple[int, ...]:
        """The tokens of an image in a prompt."""

    def _positions(self, block: Block) -> tuple[Tensor, int]:
        """Positions of a block's tokens (axes, n), relative to its start, and the offset of the next block."""
        return torch.arange(len(block.ids))[None], len(block.ids)

    def _show(self, embeds: Tensor, places: Tensor, features: Tensor) -> dict[str, Any]:
        """Puts visual tokens into a batch of blocks.

        Args:
            embeds: The embeddings (R, L, d) of all tokens; changed in place.
            places: Where the image tokens are, (R, L) bool.
            features: The visual tokens of all images, in the order of rows, (ΣT, …).

        Returns:
            Further inputs of the language model.
        """
        embeds[places] = features
        return {}

    # ---- checks ----

    def _set_up(self) -> None:
        self._image_token: int = self.model.config.image_token_id
        self._image_marker: str = self.processor.image_token
        self.decoder = Decoder.of(self.model, self.axes)
        self._try_prompt()

    def _try_prompt(self) -> None:
        """Creates a prompt with two images, so that an unusable model is rejected when it is loaded.

        Raises:
            Exception: The model is unusable; the type depends on its files.
        """
        picture = Image.new("RGB", (64, 48), "gray")
        self._encode_images(self._inputs([picture, picture]))
        icd = Example(0, 0, Path("none"), "What is this?", "grey", ("grey",))
        query = Example(1, 1, Path("none"), "And that?", "", ("grey",))
        text = self.chat.prompt(chat_messages([icd], query, self.style))
        if (count := text.count(self._image_marker)) != 2:
            raise ValueError(f"its chat template shows {count} of two images")
        self.embed_texts([text, ""])

    # ---- images ----

    def _prepare_images(self, images: Sequence[Shown]) -> list[Any]:
        return self._prepared(images, self._inputs)

    def _prepared(self, images: Sequence[Shown], inputs: Callable[[Sequence[Image.Image]], list[Any]]) -> list[Any]:
        opened: list[Image.Image | Exception] = []
        for image in images:
            try:
                opened.append(self.picture(path_of(image)))
            except ImageError as error:
                opened.append(error)
        pictures = [picture for picture in opened if isinstance(picture, Image.Image)]
        try:
            made = iter(inputs(pictures) if pictures else [])
        except Exception:  # noqa: BLE001 - the processor rejects the shape of one of them: find out which
            return [_one_or_error(inputs, each) if isinstance(each, Image.Image) else each for each in opened]
        return [next(made) if isinstance(each, Image.Image) else each for each in opened]

    def _count(self, grid: Grid) -> int:
        return self._expansion(grid).count(self._image_token)

    def _open_images(self, requests: Sequence[Request], upcoming: Sequence[Request]) -> None:
        self.images.load(image for request in requests for image in self._images(request))
        self.images.read_ahead(image for request in upcoming for image in self._images(request))

    # ---- prompts ----

    def prompt(self, request: Request) -> Prompt:
        """Creates the prompt of a request.

        Raises:
            Exception: The chat template fails, or renders more or fewer images than the messages contain.
        """
        icds, query = [self._harmless_example(icd) for icd in request.icds], self._harmless_example(request.query)
        messages = chat_messages(icds, query, self.style)
        paths = [part["image"] for part in extract_vision_info(messages)]
        images = [self._shown(path, alone=len(paths) == 1) for path in paths]
        text = self.chat.prompt(messages)
        return Prompt(text, self._blocks(text, [(image, self.images.grid(image)) for image in images]))

    def _blocks(self, text: str, images: Sequence[tuple[Shown, Grid]]) -> tuple[Block, ...]:
        """Divides a prompt into blocks, given the grids of its images."""
        tokens = self.answers.of_prompt(text)
        if (count := tokens.count(self._image_token)) != len(images):
            raise ValueError(f"the chat template shows {count} of {len(images)} images")
        blocks: list[Block] = []
        ids: list[int] = []
        image: Shown | None = None
        grid = (0, 0)
        upcoming = iter(images)
        for token in tokens:
            if token != self._image_token:
                ids.append(token)
                continue
            blocks.append(Block(tuple(ids), image, grid))
            image, grid = next(upcoming)
            ids = list(self._expansion(grid))
        return (*blocks, Block(tuple(ids), image, grid))

    def _length(self, prompt: Prompt) -> int:
        return sum(len(block.ids) for block in prompt.blocks)

    def _groups(self, requests: Mapping[int, Request]) -> Iterable[list[int]]:
        """Groups requests by query, since only prompts of the same query are likely to share a prefix."""
        queries: dict[tuple[QuestionId, Path], list[int]] = {}
        for i, request in requests.items():
            queries.setdefault((request.query.question_id, request.query.image), []).append(i)
        return queries.values()

    # ---- answers ----

    @torch.inference_mode()
    def _answer_prompts(self, prompts: Mapping[int, Prompt], requests: Sequence[Request]) -> dict[int, Answer]:
        answers: dict[int, Answer] = {}
        reader = KvReader(self.decoder, 1)
        for level in prefix_tree({key: prompt.blocks for key, prompt in prompts.items()}):
            reader = reader.taken(level.parents)
            hidden = self._read(reader, level.blocks)  # (R, L, d)
            if level.ends:
                nodes, keys = zip(*level.ends, strict=True)
                last = [len(level.blocks[node].ids) - 1 for node in nodes]
                logits = reader.logits(hidden[list(nodes), last])  # (E, V)
                ends = reader.taken(nodes) if level.inner else reader
                if not level.inner:
                    ends.select(torch.tensor(nodes, device=self.device))
                references = [requests[key].references for key in keys]
                decoded = self._answers(ends, logits, [prompts[key] for key in keys], references)
                answers |= zip(keys, decoded, strict=True)
            if level.inner:
                reader.select(torch.tensor(level.inner, device=self.device))
        return answers

    def _read(self, reader: KvReader, blocks: Sequence[Block]) -> Tensor:
        """Reads one block in each row, padded at its end, and returns the last hidden states (R, L, d)."""
        longest = max(len(block.ids) for block in blocks)
        ids = torch.full((len(blocks), longest), self.answers.stop)
        positions = torch.zeros(self.axes, len(blocks), longest, dtype=torch.long)
        own = torch.zeros(len(blocks), longest, dtype=torch.bool)
        extents = torch.zeros(len(blocks), dtype=torch.long)
        for r, block in enumerate(blocks):
            length = len(block.ids)
            ids[r, :length], own[r, :length] = torch.tensor(block.ids), True
            positions[:, r, :length], extents[r] = self._positions(block)
        ids, positions, own, extents = (x.to(self.device) for x in (ids, positions, own, extents))
        embeds = self.decoder.embed(ids)  # (R, L, d)
        more: dict[str, Any] = {}
        if shown := [self.images.features(block.image) for block in blocks if block.image is not None]:
            features = torch.cat(shown).to(self.device, embeds.dtype)  # (ΣT, …)
            more = self._show(embeds, (ids == self._image_token) & own, features)
        return reader.read(embeds, positions, own, extents, **more)

    def _answers(
        self, reader: KvReader, logits: Tensor, prompts: Sequence[Prompt], references: Sequence[Sequence[str]]
    ) -> list[Answer]:
        """Answers and scores prompts that the reader has read, one per row, given the next token's logits (R, V)."""
        targets = [
            [self.answers.of(prompt.text, self._harmless(text)) for text in row]
            for prompt, row in zip(prompts, references, strict=True)
        ]
        scored = reader.score(targets, logits)
        answers = decode(logits, self._seen(prompts, logits), reader, self.search)
        return [
            self._answer(answer, *score, self._length(prompt))
            for answer, score, prompt in zip(answers, scored, prompts, strict=True)
        ]

    def _seen(self, prompts: Sequence[Prompt], logits: Tensor) -> Tensor | None:
        """A mask (R, V) of the tokens that occur in each prompt; None if repetition is not penalised."""
        if self.search.repetition_penalty == 1:
            return None
        seen = torch.zeros(logits.shape, dtype=torch.bool)
        for r, prompt in enumerate(prompts):
            seen[r, [token for block in prompt.blocks for token in block.ids]] = True
        return seen.to(logits.device)


def _one_or_error(inputs: Callable[[Sequence[Image.Image]], list[Any]], picture: Image.Image) -> Any:
    try:
        return inputs([picture])[0]
    except Exception as error:  # noqa: BLE001 - it becomes the reason why the image is broken
        return error

"""Whether a server makes the same tokens of a prompt as the model's own tokenizer and template on this machine.

They are compared where a server tells the tokens of a prompt, and the model's files are here. Otherwise a server could
read prompts by another template, or shrink images, and nobody would notice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeGuard

from PIL import Image

from icdsel.console import logger
from icdsel.data.images import within_pixels
from icdsel.errors import VlmError, reason_of
from icdsel.settings.presets import TINY_VLM
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.local.answer_tokens import AnswerTokens
from icdsel.vlm.prompts import Message, PromptStyle, chat_messages
from icdsel.vlm.server.probes import pictures

_AROUND = 6  # tokens that a message shows


@dataclass(frozen=True)
class _Example:
    images: tuple[Image.Image]
    question: str
    answer: str = ""


def two_shot_prompt(settings: VlmSettings) -> list[Message]:
    """The messages of a prompt of two ICDs with drawn images, laid out as the settings say."""
    images = [within_pixels(picture, settings.min_pixels, settings.max_pixels) for picture in pictures()]
    icds = [_Example((images[0],), "What is it?", "lines"), _Example((images[1],), "How many are there?", "2")]
    return chat_messages(icds, _Example((images[2],), "Which colour?"), PromptStyle.of(settings))


class LocalTokenizer:
    """Processor and chat template of a model whose files are on this machine.

    Args:
        folder: Its files.
        name: Its name, for messages.
        settings: How prompts are laid out.

    Raises:
        VlmError: The model's template cannot show prompts as they are laid out.
        Exception: The files cannot be read, or there is no template.
    """

    def __init__(self, folder: Path, name: str, settings: VlmSettings) -> None:
        from transformers import AutoProcessor

        from icdsel.vlm.local.chat_template import ChatTemplate
        from icdsel.vlm.local.pretrained import SAFE_LOADING, quiet, require_valid

        require_valid(folder)
        with quiet():
            self.processor: Any = AutoProcessor.from_pretrained(str(folder), **SAFE_LOADING)
        self.chat = ChatTemplate(self.processor, name, PromptStyle.of(settings))
        self._folder, self._name = str(folder), name

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a prompt, those of images included."""
        text = self.chat.prompt(messages)
        shown = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
        begin = self.processor.tokenizer.bos_token
        no_second_begin = {"add_special_tokens": False} if begin and text.startswith(begin) else {}
        made = self.processor(text=[text], images=[shown], **no_second_begin)["input_ids"][0]
        return [int(token) for token in made]

    def answer_tokens(self) -> AnswerTokens:
        """Tokenizes answers behind prompts.

        Raises:
            VlmError: No token ends an answer.
        """
        from transformers import AutoConfig, GenerationConfig

        from icdsel.vlm.local.pretrained import SAFE_LOADING, quiet

        with quiet():
            try:
                generation = GenerationConfig.from_pretrained(self._folder, local_files_only=True)
            except OSError:  # not every model has one
                config = AutoConfig.from_pretrained(self._folder, **SAFE_LOADING)
                generation = GenerationConfig.from_model_config(config)
        eos, tokenizer = generation.eos_token_id, self.processor.tokenizer
        ends = {*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id} - {None}
        return AnswerTokens(tokenizer, self.chat, ends, self._name)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, markers included."""
        return str(self.processor.tokenizer.decode(list(tokens)))


def local_tokenizer(settings: VlmSettings) -> LocalTokenizer | None:
    """Tokenizer and template of the model in the settings; None if its files are not on this machine.

    Raises:
        VlmError: The model's template cannot show prompts as they are laid out.
    """
    folder = _folder(settings.model)
    if folder is None:
        return None
    try:
        return LocalTokenizer(folder, settings.model, settings)
    except VlmError:
        raise
    except Exception as error:  # noqa: BLE001 - files of any kind; the server need not agree with them
        logger.debug(f"the tokenizer in {folder} cannot be used: {reason_of(error)}")
        return None


def _folder(model: str) -> Path | None:
    if model == TINY_VLM:
        from icdsel.vlm.local.loading import TINY_VLM_DIR

        return TINY_VLM_DIR
    if Path(model).is_dir():
        return Path(model)
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(model, local_files_only=True))
    except Exception:  # noqa: BLE001 - it is not a name on the hub, or not in the cache
        return None


def are_tokens(value: object) -> TypeGuard[list[int]]:
    """Whether a value from a server is a list of tokens."""
    return isinstance(value, list) and all(type(token) is int and 0 <= token < 2**31 for token in value)


def require_same_tokens(
    address: str, server: Sequence[int], local: LocalTokenizer, messages: Sequence[Message]
) -> None:
    """Compares the tokens of a prompt.

    Raises:
        VlmError: They differ; the message says where, and what to change.
    """
    own = local.tokens(messages)
    if own == list(server):
        return
    if _without_repeats(own) == _without_repeats(server):
        raise VlmError(
            f"{address} makes {len(server)} tokens of a prompt with three images, the model's own processor "
            f"{len(own)}: it resizes images differently. Start it without limits of image size (vLLM "
            "--mm-processor-kwargs), and set them with --min-pixels and --max-pixels instead"
        )
    at = next((n for n, (a, b) in enumerate(zip(own, server, strict=False)) if a != b), min(len(own), len(server)))
    there, here = (local.text(tokens[max(0, at - _AROUND) : at + _AROUND]) for tokens in (server, own))
    raise VlmError(
        f"{address} reads prompts differently than the files of the model on this machine: from token {at} on it has "
        f"{there!r} instead of {here!r}. Let it use the model's own chat template and tokenizer (vLLM --chat-template, "
        "--tokenizer), or name the folder of the files that it serves with --model"
    )


def _without_repeats(tokens: Sequence[int]) -> list[int]:
    """Tokens with runs of the same one, such as those of an image, counted once."""
    return [token for token, _ in groupby(tokens)]

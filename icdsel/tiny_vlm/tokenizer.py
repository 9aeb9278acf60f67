"""The tokenizer and processor of the tiny VLM, with the special tokens and chat markup of Qwen2.5-VL."""

from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from icdsel.data import world
from icdsel.data.world.questions import CARELESS, SYNONYMS, WORDINGS
from icdsel.settings.tables import VlmSettings

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- else -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def _corpus() -> Iterator[str]:
    """Yields the texts of the world's prompts; the tokenizer is trained on them, so that each word is one token."""
    defaults = VlmSettings()
    yield "system\nuser\nassistant\n"
    yield defaults.system_prompt
    answers = [*world.code_words(), *(value for values in world.VALUES.values() for value in values)]
    for kind, wordings in WORDINGS.items():
        for template in wordings + CARELESS[kind]:
            for words in SYNONYMS.values():
                for word in words:
                    question = template.format(attribute=word, other=word)
                    for answer in (*answers, "-".join(answers[:2])):
                        yield defaults.icd_template.replace("{question}", question).replace("{answer}", answer)
    yield from answers


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer: it encodes any text, and each of the world's words as a single token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # an upper bound: training ends when every word is one token
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def build_processor() -> Any:
    """Creates the processor, which `AutoProcessor` later loads from the tiny VLM's folder."""
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )

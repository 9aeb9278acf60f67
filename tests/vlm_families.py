"""Small random models of several families, with chat templates that have the forms of published ones."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from more_vlm_families import idefics2, llava_next, qwen2_vl, qwen3_vl, qwen3_vl_moe, smolvlm
from vlm_parts import TEXT, VISION, byte_tokenizer, ends_of, save, sentencepiece_tokenizer


def idefics3(folder: Path) -> None:
    """SmolVLM's family: an image is split into tiles; text before the assistant's, and marks of its own."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    marks = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places]
    tokenizer = byte_tokenizer(marks, bos_token="<s>", eos_token="<end_of_utterance>", pad_token="<pad>")
    template = (
        "<s>{% for turn in messages %}{{ turn.role | capitalize }}:"
        "{% if turn.content[0].type == 'text' %}{{ ' ' }}{% endif %}"
        "{% for part in turn.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
        "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    images = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template)
    names = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Idefics3Config(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT, **names},
        vision_config=VISION,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **names,
    )
    model = Idefics3ForConditionalGeneration(config)
    save(folder, model, processor)


def llava_onevision(folder: Path) -> None:
    """A single image is tiled, several are not; the template lays out all images before all texts."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = byte_tokenizer(["<image>", "<video>", "<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>")
    template = (
        "{% for turn in messages %}<|im_start|>{{ turn.role }}\n"
        "{% if turn.content is string %}{{ turn.content }}{% else %}"
        "{% for part in turn.content | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
        "{% for part in turn.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}{% endif %}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    size, tiles = {"height": 32, "width": 32}, [[32, 32], [32, 64], [64, 32], [64, 64]]
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=tiles),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    config = LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            **TEXT,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": None,
            "bos_token_id": None,
        },
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=tiles,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    save(folder, model, processor)


def gemma3(folder: Path) -> None:
    """Image tokens see each other both ways; the end of a turn is not the tokenizer's end of a text."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessor, Gemma3Processor

    of_images = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = byte_tokenizer(
        ["<start_of_turn>", "<end_of_turn>"],
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=of_images,
    )
    template = (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        "{% for turn in messages %}<start_of_turn>{{ 'model' if turn.role == 'assistant' else turn.role }}\n"
        "{% for part in turn.content %}"
        "{{ '<start_of_image>' if part.type == 'image' else part.text | trim }}"
        "{% endfor %}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    images = Gemma3ImageProcessor(size={"height": 32, "width": 32})
    processor = Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=template)
    number = tokenizer.convert_tokens_to_ids
    config = Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            **TEXT,
            "head_dim": 8,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "tie_word_embeddings": False,
        },
        vision_config={"vision_use_head": False, **VISION},
        mm_tokens_per_image=4,
        image_token_index=number("<image_soft_token>"),
        boi_token_index=number("<start_of_image>"),
        eoi_token_index=number("<end_of_image>"),
        tie_word_embeddings=False,
    )
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        model.model.multi_modal_projector.mm_input_projection_weight.normal_()  # it begins as zeros
        for layer in model.model.language_model.layers:
            layer.post_attention_layernorm.weight.fill_(4.0)  # so that the prompt outweighs its last token
    save(folder, model, processor, [tokenizer.eos_token_id, number("<end_of_turn>")])


def llava(folder: Path) -> None:
    """LLaVA-1.5: a SentencePiece tokenizer, all images of a turn first, and no token at the end of an answer."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = sentencepiece_tokenizer(["<image>"], bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    template = (
        "{% for turn in messages %}{% if turn.role != 'system' %}{{ turn.role | upper + ': ' }}{% endif %}"
        "{% for part in turn.content | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
        "{% for part in turn.content | selectattr('type', 'equalto', 'text') %}{{ part.text + ' ' }}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    size = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT, **ends_of(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **VISION},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    model = LlavaForConditionalGeneration(config)
    save(folder, model, processor)


def mistral3(folder: Path) -> None:
    """Images keep their shape, in rows of tokens; the processor tells the image processor the size of a patch."""
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        PixtralImageProcessor,
        PixtralProcessor,
    )

    marks = ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"]
    tokenizer = byte_tokenizer(marks, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    template = (
        "{{ bos_token }}{% for turn in messages %}{% if turn.role == 'user' %}[INST]"
        "{% for part in turn.content %}{{ '[IMG]' if part.type == 'image' else part.text }}{% endfor %}[/INST]"
        "{% elif turn.role == 'assistant' %}{{ turn.content[0].text }}{{ eos_token }}"
        "{% else %}{{ turn.content[0].text }}{% endif %}{% endfor %}"
    )
    images = PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 16, "width": 16})
    processor = PixtralProcessor(images, tokenizer, patch_size=8, spatial_merge_size=2, chat_template=template)
    config = Mistral3Config(
        text_config={
            "model_type": "mistral",
            "vocab_size": len(tokenizer),
            **TEXT,
            "head_dim": 8,
            **ends_of(tokenizer),
        },
        vision_config={"model_type": "pixtral", **VISION, "image_size": 64},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    model = Mistral3ForConditionalGeneration(config)
    save(folder, model, processor)


def internvl(folder: Path) -> None:
    """The processor tells the image processor to cut images into tiles."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    of_images = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = byte_tokenizer(
        ["<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>", pad_token="<pad>", extra_special_tokens=of_images
    )
    template = (
        "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% if turn.content is string %}{{ turn.content }}"
        "{% else %}{% for part in turn.content %}"
        "{{ '<IMG_CONTEXT>\n' if part.type == 'image' else part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    images = GotOcr2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=False, max_patches=4)
    processor = InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(size={"height": 32, "width": 32}), image_seq_length=4,
        chat_template=template,
    )  # fmt: skip
    config = InternVLConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            **TEXT,
            **ends_of(tokenizer),
            "tie_word_embeddings": False,
        },
        vision_config={**VISION, "image_size": (32, 32), "patch_size": (8, 8)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    model = InternVLForConditionalGeneration(config)
    save(folder, model, processor)


def mllama(folder: Path) -> None:
    """Llama 3.2 Vision: images are not tokens of the text, but read by cross-attention; the prompt states the date."""
    from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaImageProcessor, MllamaProcessor

    marks = ["<|image|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"]
    tokenizer = byte_tokenizer(
        marks, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|finetune_right_pad_id|>"
    )
    template = (
        "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n"
        "{% for turn in messages %}{% if turn.role != 'system' %}"
        "<|start_header_id|>{{ turn.role }}<|end_header_id|>\n\n{% endif %}{% for part in turn.content %}"
        "{{ '<|image|>' if part.type == 'image' else part.text | trim }}{% endfor %}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )
    images = MllamaImageProcessor(size={"height": 32, "width": 32}, max_image_tiles=2)
    processor = MllamaProcessor(images, tokenizer, chat_template=template)
    vision = {key: VISION[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    config = MllamaConfig(
        text_config={
            **TEXT,
            "num_hidden_layers": 3,
            "cross_attention_layers": [1],
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            **ends_of(tokenizer),
        },
        vision_config={
            **vision,
            "attention_heads": 2,
            "num_global_layers": 1,
            "image_size": 32,
            "patch_size": 8,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "intermediate_layers_indices": [1],
            "vision_output_dim": 48,
            "initializer_range": 0.3,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    model = MllamaForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("attn_gate", "mlp_gate", "gate_attn", "gate_ffn")):
                weight.fill_(0.7)  # they begin as zeros, so that images would not count
    save(folder, model, processor)


def glm4v(folder: Path) -> None:
    """GLM-4V: an answer ends with the marker of the next user turn, which is no end of a text."""
    from transformers import (
        Glm4vConfig,
        Glm4vForConditionalGeneration,
        Glm4vImageProcessor,
        Glm4vProcessor,
        Glm4vVideoProcessor,
    )

    marks = ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|begin_of_image|>", "<|image|>"]
    marks += ["<|end_of_image|>", "<|video|>", "<|begin_of_video|>", "<|end_of_video|>"]
    tokenizer = byte_tokenizer(marks, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    template = (
        "[gMASK]<sop>{% for turn in messages %}<|{{ turn.role }}|>\n{% for part in turn.content %}"
        "{{ '<|begin_of_image|><|image|><|end_of_image|>' if part.type == 'image' else part.text }}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    images = Glm4vImageProcessor(size=size, patch_size=8, merge_size=2)
    videos = Glm4vVideoProcessor(size=size, patch_size=8, merge_size=2)
    processor = Glm4vProcessor(images, tokenizer, videos, chat_template=template)
    number = tokenizer.convert_tokens_to_ids
    vision = {key: VISION[key] for key in ("hidden_size", "intermediate_size", "image_size", "patch_size")}
    config = Glm4vConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]},
            **ends_of(tokenizer),
        },
        vision_config={**vision, "depth": 2, "num_heads": 2, "out_hidden_size": 32, "initializer_range": 0.3},
        image_token_id=number("<|image|>"),
        video_token_id=number("<|video|>"),
        image_start_token_id=number("<|begin_of_image|>"),
        image_end_token_id=number("<|end_of_image|>"),
        video_start_token_id=number("<|begin_of_video|>"),
        video_end_token_id=number("<|end_of_video|>"),
    )
    model = Glm4vForConditionalGeneration(config)
    save(folder, model, processor)


@dataclasses.dataclass(frozen=True)
class Family:
    build: Callable[[Path], None]
    before: str
    """What the template puts between the generation prompt and an answer."""
    end: str
    changes: dict[str, str] = dataclasses.field(default_factory=dict)
    image: str = "<image>"
    """What stands for an image in a prompt."""


FAMILIES = {
    "idefics3": Family(idefics3, " ", "<end_of_utterance>"),
    "smolvlm": Family(smolvlm, " ", "<end_of_utterance>"),
    "llava_onevision": Family(llava_onevision, "", "<|im_end|>", {"layout": "turns"}),
    "gemma3": Family(gemma3, "", "<end_of_turn>", {"system_prompt": ""}, image="<start_of_image>"),
    "llava": Family(llava, " ", "</s>", {"layout": "turns"}),
    "mistral3": Family(mistral3, "", "</s>", image="[IMG]"),
    "internvl": Family(internvl, "", "<|im_end|>", image="<IMG_CONTEXT>"),
    "mllama": Family(mllama, "", "<|eot_id|>", image="<|image|>"),
    "idefics2": Family(idefics2, " ", "<end_of_utterance>"),
    "llava_next": Family(llava_next, "", "</s>", {"layout": "turns"}),
    "qwen2_vl": Family(qwen2_vl, "", "<|im_end|>", image="<|image_pad|>"),
    "qwen3_vl": Family(qwen3_vl, "", "<|im_end|>", image="<|image_pad|>"),
    "qwen3_vl_moe": Family(qwen3_vl_moe, "", "<|im_end|>", image="<|image_pad|>"),
    "glm4v": Family(glm4v, "", "<|user|>", image="<|image|>"),
}
SHARED = ("qwen2_vl", "qwen3_vl", "idefics3", "smolvlm", "llava_onevision", "internvl")
"""Those whose prompts share what they have in common."""
ALIKE = ("qwen3_vl_moe", "glm4v")
"""More such families, which are built like one of those and therefore tested less."""

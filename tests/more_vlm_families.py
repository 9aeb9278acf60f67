"""More small random models; see `vlm_families`."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast
from vlm_parts import TEXT, VISION, byte_tokenizer, ends_of, save, sentencepiece_tokenizer


def idefics2(folder: Path) -> None:
    """A SentencePiece tokenizer; images of any shape become the same number of tokens."""
    from transformers import Idefics2Config, Idefics2ForConditionalGeneration, Idefics2ImageProcessor, Idefics2Processor

    marks = ["<image>", "<fake_token_around_image>", "<end_of_utterance>"]
    tokenizer = sentencepiece_tokenizer(marks, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    template = (
        "<s>{% for turn in messages %}{{ turn.role | capitalize }}:"
        "{% if turn.content[0].type == 'text' %}{{ ' ' }}{% endif %}"
        "{% for part in turn.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
        "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    images = Idefics2ImageProcessor(size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=False)
    processor = Idefics2Processor(images, tokenizer, image_seq_len=4, chat_template=template)
    config = Idefics2Config(
        text_config={
            "model_type": "mistral",
            "vocab_size": len(tokenizer),
            **TEXT,
            "head_dim": 8,
            **ends_of(tokenizer),
        },
        vision_config=VISION,
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 1,
            "initializer_range": 0.3,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Idefics2ForConditionalGeneration(config)
    save(folder, model, processor, [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(marks[2])])


def llava_next(folder: Path) -> None:
    """Every image is tiled; all images of a turn come first."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tokenizer = byte_tokenizer(["<image>", "[INST]", "[/INST]"], eos_token="</s>", pad_token="<pad>")
    template = (
        "{% for turn in messages %}{% if turn.role == 'user' %}[INST] "
        "{% for part in turn.content if part.type == 'image' %}<image>\n{% endfor %}"
        "{% for part in turn.content if part.type == 'text' %}{{ part.text }}{% endfor %} [/INST]"
        "{% else %}{{ turn.content[0].text }}{{ '</s>' if turn.role == 'assistant' else ' ' }}{% endif %}{% endfor %}"
    )
    tiles = [[32, 64], [64, 32], [64, 64]]
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=tiles
        ),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    config = LlavaNextConfig(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT, **ends_of(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **VISION},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=tiles,
        tie_word_embeddings=False,
    )
    model = LlavaNextForConditionalGeneration(config)
    save(folder, model, processor)


def _chat_of_qwen() -> tuple[PreTrainedTokenizerFast, str]:
    marks = ["<|im_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>"]
    tokenizer = byte_tokenizer(marks, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    template = (
        "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% for part in turn.content %}"
        "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer, template


def _tokens_of_qwen(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return {name: tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in names.items()}


def qwen2_vl(folder: Path) -> None:
    """Images of any shape, positions with three axes in sections."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer, template = _chat_of_qwen()
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessor(size=size, patch_size=8, merge_size=2)
    videos = Qwen2VLVideoProcessor(size=size, patch_size=8, merge_size=2)
    processor = Qwen2VLProcessor(images, tokenizer, videos, chat_template=template)
    config = Qwen2VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]},
            **ends_of(tokenizer),
        },
        vision_config={
            "depth": 2,
            "embed_dim": 24,
            "mlp_ratio": 2,
            "num_heads": 2,
            "patch_size": 8,
            "hidden_size": TEXT["hidden_size"],
            "initializer_range": 0.3,
        },
        **_tokens_of_qwen(tokenizer),
    )
    save(folder, Qwen2VLForConditionalGeneration(config), processor)


def qwen3_vl(folder: Path) -> None:
    """Positions with interleaved axes; visual features also enter the first layers of the text model."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    _qwen3_vl(folder, Qwen3VLForConditionalGeneration, Qwen3VLConfig, {})


def qwen3_vl_moe(folder: Path) -> None:
    """Qwen3-VL with two of four experts for each token."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
    _qwen3_vl(folder, Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeConfig, experts)


def _qwen3_vl(folder: Path, model: type, config: type, experts: dict[str, int]) -> None:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    tokenizer, template = _chat_of_qwen()
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessor(size=size, patch_size=8, merge_size=2)
    videos = Qwen3VLVideoProcessor(size=size, patch_size=8, merge_size=2)
    processor = Qwen3VLProcessor(images, tokenizer, videos, chat_template=template)
    vision = {key: VISION[key] for key in ("hidden_size", "intermediate_size", "patch_size", "initializer_range")}
    made = config(
        text_config={
            **TEXT,
            **experts,
            "num_hidden_layers": 3,
            "head_dim": 8,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]},
            **ends_of(tokenizer),
        },
        vision_config={
            **vision,
            "depth": 3,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        **_tokens_of_qwen(tokenizer),
    )
    save(folder, model(made), processor)


def smolvlm(folder: Path) -> None:
    """Like Idefics3, with a processor and a vision encoder of its own; nothing is added to texts."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    places = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    marks = ["<|im_start|>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places]
    tokenizer = byte_tokenizer(marks, eos_token="<end_of_utterance>", pad_token="<|im_end|>")
    template = (
        "<|im_start|>{% for turn in messages %}{{ turn.role | capitalize }}"
        "{{ ':' if turn.content[0].type == 'image' else ': ' }}"
        "{% for part in turn.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
        "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    edges = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**edges),
        tokenizer,
        SmolVLMVideoProcessor(**edges),
        image_seq_len=4,
        chat_template=template,
    )
    names = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = SmolVLMConfig(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT, **names},
        vision_config=VISION,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **names,
    )
    save(folder, SmolVLMForConditionalGeneration(config), processor)

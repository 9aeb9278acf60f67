"""The architecture of the tiny VLM: Qwen2.5-VL with 2.1 M parameters."""

from typing import Any

from transformers import Qwen2_5_VLConfig

GRID = 4
"""Patches per row and per column of an image of 56×56 pixels."""
VISUAL_TOKENS = 4
"""Visual tokens per image: patches are merged 2×2."""
WIDTH = 128
"""Width of text embeddings and of visual tokens."""


def make_config(processor: Any) -> Qwen2_5_VLConfig:
    """The configuration that goes with the tiny VLM's processor."""
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in processor.tokenizer.all_special_tokens}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "initializer_range": 0.04,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 4,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0, 1, 2, 3],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )

"""Real architectures with random weights, to measure speed and memory without a download."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from icdsel.settings.loading import Settings
from icdsel.settings.tables import VlmSettings
from icdsel.tiny_vlm.tokenizer import build_processor
from icdsel.vlm.devices import resolve_dtype, vlm_device
from icdsel.vlm.local.pretrained import quiet
from icdsel.vlm.local.qwen_vl import QwenVl

QWEN_3B = "qwen2.5-vl-3b"
TINY = "tiny"
ARCHITECTURES: dict[str, dict[str, dict[str, Any]]] = {
    # From the config.json of Qwen/Qwen2.5-VL-3B-Instruct.
    QWEN_3B: {
        "text": {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151_936,
            "max_position_embeddings": 128_000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "out_hidden_size": 2048,
        },
    },
    # Small, with the same components: grouped-query attention, windowed attention in the vision encoder.
    TINY: {
        "text": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        "vision": {
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": 64,
        },
    },
}


def random_vlm(architecture: str, settings: VlmSettings, max_image_pixels: int, seed: int) -> QwenVl:
    """Creates a Qwen2.5-VL of this architecture with random weights, initialised on the device.

    It uses the tokenizer of the tiny VLM: its token ids are meaningless to the model, but prompts are about as long as
    with the original tokenizer.
    """
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    device = vlm_device(settings)
    processor = build_processor()
    token = processor.tokenizer.convert_tokens_to_ids
    sizes = ARCHITECTURES[architecture]
    config = Qwen2_5_VLConfig(
        text_config=sizes["text"] | {"tie_word_embeddings": True},
        vision_config=sizes["vision"],
        tie_word_embeddings=True,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(resolve_dtype(settings.dtype, device))
    try:
        with device:
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config = GenerationConfig(eos_token_id=processor.tokenizer.eos_token_id)
    name = f"{architecture} (random weights)"
    return QwenVl(model.eval(), processor, settings, name, f"random-{architecture}-{seed}", max_image_pixels)


@contextmanager
def saved_vlm(architecture: str, settings: Settings) -> Iterator[Path]:
    """The folder of such a VLM in its dtype, for the time of the block: several processes can load it."""
    vlm = random_vlm(architecture, settings.vlm, settings.data.max_image_pixels, settings.data.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / architecture
        with quiet():
            vlm.model.save_pretrained(folder)
            vlm.processor.save_pretrained(folder)
        del vlm
        yield folder

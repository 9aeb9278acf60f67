"""Names, aliases, presets and recipes: what the settings choose from, and the defaults that depend on one another."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

WORLD = "world"
TINY_VLM = "tiny-vlm"
QWEN_3B = "Qwen/Qwen2.5-VL-3B-Instruct"
"""The default VLM for every dataset but the bundled worlds."""
QWEN_7B = "Qwen/Qwen2.5-VL-7B-Instruct"
CLIP_B32 = "openai/clip-vit-base-patch32"
CLIP_L14 = "openai/clip-vit-large-patch14"
VLM_ENCODER = "vlm"

DATA_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Endings of files that are datasets. Results are named after the file without its ending."""

COLUMN_FIELDS = {
    "question": "question",
    "answers": "answers",
    "answer": "answer",
    "image": "image",
    "id": "question_id",
    "question_id": "question_id",
    "image_id": "image_id",
    "split": "split",
    "options": "options",
    "hint": "hint",
    "pool": "pool",
    "task": "task",
}
"""The fields that `--columns` assigns columns to, and their names in records."""
OPTIONAL_FIELDS = ("id", "question_id", "options", "hint", "pool", "task")
"""Those that `--columns` can ignore, as `id=` does: then rows are numbered, and have no options, for example."""

QUERIES = {"vqav2": 5000}
"""How many training queries are scored by default, for datasets that differ from the rest."""

METRICS = {"vqav2": "official", "okvqa": "lemmatised"}
"""The default metrics of the datasets that have published results; others have the task's first metric."""

# Reward modes of Lever-Plus that are rejected, and why.
RETIRED_MODES = {
    "legacy": "with its own default weights it gives every pointer a reward of 0",
    "hybrid": "Lever-Plus lists it, then rejects it",
}
# The names that the scripts of Lever-Plus use.
DATASET_ALIASES = {"okvqa_local": "okvqa", "vqav2_local": "vqav2"}
SAMPLER_ALIASES = {
    "rand_sampler": "rand",
    "randsampler": "rand",
    "text_sim_sampler": "text-sim",
    "textsimsampler": "text-sim",
    "img_sim_sampler": "img-sim",
    "imgsimsampler": "img-sim",
    "mix_sampler": "mix",
    "mixsampler": "mix",
}
MODEL_ALIASES = {
    "qwen2.5_vl_3b": QWEN_3B,
    "qwen2.5-vl-3b": QWEN_3B,
    "qwen2.5-vl-3b-instruct": QWEN_3B,
    "qwen2.5_vl_7b": QWEN_7B,
    "qwen2.5-vl-7b": QWEN_7B,
    "qwen2.5-vl-7b-instruct": QWEN_7B,
}
NORMALIZATION_ALIASES = {"rank_normalize": "rank", "z-score": "z_score"}

# The system message of Lever-Plus (its configs/infer_model/qwen2.5_vl_3B.yaml), to the character.
LEVER_PLUS_SYSTEM_PROMPT = (
    "In the upcoming task, you will see four sets of dialogues, each containing two roles: user and assistant. The "
    "user is the questioner, who provides an image and asks a question based on it; the assistant is the responder, "
    "who answers according to the image and question provided by the user. Afterward, you will receive an image and "
    "a question from the user. Please act as the assistant and answer based on the four previous dialogue sets and "
    "your own knowledge. Strictly follow the answering format: if the examples use only one or two keywords, your "
    "reply must also use only one or two keywords; if the examples contain no more than three tokens, your reply "
    "must not exceed three tokens either."
)

SEPARATE = "separate"
"""The value of `--embed` that keeps image and question apart."""

# The defaults that a preset changes: given values override them.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "icdsel": {},
    # To choose from the whole training split, and as few ICDs as are worth it (docs/selectors.md).
    "whole-set": {
        "data": {"pool_size": "all", "embed": SEPARATE},
        "proposals": {"min_shots": 0, "beam": 2, "samples": 1, "retrieval": 1, "random": 0, "answers": 3, "prune": 2},
        "reward": {"price": 0.1},
        "train": {"rce_epochs": 8},
    },
    "lever-plus": {
        "data": {
            "shown_answer": "stemmed",
            "metric": "openflamingo",
            "pool_rules": "lever-plus",
            "exclude_same_image": False,
        },
        "vlm": {
            "system_prompt": LEVER_PLUS_SYSTEM_PROMPT,
            "num_beams": 3,
            "length_penalty": 0.0,
            "repetition_penalty": "model",
            "clean_answers": "lever-plus",
        },
        "train": {"recipe": "lever-plus"},
    },
}


MOST_SHOTS = 16
"""The largest number of ICDs in a pointer."""

OPTION_TASKS = ("choice", "classify")
OF_OPTIONS: dict[str, Any] = {"choice_by": "rank", "show_options": False}
"""How the tiny VLM chooses an option of a bundled world: it knows no letters."""
GATED: dict[str, Any] = {"question_gate": 32, "tower": 0, "num_layers": 0, "update": "residual"}
"""The network for embeddings that hold image and question apart (docs/selectors.md)."""
GATED_OVER_ALL: dict[str, Any] = {
    "rce_over": "best",
    "negatives": 256,
    "rce_lr": 2e-3,
    "rce_lr_end": 0.1,
    "batch_size": 32,
}
"""How it is trained to choose from the whole training split."""

STD_FLOOR = 0.1
"""A group of rewards counts less, in proportion, if its standard deviation is smaller."""


class Recipe(BaseModel):
    """How the two recipes differ: defaults of settings of the same names, and the rules of GRPO."""

    model_config = ConfigDict(frozen=True)

    gate: bool
    tower: int
    num_heads: int
    dropout: float
    attn_dropout: float
    rce_over: Literal["group", "pool"]
    rce_pool_weight: float
    old_log_probs: Literal["before-rce", "before-grpo"]
    """When GRPO's old log-probs are computed."""
    advantage_over: Literal["group", "top-k"]
    """Advantages over the whole group, or over its best 3 (first epoch) or 5 pointers."""
    dropout_in_ratio: bool
    """Whether dropout is on while the new log-probs are computed."""
    adapt_beta: Literal["epoch", "batch"]
    """How often the weight of the KL term is adapted."""
    kl: Literal["k3", "seed"]
    """The estimator of the KL term."""
    std_floor: float
    """The floor of the standard deviation of raw rewards; 0: a floor of normalized ones, whose deviation is 1."""


RECIPES: dict[str, Recipe] = {
    "icdsel": Recipe(
        gate=True, tower=512, num_heads=4, dropout=0.1, attn_dropout=0.1, rce_over="group", rce_pool_weight=1.0,
        old_log_probs="before-grpo", advantage_over="group", dropout_in_ratio=False, adapt_beta="epoch", kl="k3",
        std_floor=STD_FLOOR,
    ),
    "lever-plus": Recipe(
        gate=False, tower=0, num_heads=1, dropout=0.5, attn_dropout=0.1, rce_over="pool", rce_pool_weight=0.0,
        old_log_probs="before-rce", advantage_over="top-k", dropout_in_ratio=True, adapt_beta="batch", kl="seed",
        std_floor=0.0,
    ),
}  # fmt: skip

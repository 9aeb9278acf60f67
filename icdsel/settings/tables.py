"""Every setting of icdsel: its default, its bounds and what it means, in one place. Loads no torch.

A value comes from, in this order: a flag on the command line, an `ICDSEL_<TABLE>_<NAME>` variable,
`icdsel.toml` in the working directory, the default below. Unknown keys are errors.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_settings import (
    NoDecode,
)

from icdsel.settings.presets import DATASET_ALIASES, MODEL_ALIASES, RECIPES, RETIRED_MODES, SAMPLER_ALIASES, WORLD

Sampler = Literal["rand", "text-sim", "img-sim", "mix"]
Metric = Literal["official", "openflamingo", "lemmatised"]
RewardMode = Literal[
    "hard_plus_soft",
    "hard_plus_soft_v2",
    "separated",
    "hard_only",
    "soft_only",
    "hard01_plus_gtprob",
    "hard01_plus_gtprob_separated",
    "hard_plus_gtprob_plus_rel",
]
Selector = Literal[
    "policy",
    "zero-shot",
    "random",
    "nearest-image",
    "nearest-question",
    "nearest-both",
    "nearest-both-all",
    "majority",
    "oracle",
]


def _alias(names: Mapping[str, str]) -> BeforeValidator:
    return BeforeValidator(lambda value: names.get(value.lower(), value) if isinstance(value, str) else value)


def _split(value: object) -> object:
    """`1,2,3` and `[1, 2, 3]` (as text) are lists too."""
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[] ").split(",") if part.strip()]
    return list(value) if isinstance(value, tuple | set) else value


def _named(path: object) -> object:
    if path == "":  # which Python takes for the working directory
        raise ValueError("it is empty: name a file or folder")
    return path


Place = Annotated[Path, BeforeValidator(_named)]
PositivePenalty = Annotated[float, Field(gt=0)] | Literal["model"]
PoolSize = Annotated[int, Field(ge=1)] | Literal["all"]
Ints = Annotated[tuple[int, ...], NoDecode, BeforeValidator(_split)]
Floats = Annotated[tuple[float, ...], NoDecode, BeforeValidator(_split)]
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_split)]
Selectors = Annotated[tuple[Selector, ...], NoDecode, BeforeValidator(_split)]


def _not_flamingo(model: object) -> object:
    if isinstance(model, str) and re.search(r"flamingo|idefics-?(9|80)b|idefics_?v?1\b", model, re.IGNORECASE):
        raise ValueError(
            "Flamingo and the first IDEFICS are not supported (they need libraries that are no longer kept); use "
            "qwen2.5-vl-3b, or another model of today with --model, such as HuggingFaceTB/SmolVLM-Instruct"
        )
    return model


def _not_retired(mode: object) -> object:
    if isinstance(mode, str) and mode in RETIRED_MODES:
        raise ValueError(f"this mode is retired ({RETIRED_MODES[mode]}); use hard_plus_soft")
    return mode


class Table(BaseModel):
    """A table of settings; unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        for name, value in self:
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{name} is beyond 64 bits")
            if isinstance(value, str | Path) and "\0" in str(value):
                raise ValueError(f"{name} holds a zero byte")
        return self


def _names_a_folder(dataset: str) -> str:
    if dataset.endswith(".jsonl") and Path(dataset).stem in ("", ".", ".."):
        raise ValueError("results lie in a folder of the file's name without .jsonl, which that would be none of")
    return dataset


class DataSettings(Table):
    """Which examples, which pools, and where files lie."""

    preset: Literal["icdsel", "lever-plus"] = "icdsel"
    """Everything as icdsel does it, or answers, pools, prompts, decoding, metric and training as Lever-Plus."""
    dataset: Annotated[str, _alias(DATASET_ALIASES), AfterValidator(_names_a_folder)] = WORLD
    """`world` (bundled), `okvqa`, `vqav2`, a file of JSON lines (`my.jsonl`), or a hub name (`hub:owner/name`)."""
    data_dir: Place = Path("data")
    """Folder that holds the dataset's question and annotation files; the bundled world is written here."""
    image_dir: Place | None = None
    """Folder that holds the images, where they do not lie with the questions."""
    on_image_error: Literal["stop", "skip"] = "stop"
    """Whether a missing or damaged image stops the run, or its examples are counted and left out."""
    max_image_pixels: int = Field(65_000_000, ge=1)
    """Images of more pixels than this are refused as damaged (decompression bombs)."""
    shown_answer: Literal["raw", "stemmed"] = "raw"
    """What a demonstration answers in OK-VQA: what people wrote, or the stemmed form. [stemmed under lever-plus]"""
    metric: Metric = "official"
    """VQA accuracy: the official code's, OpenFlamingo's, or with lemmatised predictions. [by preset]"""
    results_dir: Place = Path("results")
    """Folder under which everything is written."""
    sampler: Annotated[Sampler, _alias(SAMPLER_ALIASES)] = "rand"
    """How a query's candidate pool is drawn: at random, by text or image similarity, or a mix (32/16/16)."""
    pool_size: PoolSize = 64
    """Candidates in a query's pool; `all` makes the whole training split one pool that all queries share."""
    pool_rules: Literal["icdsel", "lever-plus"] = "icdsel"
    """How pools of training queries are drawn: each for itself, or to the number as Lever-Plus. [by preset]"""
    exclude_same_image: bool = True
    """Keep examples that show the query's own image out of its pool. [false under lever-plus]"""
    embed: Literal["both", "image", "question"] = "both"
    """What the selector sees of an example: image and question, or one of them."""
    encoder: str | None = None
    """What embeds examples: `vlm` (the VLM's own features) or a CLIP-like model's name or folder.
    [`vlm` on the world or with the tiny VLM, else openai/clip-vit-base-patch32]"""
    sampler_encoder: str | None = None
    """The encoder of samplers and nearest neighbours. [the encoder; CLIP ViT-L/14 under lever-plus]"""
    train_embeddings: Place | None = None
    """Vectors of the training split to use as they are: the original's `query_embeddings.pt`, or safetensors."""
    seed: int = Field(42, ge=0)
    """The one seed that decides everything that is drawn."""


class VlmSettings(Table):
    """The vision-language model that is asked, and how it is asked."""

    MACHINE: ClassVar = (
        *("device", "batch_tokens", "max_failed", "call_timeout"),
        *("image_cache_mb", "image_cache_dir", "image_cache_disk_mb"),
    )
    """The settings of where the model runs, what it may use and remember: answers do not depend on them."""

    model: Annotated[str | None, _alias(MODEL_ALIASES), BeforeValidator(_not_flamingo)] = None
    """A name (`tiny-vlm`, `qwen2.5-vl-3b`), a Hugging Face name or a folder. [by dataset]"""
    engine: str = "auto"
    """What runs the model: `auto` (by the model), `qwen-vl`, or `transformers` (any model, slower)."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model, as you would a program: it can do whatever you can."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:0`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the VLM; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    system_prompt: str = "Answer the last question with one word or a short phrase, like any answers shown before it."
    """The system turn; empty leaves it to the model's own chat template."""
    icd_template: str = "Question:{question} Short answer:{answer}"
    """The text of a demonstration."""
    query_template: str = "Question:{question} Short answer:"
    """The text of the query."""
    layout: Literal["one-turn", "turns"] = "one-turn"
    """Demonstrations and query in one user turn, or as turns of a conversation."""
    max_new_tokens: int = Field(5, ge=1)
    """Longest answer, in tokens."""
    num_beams: int = Field(1, ge=1, le=16)
    """Beams of the answer's search; 1 is greedy. [3 under lever-plus]"""
    length_penalty: float = 1.0
    """Exponent of the length that a beam's log-prob is divided by. [0 under lever-plus]"""
    repetition_penalty: PositivePenalty = 1.0
    """Penalty of tokens that the prompt or the answer holds; `model` takes the model's own. [by preset]"""
    clean_answers: Literal["strip", "lever-plus"] = "strip"
    """What is done to an answer: spaces stripped, or cut at words and commas as Lever-Plus does. [by preset]"""
    min_pixels: int | None = Field(None, ge=1)
    """Images are enlarged to at least this many pixels. [by the model's processor]"""
    max_pixels: int | None = Field(None, ge=1)
    """Images are shrunk to at most this many pixels. [by the model's processor]"""
    batch_tokens: int = Field(16_384, ge=1)
    """Tokens of prompts that the VLM reads at once; less needs less memory, answers stay the same."""
    max_failed: float = Field(0.1, ge=0, le=1)
    """Share of calls that may fail; the run stops where it is more, and what was finished is kept."""
    call_timeout: float = Field(1800, ge=0.01, le=1e7)
    """Seconds that prompts which are read at once may take; then each is tried alone, and what hangs has failed."""
    image_cache_mb: int = Field(1024, ge=0)
    """Memory for the visual features of images already seen."""
    image_cache_dir: Place | None = None
    """Folder that keeps the features which memory has no room for, also for later runs. [none: they are made again]"""
    image_cache_disk_mb: int = Field(20_480, ge=0)
    """What is written there at most."""

    @model_validator(mode="after")
    def _templates_ask(self) -> Self:
        for name in ("icd_template", "query_template"):
            if "{question}" not in getattr(self, name):
                raise ValueError(f"{name} must contain {{question}}")
        if "{answer}" not in self.icd_template:
            raise ValueError("icd_template must contain {answer}")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels ({self.min_pixels}) is above max_pixels ({self.max_pixels})")
        return self


class ProposalSettings(Table):
    """Which pointers are tried for a query."""

    queries: int | None = Field(None, ge=2)
    """Training queries to score. [800; 5000 for vqav2]"""
    query_split: Literal["train", "tuning", "validation"] = Field("train", json_schema_extra={"flag": "--split"})
    """Split that the queries come from; candidates always come from the training split."""
    shots: int = Field(2, ge=1, le=16, json_schema_extra={"flag": "--pointer-shots"})
    """ICDs in a pointer."""
    beam: int = Field(5, ge=0)
    """Pointers from a beam search."""
    samples: int = Field(2, ge=0)
    """Pointers sampled at each temperature."""
    temperatures: Floats = (1.0, 1.3)
    """Temperatures of the sampled pointers."""
    retrieval: int = Field(5, ge=0)
    """Pointers of nearest neighbours, of consecutive ranks."""
    random: int = Field(1, ge=0)
    """Pointers drawn at random."""
    init: Place | None = None
    """Checkpoint whose policy proposes; without one the cosine of the embeddings does."""

    @model_validator(mode="after")
    def _something_to_try(self) -> Self:
        if any(not temperature > 0 for temperature in self.temperatures):
            raise ValueError("temperatures must be above 0")
        if self.beam + self.samples * len(self.temperatures) + self.retrieval + self.random == 0:
            raise ValueError("no pointer is asked for: set beam, samples, retrieval or random above 0")
        return self


class RewardSettings(Table):
    """How a reward is made of what the VLM answered."""

    mode: Annotated[RewardMode, BeforeValidator(_not_retired)] = Field(
        "hard_plus_soft", json_schema_extra={"flag": "--reward-mode"}
    )
    """How a reward is made of hard and soft correctness."""
    hard_weight: float = Field(1.0, ge=0)
    """Weight of hard correctness (accuracy above 0)."""
    soft_weight: float = Field(1.0, ge=0)
    """Weight of soft correctness (the VQA accuracy), or of the right answer's probability."""
    rel_weight: float = Field(0.1, ge=0)
    """Weight of relevance, in the mode that has it."""
    normalization: Annotated[
        Literal["z_score_clamp", "z_score", "rank"], _alias({"rank_normalize": "rank", "z-score": "z_score"})
    ] = Field("z_score_clamp", json_schema_extra={"flag": "--reward-normalization"})
    """How rewards are normalised within a query, where they are."""
    clamp: float = Field(3.0, gt=0, json_schema_extra={"flag": "--reward-clamp"})
    """Bound of a clamped z-score."""
    skip_fallback: bool = True
    """Leave out candidates of Lever-Plus that were scored by matching strings, not by the VQA accuracy."""
    require_correct: bool = False
    """Train only on queries with a pointer that was answered correctly."""
    accept_unsound: bool = False
    """Take RL data of Lever-Plus that were made up or asked without the demonstrations' answers."""


class TrainSettings(Table):
    """The pointer network and its training."""

    recipe: Literal["icdsel", "lever-plus"] = "icdsel"
    """The corrected training and a better network, or the original's, to the number."""
    rce_epochs: int = Field(5, ge=0)
    """Epochs of reward-weighted cross-entropy."""
    grpo_epochs: int = Field(0, ge=0)
    """Epochs of GRPO after it (0: RCE only, the baseline)."""
    batch_size: int = Field(1, ge=1)
    """Queries per step."""
    rce_lr: float = Field(1e-4, gt=0)
    """Learning rate of RCE."""
    grpo_lr: float = Field(5e-6, gt=0)
    """Learning rate of GRPO."""
    kl_beta: float = Field(0.15, ge=0)
    """Weight of the KL term."""
    online: bool = False
    """GRPO samples pointers from the policy as it learns, and has the VLM score those that are new."""
    online_samples: int = Field(8, ge=1)
    """Pointers that `online` samples for each query in every epoch."""
    vlm_budget: int | None = Field(None, ge=0)
    """VLM calls that `online` may make at most. [epochs × queries × samples]"""
    num_layers: int = Field(1, ge=1, le=8)
    """Cross-attention layers."""
    rce_normalized_reward: bool = False
    """RCE weights from rewards normalised per query instead of raw ones."""
    freeze_backbone: bool = False
    """GRPO trains only the pointer head; the projections stay fixed."""
    rce_over: Literal["group", "pool"] | None = None
    """What RCE normalises the policy over: the query's scored pointers, or its whole pool. [by recipe]"""
    rce_temp_start: float = Field(2.0, gt=0)
    """RCE's temperature at the first step."""
    rce_temp_end: float = Field(0.5, gt=0)
    """RCE's temperature at the last step."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of RCE."""
    clip_epsilon: float = Field(0.2, gt=0)
    """Clip range of GRPO's ratio."""
    hidden_dim: int = Field(256, ge=1)
    """Width of the pointer network."""
    num_heads: int | None = Field(None, ge=1)
    """Attention heads. [by recipe]"""
    tower: int | None = Field(None, ge=0)
    """Width of the tower that queries and candidates share; 0 for the original's two projections. [by recipe]"""
    gate: bool | None = None
    """Whether a chosen ICD changes the query's state. [by recipe]"""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout before the projections. [by recipe]"""
    attn_dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout in the attention. [by recipe]"""
    init: Place | None = None
    """Checkpoint to start from, of icdsel or Lever-Plus."""
    warm_start: Place | None = None
    """Lever-Plus's InfoScore data (its `generate_data.py`), whose beams are imitated before RCE."""
    warm_epochs: int = Field(5, ge=1)
    """Epochs of that imitation."""
    train_seed: int | None = Field(None, ge=0, json_schema_extra={"flag": "--train-seed"})
    """Seed of the training alone, to repeat it on the same data. [the seed]"""
    tensorboard: bool = False
    """Write the metrics of every epoch for TensorBoard too, to the run's folder."""

    # What the recipe fills in.
    by_recipe: ClassVar[tuple[str, ...]] = ("num_heads", "tower", "gate", "dropout", "attn_dropout", "rce_over")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_recipe(cls, values: Any) -> Any:
        if not isinstance(values, dict) or str(values.get("recipe", "icdsel")) not in RECIPES:
            return values
        recipe = RECIPES[values.get("recipe", "icdsel")]
        filled = {name: getattr(recipe, name) for name in cls.by_recipe if values.get(name) is None}
        return values | filled

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.rce_epochs + self.grpo_epochs == 0:
            raise ValueError("rce_epochs and grpo_epochs are both 0: nothing would be trained")
        if self.online and not self.grpo_epochs:
            raise ValueError("online is GRPO's: set grpo_epochs too, as in --online --grpo-epochs 5")
        if self.online and RECIPES[self.recipe].old_log_probs == "before-rce":
            raise ValueError(f"the recipe {self.recipe} has no online GRPO: use the recipe icdsel")
        if self.num_heads and self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim ({self.hidden_dim}) must be a multiple of num_heads ({self.num_heads})")
        return self


class InferSettings(Table):
    """Which queries are answered, by which selectors."""

    n: int = 100
    """Queries to answer; -1 for all."""
    shots: Ints = (1, 2, 3, 4)
    """Numbers of ICDs to show."""
    selector: Selectors = ("policy",)
    """Who chooses the ICDs (several with commas)."""
    subset: Literal["first", "random"] = "first"
    """The first n queries by question_id, or n drawn with the seed."""
    split: Literal["validation", "tuning"] = "validation"
    """Split that the queries come from."""
    random_seed: int | None = Field(None, ge=0)
    """Seed of the selector `random`. [the seed]"""

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.n == 0 or self.n < -1:
            raise ValueError(f"n is {self.n}: give the number of queries, or -1 for all")
        if not self.shots or min(self.shots) < 1 or len(set(self.shots)) < len(self.shots):
            raise ValueError("shots must be different numbers of 1 or more; 0 shots is the selector zero-shot")
        if not self.selector:
            raise ValueError("no selector is named")
        return self


TABLES: dict[str, type[Table]] = {
    "data": DataSettings,
    "vlm": VlmSettings,
    "proposals": ProposalSettings,
    "reward": RewardSettings,
    "train": TrainSettings,
    "infer": InferSettings,
}

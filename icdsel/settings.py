"""Every setting of icdsel: its default, its bounds and what it means, in one place. Loads no torch.

A value comes from, in this order: a flag on the command line, an `ICDSEL_<TABLE>_<NAME>` variable,
`icdsel.toml` in the working directory, the default below. Unknown keys are errors.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from icdsel.errors import SettingsError
from icdsel.reading import read_whole

CONFIG_FILE = Path("icdsel.toml")
_LARGEST_FILE = 2**20  # bytes
ENV_PREFIX = "ICDSEL_"

WORLD = "world"
TINY_VLM = "tiny-vlm"

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

# Modes of Lever-Plus that are refused, and why.
RETIRED_MODES = {
    "legacy": "with its own default weights it gives every pointer 0",
    "hybrid": "Lever-Plus lists it, then refuses it",
}

# The names that the original's scripts used.
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
    "qwen2.5_vl_3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2.5-vl-3b-instruct": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2.5_vl_7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen2.5-vl-7b-instruct": "Qwen/Qwen2.5-VL-7B-Instruct",
}
# How a sampler is spelled in file names.
SAMPLER_FILE_NAMES: dict[str, str] = {
    "rand": "RandSampler",
    "text-sim": "TextSimSampler",
    "img-sim": "ImgSimSampler",
    "mix": "MixSampler",
}


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


# The original's system turn (its configs/infer_model/qwen2.5_vl_3B.yaml), to the character.
LEVER_PLUS_SYSTEM_PROMPT = (
    "In the upcoming task, you will see four sets of dialogues, each containing two roles: user and assistant. The "
    "user is the questioner, who provides an image and asks a question based on it; the assistant is the responder, "
    "who answers according to the image and question provided by the user. Afterward, you will receive an image and "
    "a question from the user. Please act as the assistant and answer based on the four previous dialogue sets and "
    "your own knowledge. Strictly follow the answering format: if the examples use only one or two keywords, your "
    "reply must also use only one or two keywords; if the examples contain no more than three tokens, your reply "
    "must not exceed three tokens either."
)
CLIP_B32 = "openai/clip-vit-base-patch32"
CLIP_L14 = "openai/clip-vit-large-patch14"
VLM_ENCODER = "vlm"

# What `preset` sets, where it is not set by itself: specification §1.1, §2, §3, §7.2.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "icdsel": {},
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


class Recipe(BaseModel):
    """What the two recipes differ in: the network's defaults and the rules of GRPO."""

    model_config = ConfigDict(frozen=True)

    gate: bool
    tower: int
    num_heads: int
    dropout: float
    attn_dropout: float
    rce_over: Literal["group", "pool"]
    old_log_probs: Literal["before-rce", "before-grpo"]
    """When GRPO's old log-probs are taken."""
    advantage_over: Literal["group", "top-k"]
    """Advantages over the whole group, or over its best 3 (first epoch) or 5 pointers."""
    dropout_in_ratio: bool
    """Whether dropout is on while the new log-probs are computed."""
    adapt_beta: Literal["epoch", "batch"]
    """How often the weight of the KL term is adapted."""
    kl: Literal["k3", "seed"]
    """The estimator of the KL term."""


RECIPES: dict[str, Recipe] = {
    "icdsel": Recipe(
        gate=True, tower=512, num_heads=4, dropout=0.1, attn_dropout=0.1, rce_over="group",
        old_log_probs="before-grpo", advantage_over="group", dropout_in_ratio=False, adapt_beta="epoch", kl="k3",
    ),
    "lever-plus": Recipe(
        gate=False, tower=0, num_heads=1, dropout=0.5, attn_dropout=0.1, rce_over="pool",
        old_log_probs="before-rce", advantage_over="top-k", dropout_in_ratio=True, adapt_beta="batch", kl="seed",
    ),
}  # fmt: skip


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


class _KnownVariables(EnvSettingsSource):
    """The `ICDSEL_*` variables that are settings; others are warned about (`stray_variables`), not refused."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        known = variable_names()
        return {name: value for name, value in super()._load_env_vars().items() if name.upper() in known}


class Settings(BaseSettings):
    """All tables together."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
    )

    data: DataSettings = DataSettings()
    vlm: VlmSettings = VlmSettings()
    proposals: ProposalSettings = ProposalSettings()
    reward: RewardSettings = RewardSettings()
    train: TrainSettings = TrainSettings()
    infer: InferSettings = InferSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags first, then variables, then `icdsel.toml`."""
        _ = env_settings, dotenv_settings, file_secret_settings
        return init_settings, _KnownVariables(settings_cls), InitSettingsSource(settings_cls, _of_file())

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """What goes with the preset, the dataset and the model, where nothing is said."""
        if not isinstance(values, dict):
            return values
        try:
            return values | _filled_in({table: dict(values.get(table, {})) for table in TABLES})
        except (TypeError, ValueError):
            return values  # one of them is no table, which is refused below

    def usual(self) -> dict[str, Table]:
        """The tables as they would be with this dataset, model, preset and recipe and nothing else said."""
        given: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
        given["data"] = {"dataset": self.data.dataset, "preset": self.data.preset}
        given["vlm"] = {"model": self.vlm.model}
        if self.train.recipe != PRESETS[self.data.preset].get("train", {}).get("recipe"):
            given["train"] = {"recipe": self.train.recipe}
        return {table: TABLES[table](**values) for table, values in _filled_in(given).items()}

    @property
    def model_name(self) -> str:
        """The VLM's name as file names spell it: the last part, dots as underscores."""
        return Path(self.vlm.model or TINY_VLM).name.replace(".", "_").replace(" ", "_")

    @property
    def pair_name(self) -> str:
        """`<Sampler>_<Model>`, which names RL data and runs."""
        return f"{SAMPLER_FILE_NAMES[self.data.sampler]}_{self.model_name}"

    @property
    def dataset_dir(self) -> Path:
        """`results/<dataset>`; of a file its stem, of a hub name `<owner>--<name>`."""
        dataset = self.data.dataset
        if dataset.startswith("hub:"):
            return self.data.results_dir / dataset.removeprefix("hub:").replace("/", "--").replace(":", "--")
        return self.data.results_dir / (Path(dataset).stem if dataset.endswith(".jsonl") else dataset)


TABLES: dict[str, type[Table]] = {
    "data": DataSettings,
    "vlm": VlmSettings,
    "proposals": ProposalSettings,
    "reward": RewardSettings,
    "train": TrainSettings,
    "infer": InferSettings,
}


def _filled_in(values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`values` with what goes with the preset, the dataset and the model, where nothing is said."""
    data, vlm, proposals = values["data"], values["vlm"], values["proposals"]
    for table, preset in PRESETS.get(str(data.get("preset", "icdsel")), {}).items():
        for name, value in preset.items():
            if values[table].get(name) is None:
                values[table][name] = value
    dataset = str(data.get("dataset", WORLD)).lower()
    dataset = DATASET_ALIASES.get(dataset, dataset)
    if vlm.get("model") is None:
        vlm["model"] = TINY_VLM if dataset == WORLD else MODEL_ALIASES["qwen2.5-vl-3b"]
    if proposals.get("queries") is None:
        proposals["queries"] = 5000 if dataset == "vqav2" else 800
    if data.get("encoder") is None:
        data["encoder"] = VLM_ENCODER if dataset == WORLD or vlm["model"] == TINY_VLM else CLIP_B32
    if data.get("sampler_encoder") is None:
        own = data["encoder"] != VLM_ENCODER and data.get("preset") == "lever-plus"
        data["sampler_encoder"] = CLIP_L14 if own else data["encoder"]
    return values


def unusual(table: Table, default: Table, leave_out: Iterable[str] = ()) -> list[str]:
    """What of `table` differs from `default`, each in a few letters that a file name can hold."""
    parts = []
    for name in type(table).model_fields:
        value = getattr(table, name)
        if name in leave_out or value == getattr(default, name):
            continue
        text = name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(text if value else f"no-{text}")
        else:
            shown = value.stem if isinstance(value, Path) else f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{text}-{shown}")
    return parts


def flag(name: str, field: FieldInfo) -> str:
    """The command-line flag of a setting: its name with dashes, unless the field names another."""
    extra = field.json_schema_extra
    named = extra.get("flag") if isinstance(extra, dict) else None
    return str(named) if named else "--" + name.replace("_", "-")


def every_setting() -> Iterator[tuple[str, str, FieldInfo]]:
    """(table, name, field) of every setting, in order."""
    for table, model in TABLES.items():
        for name, field in model.model_fields.items():
            yield table, name, field


def variable_names() -> set[str]:
    """`ICDSEL_<TABLE>_<NAME>` of every setting."""
    return {f"{ENV_PREFIX}{table}_{name}".upper() for table, name, _ in every_setting()}


def _of_file() -> dict[str, Any]:
    """What `icdsel.toml` says, if there is one.

    Raises:
        OSError, ValueError, RecursionError: It cannot be read.
    """
    try:
        content = read_whole(CONFIG_FILE, _LARGEST_FILE)
    except FileNotFoundError:
        return {}
    return tomllib.loads(content.decode("utf-8-sig"))  # editors may put a mark before it


def load_settings(given: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Settings from flags (`given`, by table; None means not given), variables, `icdsel.toml` and defaults.

    Raises:
        SettingsError: an unknown key, or a value that is not allowed; the message says where and what is.
    """
    flags = {
        table: {name: value for name, value in values.items() if value is not None} for table, values in given.items()
    }
    try:
        return Settings(**{table: values for table, values in flags.items() if values})  # type: ignore[arg-type]
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{CONFIG_FILE} is not valid TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{CONFIG_FILE} is not UTF-8: byte {error.start}") from None
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem) for problem in _merged(error.errors()))) from None
    except OSError as error:
        raise SettingsError(f"{CONFIG_FILE} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise SettingsError(f"{CONFIG_FILE} cannot be read: {error}") from None


def with_values(settings: Settings, values: Mapping[str, Mapping[str, Any]]) -> Settings:
    """`settings` with other values by table and name, checked as if they had been given.

    A recipe brings its own values of what the present one filled in.

    Raises:
        SettingsError: an unknown name, or a value that is not allowed.
    """
    changed: dict[str, Table] = {}
    for table, given in values.items():
        kept = getattr(settings, table).model_dump()
        if "recipe" in given:
            filled_in = {name: getattr(RECIPES[settings.train.recipe], name) for name in TrainSettings.by_recipe}
            kept = {name: value for name, value in kept.items() if name not in filled_in or filled_in[name] != value}
        try:
            changed[table] = TABLES[table].model_validate(kept | dict(given))
        except ValidationError as error:
            problems = [problem | {"loc": (table, *problem["loc"])} for problem in error.errors()]
            raise SettingsError("\n".join(_explain(problem) for problem in _merged(problems))) from None
    return settings.model_copy(update=changed)


def _merged(problems: Iterable[Any]) -> list[Any]:
    """One problem for each setting: what may be this or that is refused as both."""
    merged: dict[tuple[Any, ...], Any] = {}
    for problem in problems:
        same = merged.setdefault(
            problem["loc"][:2] if problem["type"] != "extra_forbidden" else problem["loc"], problem
        )
        if same is not problem:
            message = problem["msg"].removeprefix("Input should be ")
            merged[problem["loc"][:2]] = same | {"msg": f"{same['msg']}, or {message}"}
    return list(merged.values())


def _explain(problem: Any) -> str:
    """One line about a setting that was refused."""
    place = [str(part) for part in problem["loc"]]
    known = {f"{table}.{name}": field for table, name, field in every_setting()}
    dotted = ".".join(place[:2])
    if problem["type"] == "extra_forbidden":
        inside = place[0] if len(place) > 1 else None
        names = list(TABLES[inside].model_fields) if inside in TABLES else list(TABLES)
        close = difflib.get_close_matches(place[-1], names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
        return f"unknown setting {'.'.join(place)!r} ({hint})"
    message = problem["msg"].removeprefix("Value error, ")
    if dotted not in known:
        return f"[{place[0]}] {message}" if place else message
    spelled = flag(place[1], known[dotted])
    try:
        return f"{spelled} ({dotted}): {message}, got {problem['input']!r}"
    except ValueError:  # an integer of thousands of digits
        return f"{spelled} ({dotted}): {message}"


def without_effect(settings: Settings, tables: Iterable[str]) -> list[str]:
    """A warning for each setting of `tables` that was changed and that another one keeps from having an effect."""
    usual = settings.usual()
    idle = {
        ("train", "warm_epochs"): "without --warm-start" if settings.train.warm_start is None else "",
        ("train", "freeze_backbone"): "without GRPO: add --grpo-epochs 3, say"
        if not settings.train.grpo_epochs
        else "",
        ("reward", "rel_weight"): f"in the mode {settings.reward.mode}" if "rel" not in settings.reward.mode else "",
        ("vlm", "length_penalty"): "with one beam (--num-beams)" if settings.vlm.num_beams == 1 else "",
        ("vlm", "icd_template"): "in the layout turns, which has --query-template"
        if settings.vlm.layout == "turns"
        else "",
        ("data", "sampler"): "with --pool-size all, but for names of files" if settings.data.pool_size == "all" else "",
    }
    return [
        f"{flag(name, TABLES[table].model_fields[name])} changes nothing {why}"
        for (table, name), why in idle.items()
        if why and table in tables and getattr(getattr(settings, table), name) != getattr(usual[table], name)
    ]


# Variables of the original's scripts, and what does their work now.
OLD_VARIABLES = {
    "RCE_EPOCHS": "--rce-epochs",
    "GRPO_EPOCHS": "--grpo-epochs",
    "BATCH_SIZE": "--batch-size",
    "RCE_LR": "--rce-lr",
    "GRPO_LR": "--grpo-lr",
    "KL_BETA": "--kl-beta",
    "NUM_LAYERS": "--num-layers",
    "REWARD_MODE": "--reward-mode",
    "HARD_WEIGHT": "--hard-weight",
    "SOFT_WEIGHT": "--soft-weight",
    "REL_WEIGHT": "--rel-weight",
    "RCE_USE_NORMALIZED_REWARD": "--rce-normalized-reward",
    "RCE_USE_RAW_REWARD": "--no-rce-normalized-reward",
    "FREEZE_BACKBONE_IN_GRPO": "--freeze-backbone",
    "SKIP_FALLBACK_REWARD": "--skip-fallback",
    "REQUIRE_POSITIVE_QUERY": "--require-correct",
    "RL_DATA_PATH": "--rl-data",
    "LEVER_LM_CHECKPOINT_PATH": "--checkpoint",
    "RESULT_DIR": "--results-dir",
    "OKVQA_PATH": "--data-dir",
    "VQAV2_PATH": "--data-dir",
    "COCO_PATH": "--image-dir",
    "COCO_TRAIN_ROOT": "--image-dir",
    "COCO_VAL_ROOT": "--image-dir",
    "OKVQA_TRAIN_PATH": "--data-dir",
    "OKVQA_VAL_PATH": "--data-dir",
    "VQAV2_TRAIN_PATH": "--data-dir",
    "VQAV2_VAL_PATH": "--data-dir",
}


def stray_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A warning for each exported variable that looks meant for icdsel and has no effect."""
    known, warnings = variable_names(), []
    for name in sorted(environment):
        if name.startswith(ENV_PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            warnings.append(f"{name} is no setting and is ignored" + (f"; did you mean {close[0]}?" if close else ""))
        elif name in OLD_VARIABLES:
            warnings.append(f"{name}={environment[name]} is ignored; the flag {OLD_VARIABLES[name]} does it now")
    return warnings

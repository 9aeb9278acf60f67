"""The tables of resolved settings: every setting with its type, bounds, default and help text. Does not import torch.

A default that depends on settings of other tables (preset, dataset, model) is filled in by `loading.resolve`. A table
that is constructed by itself has the defaults of the bundled world. Unknown names are errors.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from icdsel.errors import SettingsError
from icdsel.records import DEFAULT_TASK
from icdsel.settings.devices import MOST_THREADS
from icdsel.settings.kinds import (
    AnswerCleaner,
    Columns,
    DatasetName,
    EngineName,
    HeldOutSplit,
    Metric,
    ModelName,
    Normalization,
    PoolRules,
    PromptLayout,
    RayAddress,
    RewardMode,
    Sampler,
    Selector,
    ServerAddresses,
    ShotCount,
    TaskName,
    TrackerName,
)
from icdsel.settings.presets import (
    CLIP_B32,
    CLIP_L14,
    COLUMN_FIELDS,
    METRICS,
    MOST_SHOTS,
    RECIPES,
    TINY_VLM,
    VLM_ENCODER,
    WORLD,
)
from icdsel.settings.table import Table
from icdsel.settings.values import (
    Floats,
    NameOrPlace,
    Place,
    PoolSize,
    PositivePenalty,
    Separated,
)
from icdsel.settings.worlds import is_world
from icdsel.tasks import TASKS
from icdsel.tasks.base import Task
from icdsel.tasks.scoring import ChoiceBy


def default_metric(dataset: str, task: str) -> str:
    """The metric that a task scores a dataset with unless another one is named."""
    own = METRICS.get(dataset, "")
    return own if own in TASKS[task].metrics else TASKS[task].default_metric


class DataSettings(Table):
    """The dataset, the candidate pools, and where files are."""

    MACHINE: ClassVar = ("threads",)

    preset: Literal["icdsel", "whole-set", "lever-plus"] = "icdsel"
    """Defaults of icdsel; those for choosing from the whole training set, and as few ICDs as needed; or those of
    Lever-Plus for answers, pools, prompts, decoding, metric and training."""
    dataset: DatasetName = WORLD
    """`world` (bundled), `world-misleading`, `world-hard`, `world-choice`, `world-classes`, one with other numbers
    (`world:seed=7`), `okvqa`, `vqav2`,
    your own file (JSON lines, JSON, CSV, Parquet) or folder, or a dataset on Hugging Face
    (`hub:owner/name`)."""
    columns: Columns = ()
    """Columns of your own data, such as `question=query,answers=labels,image=img,id=uid`; `id=` numbers the rows,
    `options=`, `hint=`, `pool=` or `task=` ignores such a column.
    [usual names]"""
    validation_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of the training questions that is the validation split of data without one; no image is in both."""
    data_dir: Place = Path("data")
    """Folder of the dataset's question and annotation files; bundled worlds are written to it."""
    image_dir: Place | None = None
    """Folder of the images, also in its subfolders; absolute paths of images must lead into it. [the folder of the
    questions]"""
    on_image_error: Literal["stop", "skip"] = "stop"
    """On a missing or damaged image, stop the run, or skip the image's examples and count them."""
    max_image_pixels: int = Field(65_000_000, ge=1)
    """Images with more pixels are rejected as damaged, to protect against decompression bombs."""
    shown_answer: Literal["raw", "stemmed"] = "raw"
    """Answers of OK-VQA demonstrations: as annotated, or stemmed."""
    task: TaskName = DEFAULT_TASK
    """The task: how answers are scored, and what tables and charts call the score.
    [what the data say (a field `task`, or their form), else vqa]"""
    metric: Metric = Field(
        default_factory=lambda data: default_metric(data["dataset"], data["task"]) if data["task"] in TASKS else ""
    )
    """Which of the task's scores. For `vqa`: VQA accuracy with texts that are always normalised, of the official
    evaluation code, of OpenFlamingo, or with lemmatised predictions; docs/tasks.md has those of the others.
    [the task's first; for vqa `official` on vqav2, `lemmatised` on okvqa, else `normalised`]"""
    choice_by: ChoiceBy = "generate"
    """How an option becomes the answer, in tasks with options: the VLM names it, or it has the highest log-prob of all
    options, or the highest one per token."""
    show_options: bool = Field(
        default_factory=lambda data: TASKS[data["task"]].listed if data.get("task") in TASKS else False
    )
    """List the options below the question, each with a letter that is its answer.
    [on for `choice`, off for `classify`]"""
    results_dir: Place = Path("results")
    """Folder for all results."""
    sampler: Sampler = "rand"
    """How a query's candidate pool is drawn: at random, by text or image similarity, or a mix of the three."""
    pool_size: PoolSize = 64
    """Candidates in a query's pool; `all` makes the whole training split one pool, shared by all queries."""
    pool_rules: PoolRules = "icdsel"
    """How pools of training queries are drawn: independently of one another, or exactly as in Lever-Plus."""
    exclude_same_image: bool = True
    """Exclude examples of the query's own image from its pool."""
    embed: Literal["both", "separate", "image", "question"] = "both"
    """What the policy's embedding of an example covers: image and question added to each other; separate, twice as
    wide, so that the question can decide what of the image counts (--question-gate); or one of them."""
    encoder: NameOrPlace = Field(default_factory=lambda data: VLM_ENCODER if is_world(data["dataset"]) else CLIP_B32)
    """Encoder of the policy's embeddings: `vlm` (the VLM's own features), or the name or folder of a CLIP-like model.
    [`vlm` for bundled worlds or the tiny VLM, else openai/clip-vit-base-patch32]"""
    sampler_encoder: NameOrPlace = Field(
        default_factory=lambda data: (
            CLIP_L14 if data["preset"] == "lever-plus" and data["encoder"] != VLM_ENCODER else data["encoder"]
        )
    )
    """Encoder of the embeddings that samplers and nearest neighbours compare.
    [the encoder; with preset lever-plus CLIP ViT-L/14, unless the encoder is `vlm`]"""
    train_embeddings: Place | None = None
    """File of precomputed embeddings of the training split: Lever-Plus's `query_embeddings.pt`, or safetensors."""
    seed: int = Field(42, ge=0)
    """Seed of all random choices."""
    threads: int | None = Field(None, ge=1, le=MOST_THREADS)
    """Threads that compute on the CPU. Their number decides the last digits of a training; an interrupted command
    resumes with the number that it was started with. A policy on pools of 64 trains fastest with 1. Each worker of the
    VLM has as many. [OMP_NUM_THREADS, else the CPUs that icdsel may use; divided by the number of workers]"""

    @property
    def columns_by_field(self) -> dict[str, str]:
        """The columns that `columns` names, by field."""
        pairs = (part.partition("=") for part in self.columns)
        return {COLUMN_FIELDS[field.strip()]: column.strip() for field, _, column in pairs}

    @property
    def configured_task(self) -> Task:
        """The task, with options listed as the settings say.

        Raises:
            SettingsError: There is no such task.
        """
        return TASKS.named(self.task).with_options(self.show_options)

    @model_validator(mode="after")
    def _is_metric_of_task(self) -> Self:
        if self.task in TASKS:
            try:
                TASKS[self.task].metrics.named(self.metric)
            except SettingsError as error:
                raise ValueError(f"metric: {error}") from None
        return self


class VlmSettings(Table):
    """The vision-language model (VLM), its prompts and its limits."""

    MACHINE: ClassVar = (
        *("device", "workers", "ray", "ray_address", "ray_wait", "batch_tokens", "max_failed", "call_timeout"),
        *("url", "concurrency", "file_urls", "request_timeout", "retries"),
        *("image_cache_mb", "image_cache_dir", "image_cache_disk_mb", "reuse_answers"),
    )
    MAY_BE_EMPTY: ClassVar = ("system_prompt",)
    ESCAPED: ClassVar = ("system_prompt", "icd_template", "query_template")

    model: ModelName = TINY_VLM
    """`tiny-vlm`, a short name such as `qwen2.5-vl-3b`, a Hugging Face name, or a folder.
    [the only one that the servers serve; without servers tiny-vlm for bundled worlds, else qwen2.5-vl-3b]"""
    engine: EngineName = "auto"
    """What runs the model: `auto` (servers if --vlm-url names any, else the fastest that supports it), `shared-prefix`
    (also called `qwen-vl`), `transformers` (any model, slower), or `server`."""
    url: ServerAddresses = Field((), json_schema_extra={"flag": "--vlm-url", "quoted": False})
    """Servers that run the model and speak OpenAI's protocol (vLLM, SGLang), such as `http://host:8000/v1`; several are
    separated by commas. Their key is read from the variable ICDSEL_VLM_API_KEY alone."""
    concurrency: int = Field(64, ge=1, le=4096)
    """Prompts that each server is sent at once, at most."""
    file_urls: bool = False
    """Send servers the `file://` addresses of images instead of the images; they must see the same files."""
    request_timeout: float = Field(300, ge=0.01, le=1e7)
    """Seconds that a server has for one answer; then the prompt is sent again."""
    retries: int = Field(5, ge=0, le=100)
    """How often a prompt is sent again after a server failed on it; then the call counts as failed."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model. It can do anything that you can do."""
    device: str = "auto"
    """Device of the VLM: `cpu`, `cuda` or `cuda:0`; `auto` is the GPU if there is one. With several, as in
    `cuda:0,cuda:1`, each has a worker process with the model, and they share the prompts."""
    workers: int | None = Field(None, ge=1, le=256)
    """Worker processes that run the VLM, sharing the devices, with `auto` all GPUs. Results have the same bytes for any
    number of them. [one for each device that is named; a single one is no process of its own]"""
    ray: bool = False
    """Run the workers as actors of Ray, which is started on this machine and ends with the command; needs `ray`."""
    ray_address: RayAddress | None = None
    """Run the workers on a Ray cluster: `host:6379`, as `ray start --head` printed it, or `auto` for the one that this
    machine belongs to. Each has a GPU, or as many CPUs as threads; without --workers they take the whole cluster."""
    ray_wait: float = Field(600, ge=1, le=1e7)
    """Seconds that a worker waits for a place on the Ray cluster, also when it is started again."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the VLM; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    system_prompt: str = "Answer the last question with one word or a short phrase, like any answers shown before it."
    """System message; if empty, the model's chat template decides. Here and in both templates, `\\n` is a line break,
    `\\t` a tab and `\\\\` a backslash."""
    icd_template: str = "Question:{question} Short answer:{answer}"
    """Text of a demonstration."""
    query_template: str = "Question:{question} Short answer:"
    """Text of the query."""
    layout: PromptLayout = "one-turn"
    """Demonstrations and query in one user turn, or as separate turns of a conversation."""
    max_new_tokens: int = Field(5, ge=1)
    """Maximum length of an answer, in tokens."""
    num_beams: int = Field(1, ge=1, le=16)
    """Beams of the beam search for an answer; 1 is greedy decoding."""
    length_penalty: float = 1.0
    """Exponent of the length by which a beam's log-probability is divided."""
    repetition_penalty: PositivePenalty = 1.0
    """Penalty for tokens that the prompt or the answer already contains; `model` uses the model's own value."""
    clean_answers: AnswerCleaner = "strip"
    """Postprocessing of answers: strip spaces, or cut at certain words and commas as in Lever-Plus."""
    min_pixels: int | None = Field(None, ge=1)
    """Images with fewer pixels are enlarged. [the limit of the model's processor]"""
    max_pixels: int | None = Field(None, ge=1)
    """Images with more pixels are shrunk. [the limit of the model's processor]"""
    batch_tokens: int = Field(16_384, ge=1)
    """Maximum number of prompt tokens in a batch. Fewer need less memory; the answers stay the same."""
    max_failed: float = Field(0.1, ge=0, le=1)
    """Share of VLM calls that may fail. If more fail, the run stops; finished work is kept."""
    call_timeout: float = Field(1800, ge=0.01, le=1e7)
    """Timeout per batch, in seconds. On timeout the prompts are retried one by one; one that times out again counts as
    failed. On servers: seconds for a prompt with all its tries, from when it is its turn."""
    image_cache_mb: int = Field(1024, ge=0)
    """Memory for the features of images that were encoded before, or for images as servers get them, in MB."""
    image_cache_dir: Place | None = None
    """Folder for image features that do not fit into memory, also for later runs. Without it they are recomputed."""
    image_cache_disk_mb: int = Field(20_480, ge=0)
    """Maximum size of that folder, in MB."""
    reuse_answers: bool = True
    """Reuse the answers of earlier commands to the same prompts, instead of querying the VLM again."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for name in ("icd_template", "query_template"):
            if "{question}" not in getattr(self, name):
                raise ValueError(f"{name} must contain {{question}}")
        if "{answer}" not in self.icd_template:
            raise ValueError("icd_template must contain {answer}")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels ({self.min_pixels}) is above max_pixels ({self.max_pixels})")
        if self.on_ray and self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(
                f"device is {self.device!r}, but Ray chooses each worker's GPU: use auto, cpu or cuda, and --workers"
            )
        return self

    @property
    def on_ray(self) -> bool:
        """Whether the VLM runs in actors of Ray."""
        return self.ray or self.ray_address is not None


class ProposalSettings(Table):
    """The pointers (sequences of ICDs) that are proposed for a query."""

    queries: int = Field(800, ge=2)
    """Training queries to score. [800; 5000 for vqav2]"""
    query_split: Literal["train", "tuning", "validation", "test"] = Field(
        "train", json_schema_extra={"flag": "--split"}
    )
    """Split of the queries; candidates always come from the training split."""
    shots: int = Field(2, ge=1, le=MOST_SHOTS, json_schema_extra={"flag": "--pointer-shots"})
    """ICDs in a pointer, at most."""
    min_shots: int = Field(default_factory=lambda proposals: proposals["shots"], ge=0, le=MOST_SHOTS)
    """Fewest ICDs in a pointer: below --pointer-shots, each kind of pointer is also proposed in every shorter length,
    with 0 the query alone too, and a policy that is trained on them learns when to stop. [--pointer-shots]"""
    beam: int = Field(5, ge=0)
    """Pointers proposed by beam search."""
    samples: int = Field(2, ge=0)
    """Pointers sampled at each temperature."""
    temperatures: Floats = (1.0, 1.3)
    """Temperatures of the sampled pointers."""
    retrieval: int = Field(5, ge=0)
    """Pointers of nearest neighbours with consecutive ranks."""
    random: int = Field(1, ge=0)
    """Pointers drawn at random."""
    answers: int = Field(0, ge=0)
    """Pointers of ICDs whose answers share words with the query's reference answer: one ICD for each of its words."""
    prune: int = Field(0, ge=0)
    """For this many right pointers of a query, also score each of them without one of its ICDs, which tells the ICDs
    that helped from those beside them; needs --min-shots below --pointer-shots."""
    init: Place | None = None
    """Checkpoint of a policy that proposes pointers, instead of the cosine similarity of the embeddings."""
    references: Literal["auto", "none", "labels"] = "auto"
    """Reference answers of a query whose probabilities the VLM gives beside its own answer: `labels`, all of them;
    `none`; or `auto`, all where the reward, the task or the metric reads them, or where existing RL data have them."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.min_shots > self.shots:
            raise ValueError(f"min_shots ({self.min_shots}) is above the number of ICDs in a pointer ({self.shots})")
        if self.prune and self.min_shots == self.shots:
            raise ValueError("prune scores shorter pointers: set min_shots below shots, as in --min-shots 0")
        if any(not temperature > 0 for temperature in self.temperatures):
            raise ValueError("temperatures must be above 0")
        if self.beam + self.samples * len(self.temperatures) + self.retrieval + self.random + self.answers == 0:
            raise ValueError("no pointer would be proposed: set beam, samples, retrieval, random or answers above 0")
        return self


class RewardSettings(Table):
    """How a pointer's reward is computed from the VLM's answer."""

    mode: RewardMode = Field("hard_plus_soft", json_schema_extra={"flag": "--reward-mode"})
    """How a reward is computed from hard and soft correctness."""
    hard_weight: float = Field(1.0, ge=0)
    """Weight of hard correctness (accuracy above 0)."""
    soft_weight: float = Field(1.0, ge=0)
    """Weight of soft correctness: the score (VQA accuracy), or the probability of the correct answer."""
    rel_weight: float = Field(0.1, ge=0)
    """Weight of relevance, in the reward modes that use it."""
    price: float = Field(0.0, ge=0)
    """What each ICD of a pointer costs, subtracted from the reward (a correct answer earns 2 by default), except for
    queries of which no pointer earned any."""
    token_price: float = Field(0.0, ge=0)
    """What each token of the prompt costs, subtracted from the reward; for RL data that record prompt tokens."""
    normalization: Normalization = Field("z_score_clamp", json_schema_extra={"flag": "--reward-normalization"})
    """How rewards are normalized within a query, where normalized rewards are used."""
    clamp: float = Field(3.0, gt=0, json_schema_extra={"flag": "--reward-clamp"})
    """Bound of a clamped z-score."""
    skip_fallback: bool = True
    """Skip candidates of Lever-Plus that were scored by string matching instead of VQA accuracy."""
    require_correct: bool = False
    """Train only on queries with at least one correctly answered pointer."""
    accept_unsound: bool = False
    """Accept RL data of Lever-Plus that were made up, or scored without the demonstrations' answers."""


def _by_recipe(name: str) -> Callable[[dict[str, Any]], Any]:
    """The default of a setting that the recipe decides."""
    return lambda train: getattr(RECIPES[train["recipe"]], name)


class TrainSettings(Table):
    """The pointer network and its training."""

    MACHINE: ClassVar = ("device", "tensorboard", "tracker")

    recipe: Literal["icdsel", "lever-plus"] = "icdsel"
    """Corrected training and a better network, or an exact reproduction of Lever-Plus."""
    rce_epochs: int = Field(5, ge=0)
    """Epochs of reward-weighted cross-entropy (RCE)."""
    grpo_epochs: int = Field(0, ge=0)
    """Epochs of GRPO after RCE; 0 trains with RCE alone, the baseline."""
    batch_size: int = Field(1, ge=1)
    """Queries per step."""
    rce_lr: float = Field(1e-4, gt=0)
    """Learning rate of RCE."""
    rce_lr_end: float = Field(1.0, gt=0, le=1)
    """Share of it that is left at the last step; it falls linearly. [0.1 with --rce-over best by default, else 1]"""
    grpo_lr: float = Field(5e-6, gt=0)
    """Learning rate of GRPO."""
    kl_beta: float = Field(0.15, ge=0)
    """Weight of the KL term of GRPO."""
    online: bool = False
    """In GRPO, sample pointers from the current policy and have the VLM score the new ones."""
    online_samples: int = Field(8, ge=1)
    """Pointers sampled per query and epoch with --online."""
    vlm_budget: int | None = Field(None, ge=0)
    """Maximum number of VLM calls with --online. [epochs × queries × samples]"""
    num_layers: int = Field(1, ge=0, le=8)
    """Cross-attention layers; with 0 the policy looks at the candidates one by one, not at the pool as a whole."""
    rce_normalized_reward: bool = False
    """Weight RCE by rewards that are normalized per query, instead of raw rewards."""
    freeze_backbone: bool = False
    """In GRPO, train only the pointer head and keep the projections fixed."""
    rce_over: Literal["group", "pool", "best"] = Field(default_factory=_by_recipe("rce_over"))
    """What RCE normalizes the policy over: a query's scored pointers, or its whole pool; `best` makes the best scored
    pointers of each query likely in its whole pool. [`best` with --pool-size all --embed separate, else `group`]"""
    negatives: int = Field(0, ge=0)
    """In RCE over a pool that all queries share, draw this many candidates at random at every step, and use them and
    the scored ones as the pool; 0 for all candidates. [256 with --rce-over best by default, else 0]"""
    rce_pool_weight: float = Field(default_factory=_by_recipe("rce_pool_weight"), ge=0)
    """In RCE over the group, weight of the expected reward over the whole pool. It has an effect only where scored
    pointers hold less than 5 % of a pool's candidates, as with `--pool-size all`."""
    rce_temp_start: float = Field(2.0, gt=0)
    """Temperature of RCE at the first step."""
    rce_temp_end: float = Field(0.5, gt=0)
    """Temperature of RCE at the last step."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of RCE."""
    clip_epsilon: float = Field(0.2, gt=0)
    """Clip range of GRPO's probability ratio."""
    hidden_dim: int = Field(256, ge=1)
    """Hidden dimension of the pointer network."""
    num_heads: int = Field(default_factory=_by_recipe("num_heads"), ge=1)
    """Attention heads."""
    tower: int = Field(default_factory=_by_recipe("tower"), ge=0)
    """Width of the shared encoder of queries and candidates; 0 for the two separate projections of Lever-Plus."""
    gate: bool = Field(default_factory=_by_recipe("gate"))
    """Update the query's state with each selected ICD."""
    update: Literal["gate", "residual"] = "gate"
    """How the state is updated: `gate` moves it towards the selected ICD, `residual` anywhere, such as to what that ICD
    lacks."""
    stop: bool | None = None
    """Let the policy decide how many ICDs to show, none included (`infer --shots auto`).
    [on if the RL data hold pointers of different lengths, see --min-shots]"""
    query_tower: int = Field(0, ge=0)
    """Width of a second encoder after the shared one, of the queries alone; 0 for none."""
    question_gate: int = Field(0, ge=0)
    """Width of the question's state in an encoder where it decides what of the image counts; needs --embed separate.
    [32 with --embed separate, else 0: none]"""
    candidate_answers: bool = False
    """Let the policy see the answers of the candidates, and how many of their nearest neighbours share them."""
    dropout: float = Field(default_factory=_by_recipe("dropout"), ge=0, lt=1)
    """Dropout before the output projections."""
    attn_dropout: float = Field(default_factory=_by_recipe("attn_dropout"), ge=0, lt=1)
    """Dropout of the attention weights."""
    init: Place | None = None
    """Checkpoint to start from, of icdsel or Lever-Plus, instead of a new network."""
    warm_start: Place | None = None
    """InfoScore data of Lever-Plus (from its `generate_data.py`), whose beams are imitated before RCE."""
    warm_epochs: int = Field(5, ge=1)
    """Epochs of that imitation."""
    train_seed: int | None = Field(None, ge=0, json_schema_extra={"flag": "--train-seed"})
    """Seed of the training alone, to repeat it on the same data. [the value of --seed]"""
    device: str = Field("auto", json_schema_extra={"flag": "--train-device"})
    """Device of the training: `cpu`, `cuda` or `cuda:0`; `auto` is the GPU if there is one."""
    tensorboard: bool = False
    """Also write each epoch's metrics for TensorBoard, to the run's folder."""
    tracker: Annotated[tuple[TrackerName, ...], Separated] = ()
    """Also log each epoch's metrics, and the rows of comparisons, to these. Each needs the extra of its name, and none
    uses the network unless its own variables say so."""

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers of a training."""
        return tuple(dict.fromkeys((*(("tensorboard",) if self.tensorboard else ()), *self.tracker)))

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.rce_epochs + self.grpo_epochs == 0:
            raise ValueError("rce_epochs and grpo_epochs are both 0: nothing would be trained")
        if self.online and not self.grpo_epochs:
            raise ValueError("online is an option of GRPO: set grpo_epochs too, as in --online --grpo-epochs 5")
        if self.online and RECIPES[self.recipe].old_log_probs == "before-rce":
            raise ValueError(f"the recipe {self.recipe} has no online GRPO: use the recipe icdsel")
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim ({self.hidden_dim}) must be a multiple of num_heads ({self.num_heads})")
        return self


class InferSettings(Table):
    """Which queries are answered, and by which selectors."""

    n: int = 100
    """Queries to answer: the first n by question_id, unless --subset is random; -1 for all. Queries on the same image
    have neighbouring ids (in VQAv2 about 5), and are worth less than as many on different images."""
    shots: Annotated[tuple[ShotCount, ...], Separated] = (1, 2, 3, 4)
    """Numbers of ICDs to show; with `auto` the policy decides it for each query, at most --max-shots. `auto+1` adds 1
    to its log-odds of stopping, and so shows fewer."""
    max_shots: int | None = Field(None, ge=1)
    """Maximum number of ICDs with `--shots auto`. [what the policy was trained on]"""
    selector: Annotated[tuple[Selector, ...], Separated] = (
        *("policy", "random"),
        *("nearest-image", "nearest-both", "nearest-both-all"),
        *("mmices-all", "mmr-all", "k-dpp-all", "facility-location-all"),
    )
    """Selectors that choose the ICDs; `policy` answers with the policy alone. Those that end in -all choose from the
    whole training split, whatever --pool-size is."""
    subset: Literal["first", "random"] = "first"
    """Which n queries: the first by question_id, or a random sample drawn with the seed."""
    split: HeldOutSplit = "validation"
    """Split of the queries. Queries without reference answers are answered, not scored."""
    random_seed: int | None = Field(None, ge=0)
    """Seed of the selectors that draw, such as `random`. [the value of --seed]"""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.n == 0 or self.n < -1:
            raise ValueError(f"n is {self.n}: give the number of queries, or -1 for all")
        numbers = [shots for shots in self.shots if isinstance(shots, int)]
        if not self.shots or min(numbers, default=1) < 1 or len(set(self.shots)) < len(self.shots):
            raise ValueError(
                "shots must be distinct numbers of 1 or more, or auto; for 0 shots use the selector zero-shot"
            )
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

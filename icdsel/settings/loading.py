"""Resolved settings (every value filled in), and how they are made from raw settings (the given values)."""

from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from icdsel.errors import SettingsError
from icdsel.settings.messages import explained
from icdsel.settings.names import flag, sampler_file_name
from icdsel.settings.presets import (
    DATA_ENDINGS,
    GATED,
    GATED_OVER_ALL,
    OF_OPTIONS,
    OPTION_TASKS,
    PRESETS,
    QUERIES,
    QWEN_3B,
    SEPARATE,
    TINY_VLM,
    VLM_ENCODER,
)
from icdsel.settings.raw import Given, RawSettings, raw_settings, read_sources
from icdsel.settings.tables import (
    TABLES,
    DataSettings,
    InferSettings,
    ProposalSettings,
    RewardSettings,
    TrainSettings,
    VlmSettings,
)
from icdsel.settings.values import unescaped
from icdsel.settings.worlds import MOST_OPTIONS, difficulty_of, is_world, world_folder


class Settings(BaseModel):
    """All settings, resolved: every value is filled in. Constructing them reads neither environment nor files.

    Use `load_settings` or `settings_from` to create them. `model_fields_set` of each
    table has the names of the values that were given, not filled in; comparisons and dumps ignore it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: DataSettings
    vlm: VlmSettings
    proposals: ProposalSettings
    reward: RewardSettings
    train: TrainSettings
    infer: InferSettings

    def defaults(self) -> "Settings":
        """The settings with this preset, dataset, model and recipe, and nothing else given."""
        decisive = {"data": {"preset", "dataset"}, "vlm": {"model"}, "train": {"recipe"}}
        return settings_from(self.model_dump(include=decisive))

    @property
    def max_shots(self) -> int:
        """The maximum number of ICDs with `auto`; that of the proposals until the policy is known."""
        return self.infer.max_shots or self.proposals.shots

    @property
    def most_shots(self) -> int:
        """The largest number of ICDs that `infer` may show, where a policy decides it too."""
        return max(self.max_shots if isinstance(shots, str) else shots for shots in self.infer.shots)

    @property
    def model_name(self) -> str:
        """The VLM's name in file names: the last part, with underscores for dots."""
        return Path(self.vlm.model).name.replace(".", "_").replace(" ", "_")

    @property
    def pair_name(self) -> str:
        """`<Sampler>_<Model>`, which names RL data and runs."""
        return f"{sampler_file_name(self.data.sampler)}_{self.model_name}"

    @property
    def dataset_dir(self) -> Path:
        """`results/<dataset>`: a file's stem, a folder's name, or `<owner>--<name>` of a Hugging Face dataset.

        A world's numbers follow its name, as in `world-hard_pairs=0.4`.
        """
        dataset = self.data.dataset
        if is_world(dataset):
            return self.data.results_dir / world_folder(dataset)
        if dataset.startswith("hub:"):
            return self.data.results_dir / dataset.removeprefix("hub:").replace("/", "--").replace(":", "--")
        path = Path(dataset)
        if path.suffix.lower() in DATA_ENDINGS:
            return self.data.results_dir / path.stem
        return self.data.results_dir / (path.name if path.name not in ("", "..") else path.resolve().name)


def resolve(raw: RawSettings) -> Settings:
    """Fills in the values that were not given, by preset, dataset and model, and checks that the values fit together.

    Raises:
        pydantic.ValidationError: Two values do not fit together.
        SettingsError: Servers cannot decode like this.
    """
    given = raw.model_dump(exclude_none=True)
    preset = PRESETS[DataSettings(**given["data"]).preset]
    decided = {table: dict(preset.get(table, {})) for table in TABLES}
    data = DataSettings(**decided["data"] | given["data"])
    if not is_world(data.dataset):
        decided["vlm"]["model"] = QWEN_3B
    elif (options := difficulty_of(data.dataset).options) and given["data"].get("task", "choice") in OPTION_TASKS:
        decided["data"] |= OF_OPTIONS | {"task": "choice" if options < MOST_OPTIONS else "classify"}
    if data.dataset in QUERIES:
        decided["proposals"]["queries"] = QUERIES[data.dataset]
    recipe = (decided["train"] | given["train"]).get("recipe", TrainSettings.model_fields["recipe"].default)
    if data.embed == SEPARATE and recipe == "icdsel":
        decided["train"] |= GATED | (GATED_OVER_ALL if data.pool_size == "all" else {})
    if (decided["vlm"] | given["vlm"]).get("model", TINY_VLM) == TINY_VLM:
        decided["data"]["encoder"] = VLM_ENCODER
    filled = Settings.model_validate({table: decided[table] | given[table] for table in TABLES})
    _require_decoding_of_servers(filled, given["vlm"])
    return Settings(**{name: table.model_construct(set(given[name]), **dict(table)) for name, table in filled})


def _require_decoding_of_servers(settings: Settings, given: Collection[str]) -> None:
    """Rejects what servers (--vlm-url) do not have, all at once; it may be a preset's, so that nobody has typed it."""
    vlm, wrong = settings.vlm, []
    if not vlm.url:
        return
    if vlm.num_beams > 1:
        wrong.append(("num_beams", "means something else on servers", "--num-beams 1"))
    if vlm.repetition_penalty == "model":
        wrong.append(("repetition_penalty", "is not known of a server", "--repetition-penalty 1"))
    if wrong:
        typed = [
            f"{flag(name, VlmSettings.model_fields[name])} {getattr(vlm, name)} "
            f"{'' if name in given else f'of --preset {settings.data.preset} '}{why}"
            for name, why, _ in wrong
        ]
        instead = " ".join(flags for *_, flags in wrong)
        raise SettingsError(f"{'; '.join(typed)}: with --vlm-url, use {instead}")


def load_settings(given: Given) -> Settings:
    """Settings from flags or callers (`given`), variables, `icdsel.toml` and defaults.

    Raises:
        SettingsError: A setting is unknown, a value is not allowed, or the file cannot be read; the message says
            which and why.
    """
    with explained():
        return resolve(_unescaped(read_sources(given)))


def _unescaped(raw: RawSettings) -> RawSettings:
    """The same settings, with what was typed for line breaks and tabs replaced; recorded values are not touched."""
    tables = {}
    for table, kind in TABLES.items():
        values = {name: getattr(getattr(raw, table), name) for name in kind.ESCAPED}
        texts = {name: unescaped(text) for name, text in values.items() if text is not None}
        tables[table] = getattr(raw, table).model_copy(update=texts)
    return raw.model_copy(update=tables)


def settings_from(given: Given) -> Settings:
    """Settings from these values and defaults alone, such as those that a metadata file records.

    Raises:
        SettingsError: A setting is unknown, or a value is not allowed.
    """
    with explained():
        return resolve(raw_settings(given))


def with_values(settings: Settings, values: Given) -> Settings:
    """`settings` with more values given; all other values are filled in again, to fit the new ones.

    None removes a given value.

    Raises:
        SettingsError: A setting is unknown, or a value is not allowed.
    """
    given = settings.model_dump(exclude_unset=True)
    return settings_from(given | {table: given.get(table, {}) | dict(values[table]) for table in values})


def on_training_queries(settings: Settings) -> Settings:
    """The same settings with proposals for queries of the training split, the only ones to train on."""
    return with_values(settings, {"proposals": {"query_split": "train"}})

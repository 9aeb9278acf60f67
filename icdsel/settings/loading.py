"""Settings from flags, variables, `icdsel.toml` and defaults; what is wrong with a value is said plainly."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from icdsel.errors import SettingsError
from icdsel.records import DEFAULT_TASK
from icdsel.settings.names import ENV_PREFIX, every_setting, flag, variable_names
from icdsel.settings.presets import (
    CLIP_B32,
    CLIP_L14,
    DATASET_ALIASES,
    MODEL_ALIASES,
    PRESETS,
    RECIPES,
    SAMPLER_FILE_NAMES,
    TINY_VLM,
    VLM_ENCODER,
    WORLD,
)
from icdsel.settings.tables import (
    TABLES,
    DataSettings,
    InferSettings,
    ProposalSettings,
    RewardSettings,
    Table,
    TrainSettings,
    VlmSettings,
)
from icdsel.store.reading import read_whole
from icdsel.tasks.base import TASKS

CONFIG_FILE = Path("icdsel.toml")
_LARGEST_FILE = 2**20  # bytes


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


def _filled_in(values: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`values` with what goes with the preset, the dataset and the model, where nothing is said."""
    data, vlm, proposals = values["data"], values["vlm"], values["proposals"]
    for table, preset in PRESETS.get(str(data.get("preset", "icdsel")), {}).items():
        for name, value in preset.items():
            if values[table].get(name) is None:
                values[table][name] = value
    task = str(data.get("task", DEFAULT_TASK))
    if data.get("metric") is None and task in TASKS:
        data["metric"] = TASKS[task].default_metric
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


def on_training_queries(settings: Settings) -> Settings:
    """The same, with proposals for queries of the training split: nothing else is trained on."""
    proposals = settings.proposals.model_copy(update={"query_split": "train"})
    return settings.model_copy(update={"proposals": proposals})

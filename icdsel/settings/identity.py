"""The settings that decide the content of a result."""

from collections.abc import Iterable, Iterator

from icdsel.records import DEFAULT_TASK
from icdsel.settings.loading import Settings
from icdsel.settings.presets import RECIPES
from icdsel.settings.tables import TABLES
from icdsel.store.metadata import Inputs
from icdsel.tasks import TASKS

# Left out: locations of files, and settings that the identity represents otherwise: by fingerprints of files and
# models, by the data type that the model was loaded in, by the settings that a preset changes.
_IMPLIED = {
    *("data.data_dir", "data.image_dir", "data.results_dir"),
    *("data.train_embeddings", "data.encoder", "data.sampler_encoder", "vlm.model", "vlm.dtype"),
    *("data.preset", "data.on_image_error", "data.max_image_pixels"),
    *("data.columns", "data.validation_fraction"),  # the fingerprints of the examples cover both
    "proposals.references",  # what `auto` comes to: `icdsel.artefacts.reference_scores`
}


def identity(settings: Settings, *tables: str, leave_out: Iterable[str] = ()) -> Inputs:
    """The settings of `tables` as a flat mapping, without those that cannot change a result (paths, memory)."""
    silent = _IMPLIED | {f"{table}.{name}" for table in tables for name in TABLES[table].MACHINE} | set(leave_out)
    if not settings.vlm.trust_remote_code:  # so results that are older than this setting stay valid
        silent.add("vlm.trust_remote_code")
    if settings.data.task == DEFAULT_TASK:
        silent.add("data.task")
    if settings.data.task not in TASKS or not TASKS[settings.data.task].has_options:
        silent |= {"data.choice_by", "data.show_options"}
    silent |= {name for name, is_default in _later(settings) if is_default}
    if settings.vlm.engine == TABLES["vlm"].model_fields["engine"].default:
        silent.add("vlm.engine")
    default = RECIPES[settings.train.recipe].rce_pool_weight
    if settings.train.rce_pool_weight == default and settings.data.pool_size != "all":
        silent.add("train.rce_pool_weight")
    values = settings.model_dump(mode="json", include=set(tables))
    if "data" in values:
        values["data"]["dataset"] = settings.dataset_dir.name
    flat = {f"{table}.{name}": value for table in tables for name, value in values[table].items()}
    return {name: value for name, value in flat.items() if name not in silent}


def _later(settings: Settings) -> Iterator[tuple[str, bool]]:
    """Settings that came later, and whether they have the value that changes nothing: older results stay valid."""
    yield "proposals.min_shots", settings.proposals.min_shots == settings.proposals.shots
    yield "reward.price", settings.reward.price == 0
    yield "reward.token_price", settings.reward.token_price == 0
    yield "train.update", settings.train.update == "gate"
    yield "train.query_tower", settings.train.query_tower == 0
    yield "train.question_gate", settings.train.question_gate == 0
    yield "train.rce_lr_end", settings.train.rce_lr_end == 1
    yield "train.negatives", settings.train.negatives == 0
    yield "proposals.answers", settings.proposals.answers == 0
    yield "proposals.prune", settings.proposals.prune == 0
    yield "train.candidate_answers", not settings.train.candidate_answers
    yield "train.stop", settings.train.stop is None

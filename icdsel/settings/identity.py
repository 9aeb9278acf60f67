"""The settings that decide the content of a result."""

from collections.abc import Iterable

from icdsel.settings.loading import Settings
from icdsel.settings.tables import VlmSettings
from icdsel.store.metadata import Identity


def identity(settings: Settings, *tables: str, leave_out: Iterable[str] = ()) -> Identity:
    """The settings of `tables` as a flat mapping, without those that cannot change a result (paths, memory)."""
    silent = {"data.data_dir", "data.image_dir", "data.results_dir", *(f"vlm.{name}" for name in VlmSettings.MACHINE)}
    # Of files and models their fingerprints count, wherever they lie.
    silent |= {"data.train_embeddings", "data.encoder", "data.sampler_encoder"}
    silent |= {"data.preset", "data.on_image_error", "data.max_image_pixels"}  # what they set counts
    # Of the model its fingerprint counts, of the arithmetic what the model was loaded in.
    silent |= {"vlm.model", "vlm.dtype", *leave_out}
    if not settings.vlm.trust_remote_code:  # results of before there was this setting stay valid
        silent.add("vlm.trust_remote_code")
    if settings.vlm.engine == VlmSettings.model_fields["engine"].default:
        silent.add("vlm.engine")
    values = settings.model_dump(mode="json", include=set(tables))
    if "data" in values:
        values["data"]["dataset"] = settings.dataset_dir.name
    flat = {f"{table}.{name}": value for table in tables for name, value in values[table].items()}
    return {name: value for name, value in flat.items() if name not in silent}

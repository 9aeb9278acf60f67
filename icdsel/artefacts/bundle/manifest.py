"""The description of a bundle, `bundle.json`. It is somebody else's text: nothing in it is taken on trust."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from icdsel.artefacts.hub import is_repository
from icdsel.errors import BundleError, SettingsError
from icdsel.settings.loading import Settings, settings_from
from icdsel.settings.presets import MOST_SHOTS, TINY_VLM, VLM_ENCODER
from icdsel.settings.tables import DataSettings
from icdsel.store.files import write_json
from icdsel.store.json_reading import parsed
from icdsel.store.reading import read_whole, why_no_file
from icdsel.tasks import TASKS
from icdsel.tasks.cleaners import CLEANERS

MANIFEST, POLICY, TABLES, CARD = "bundle.json", "policy.safetensors", "candidates.safetensors", "README.md"
"""Names of files in a bundle."""
FORMAT = 1
_LARGEST = 16 * 2**20  # bytes

# What decides which ICDs are chosen and how a prompt is worded. Nothing else of the settings is written: no places, no
# addresses, nothing that says how a machine is to be used.
_KEPT = {
    "data": ("task", "metric", "choice_by", "show_options", "exclude_same_image", "seed", "max_image_pixels"),
    "vlm": (
        *("system_prompt", "icd_template", "query_template", "layout", "max_new_tokens", "num_beams"),
        *("length_penalty", "repetition_penalty", "clean_answers", "min_pixels", "max_pixels"),
    ),
}

_MOST = {
    "max_image_pixels": DataSettings.model_fields["max_image_pixels"].default,
    "min_pixels": 2**24,
    "max_pixels": 2**24,
    "max_new_tokens": 4096,
    "num_beams": 32,
}
"""The largest values that a bundle may have of settings that cost memory and time."""

Images = Literal["full", "thumbnails", "none"]
"""The candidates' images in a bundle: the files themselves, small copies, or none."""

_Text = Annotated[str, Field(max_length=4096)]
_Name = Annotated[str, Field(min_length=1, max_length=256)]


class Model(BaseModel):
    """A model by its name and its files.

    Attributes:
        name: `tiny-vlm`, a name on the hub, or the last part of a folder's path.
        fingerprint: Identifies its files, and how they are used.
        dtype: What it computed in.
    """

    model_config = ConfigDict(frozen=True)

    name: _Name
    fingerprint: _Name
    dtype: _Name

    @property
    def is_portable(self) -> bool:
        """Whether the name means the same on another machine."""
        return self.name == TINY_VLM or is_repository(self.name)


class EncoderModel(Model):
    """The encoder of the embeddings.

    Attributes:
        of_vlm: Whether the features are those of a VLM, whose name this is, and not of a CLIP-like model.
        centred: Whether the training split's means are subtracted from the features.
    """

    of_vlm: bool
    centred: bool


class Manifest(BaseModel):
    """The content of `bundle.json`.

    Attributes:
        format: The version of the form.
        icdsel: The version of icdsel that wrote it.
        name: What the bundle is called.
        dataset: The dataset that the candidates come from.
        licence: Under which the candidates and the policy may be used, as the exporter said.
        candidates: How many candidates there are.
        images: Which images are in it.
        encoder: The encoder of the embeddings.
        vlm: The VLM that scored the pointers which the policy learned from.
        embed: What of an example its embedding covers (`--embed`).
        baselines: Whether nearest neighbours and the like can be found by these embeddings, as `infer` finds them.
        shots: The largest number of ICDs that the policy was trained to show.
        pool_size: The size of the pools that it was trained on.
        run: The run, and its checkpoint.
        headline: The result of the comparison in a sentence or two.
        figures: The rows of the comparison, as `icdsel compare --json` has them.
        settings: The settings that decide a choice and the wording of a prompt, by table.
        files: The SHA-256 of the other files with content, by name.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1]
    icdsel: _Name
    name: _Name
    dataset: _Name
    licence: _Text = ""
    candidates: Annotated[int, Field(strict=True, gt=0, lt=2**40)]
    images: Images
    encoder: EncoderModel
    vlm: Model
    embed: Literal["both", "separate", "image", "question"]
    baselines: bool
    shots: Annotated[int, Field(strict=True, gt=0, le=MOST_SHOTS)]
    pool_size: Annotated[str, Field(max_length=20)]
    run: _Name
    headline: _Text = ""
    figures: list[dict[str, Any]] = Field([], max_length=10_000)
    settings: dict[str, dict[str, Any]] = Field({}, max_length=10)
    files: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = Field({}, max_length=100)

    def write(self, folder: Path) -> None:
        """Writes it into a bundle's folder."""
        write_json(folder / MANIFEST, self.model_dump(mode="json"), indent=1)

    def resolved(self, device: str, encoder: str | None = None) -> Settings:
        """The settings with which this bundle chooses, over all of its candidates.

        Only the settings named above are taken from it, whatever else it holds.

        Args:
            device: Where the encoder runs.
            encoder: Where the encoder is on this machine; None if its name says it.

        Raises:
            BundleError: A value is not allowed, or the encoder has to be named.
        """
        name = self._encoder_name() if encoder in (None, VLM_ENCODER) else encoder
        kept = {
            table: {key: value for key, value in self.settings.get(table, {}).items() if key in keys}
            for table, keys in _KEPT.items()
        }
        for name_of_limit, most in _MOST.items():
            value = (kept["data"] | kept["vlm"]).get(name_of_limit)
            if value is not None and (type(value) is not int or not 0 < value <= most):
                raise BundleError(f"the bundle {self.name!r} has {name_of_limit} {value!r}: it is 1 to {most:,}")
        of_vlm = self.encoder.of_vlm
        data = {**kept["data"], "embed": self.embed, "pool_size": "all", "encoder": VLM_ENCODER if of_vlm else name}
        vlm = {**kept["vlm"], "device": device}
        if of_vlm:  # so that the encoder computes as it did
            vlm |= {"model": name, "dtype": self.encoder.dtype}
        try:
            settings = settings_from({"data": data, "vlm": vlm})
            TASKS.named(settings.data.task)
            CLEANERS.named(settings.vlm.clean_answers)
            return settings
        except (SettingsError, TypeError) as error:
            raise BundleError(f"the settings of the bundle {self.name!r} cannot be used: {error}") from None

    @property
    def vlm_name(self) -> str:
        """The VLM that the policy was trained with, to be opened by its name.

        A bundle may name no server and no folder: it would be sent images, questions and keys, or be read.

        Raises:
            BundleError: Its name means nothing on this machine.
        """
        if self.vlm.is_portable:
            return self.vlm.name
        raise BundleError(
            f"the bundle {self.name!r} was trained with {self.vlm.name!r}, which is no name of a model on the hub: say "
            "who answers (--model or --vlm-url; in Python, answer(…, vlm=…))"
        )

    def _encoder_name(self) -> str:
        if self.encoder.is_portable:
            return self.encoder.name
        raise BundleError(
            f"the bundle {self.name!r} needs the encoder {self.encoder.name!r}, which was a folder of the machine that "
            "it was exported on: say where it is here (--encoder FOLDER; in Python, Selector.load(…, encoder=…))"
        )


def kept_settings(settings: Settings) -> dict[str, dict[str, Any]]:
    """The settings that a bundle holds."""
    return settings.model_dump(mode="json", include={table: set(keys) for table, keys in _KEPT.items()})


def portable_name(name: str) -> str:
    """A model's name without the folders above it, which are nobody else's business."""
    folder = Path(name).expanduser()
    return folder.resolve().name if folder.is_dir() else name


def read_manifest(folder: Path) -> Manifest:
    """The description of the bundle in a folder.

    Raises:
        BundleError: There is none, it is damaged, or a newer version of icdsel wrote it.
    """
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        what = (
            "is a link"
            if path.is_symlink()
            else why_no_file(path)
            if folder.is_dir()
            else "is not in it, as there is no such folder"
        )
        raise BundleError(f"{folder} is no bundle: {MANIFEST} {what}. Write one with `icdsel export RUN DIR`")
    try:
        content = parsed(read_whole(path, _LARGEST))
        if isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] > FORMAT:
            raise BundleError(f"{path} has format {content['format']}, which a newer version of icdsel has written")
        return Manifest.model_validate(content)
    except (ValueError, OSError) as error:
        reason = error.errors()[0] if isinstance(error, ValidationError) else None
        where = f"{'.'.join(map(str, reason['loc']))}: {reason['msg']}" if reason else str(error)
        raise BundleError(f"{path} is damaged ({where[:300]}): copy or export the bundle again") from None

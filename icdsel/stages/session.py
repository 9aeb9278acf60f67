"""What every stage that asks the VLM works on: the training split, the VLM, embeddings and pools."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from icdsel.console import note, progress, warn
from icdsel.data.datasets import Split, load_split
from icdsel.errors import DataError
from icdsel.records import Example
from icdsel.retrieval.embeddings import Embeddings, Encoded, encode, read_train_embeddings
from icdsel.retrieval.encoders import Encoder, VlmEncoder, load_clip
from icdsel.retrieval.pools import Pools, build_pools
from icdsel.settings.loading import Settings
from icdsel.settings.presets import CLIP_B32, VLM_ENCODER
from icdsel.store.fingerprints import fingerprint_examples, fingerprint_file, unchanged
from icdsel.vlm.devices import resolve_device
from icdsel.vlm.engines import open_engine
from icdsel.vlm.supervision import SupervisedEngine


@dataclass(frozen=True)
class Queries:
    """Some examples of a split, with what is known of them.

    Attributes:
        examples: The queries.
        embeddings: Their embeddings as the selector sees them, (Q, d).
        pools: Their candidate pools.
    """

    examples: Sequence[Example]
    embeddings: Tensor
    pools: Pools


@dataclass(frozen=True)
class Session:
    """The training split with its embeddings, and the VLM.

    Attributes:
        settings: What was asked for.
        vlm: The VLM.
        train: The training split.
        encoder: What embeds examples for the selector.
        sampler_encoder: What embeds them for samplers and nearest neighbours.
        encoded: Raw features of the training split; None where its embeddings were given.
        embeddings: Its embeddings as the selector sees them, float32 (N, d).
        embeddings_file: Fingerprint of the file that they were given in.
    """

    settings: Settings
    vlm: SupervisedEngine
    train: Split
    encoder: Encoder
    sampler_encoder: Encoder
    encoded: Encoded | None
    embeddings: Tensor
    embeddings_file: str | None = None
    _broken: dict[int, str] = field(default_factory=dict)
    _splits: dict[str, Split] = field(default_factory=dict)
    _fingerprints: dict[str, str] = field(default_factory=dict)

    def under(self, settings: Settings) -> "Session":
        """The same, opened once, for other settings of proposals, training or inference.

        Raises:
            ValueError: dataset or model were asked for otherwise, so these are not the session of `settings`.
        """
        if (settings.data, settings.vlm) != (self.settings.data, self.settings.vlm):
            raise ValueError("these session were opened under other settings of data or vlm")
        same = copy.copy(self)  # with what was computed already
        same.__dict__["settings"] = settings
        return same

    @cached_property
    def identity(self) -> dict[str, str | None]:
        """Fingerprints of data, model and encoder, for the identity of what is made of them."""
        inputs = {
            "dataset": self.fingerprint("train"),
            "model": self.vlm.fingerprint,
            "dtype": self.vlm.dtype,
            "encoder": self.encoder.fingerprint,
            "train_embeddings": self.embeddings_file,
        }
        if self._broken:  # they are in no pool
            inputs["broken_images"] = hashlib.sha256(repr(sorted(self._broken)).encode()).hexdigest()[:16]
        if self.settings.data.sampler != "rand":
            inputs["sampler_encoder"] = self.sampler_encoder.fingerprint
        return inputs

    def fingerprint(self, split: str) -> str:
        """Of all examples of a split."""
        if split not in self._fingerprints:
            self._fingerprints[split] = fingerprint_examples(self.split(split))
        return self._fingerprints[split]

    def split(self, name: str) -> Split:
        """A split of the dataset."""
        if name == "train":
            return self.train
        if name not in self._splits:
            self._splits[name] = load_split(self.settings.data, name)
        return self._splits[name]

    @cached_property
    def similar_train(self) -> Embeddings:
        """What samplers and nearest neighbours see of the training split."""
        return self._sampler_train.relative_to(self._sampler_train, self.sampler_encoder.centred)

    @cached_property
    def _sampler_train(self) -> Encoded:
        if self.sampler_encoder is self.encoder and self.encoded is not None:
            return self.encoded
        return _encode(self.settings, self.sampler_encoder, self.train, "train", self._broken)

    def similar(self, queries: Sequence[Example], name: str) -> Embeddings:
        """What samplers and nearest neighbours see of `queries`, which are of the split of this name."""
        if name == "train":
            return _rows(self.similar_train, self.train, queries)
        encoded = _encode(self.settings, self.sampler_encoder, queries, name)
        return encoded.relative_to(self._sampler_train, self.sampler_encoder.centred)

    def queries(self, queries: Sequence[Example], name: str, shots: int) -> Queries:
        """`queries`, which are of the split of this name, with embeddings and pools of at least `shots` candidates.

        Raises:
            DataError: the training split is too small for the pools, or a pool for `shots`.
        """
        data = self.settings.data
        if name == "train":
            embeddings = self.embeddings[[self.train.row[query.question_id] for query in queries]]
        else:
            encoded = _encode(self.settings, self.encoder, queries, name)
            embeddings = encoded.relative_to(self.encoded or encoded, self.encoder.centred).of(data.embed)
            if embeddings.shape[1] != self.embeddings.shape[1]:
                raise DataError(
                    f"{data.train_embeddings} holds vectors of width {self.embeddings.shape[1]}, the encoder "
                    f"{data.encoder!r} gives {embeddings.shape[1]}: name the encoder that made the file with --encoder"
                )
        pools = build_pools(
            queries, self.train, lambda: (self.similar(queries, name), self.similar_train), data, set(self._broken)
        )
        if (smallest := pools.smallest) < shots:
            raise DataError(
                f"{shots} shots do not fit into a pool of {smallest}: use fewer (--shots, --pointer-shots), or a "
                f"larger --pool-size"
            )
        return Queries(queries, embeddings, pools)


def _rows(embeddings: Embeddings, split: Split, queries: Sequence[Example]) -> Embeddings:
    rows = [split.row[query.question_id] for query in queries]
    return Embeddings(embeddings.image[rows], embeddings.question[rows])


def _encode(
    settings: Settings, encoder: Encoder, examples: Sequence[Example], name: str, broken: dict[int, str] | None = None
) -> Encoded:
    """Raw features; images that cannot be read stop the run, or are told, as the settings say.

    Raises:
        DataError: an image cannot be read, and `on_image_error` is "stop".
    """
    with progress(f"Embedding {name}", len(examples)) as advance:
        encoded = encode(examples, encoder, settings.dataset_dir / "cache", name, advance)
    if encoded.broken:
        first = list(encoded.broken.values())[:3]
        told = f"{len(encoded.broken)} of {len(examples)} {name} examples have an image that cannot be read, or that "
        told += "the model fails at:\n  "
        told += "\n  ".join(first) + ("\n  …" if len(encoded.broken) > len(first) else "")
        if settings.data.on_image_error == "stop":
            raise DataError(f"{told}\nRepair them, say where images lie (--image-dir), or use --on-image-error skip.")
        warn(f"{told}\nThey are left out of every pool; as queries they count as failed.")
        if broken is not None:
            broken |= encoded.broken
    return encoded


def open_session(settings: Settings) -> Session:
    """Loads dataset and VLM and embeds the training split (from the cache where it was embedded before).

    Raises:
        DataError: the dataset is not there or damaged, or an image cannot be read.
        VlmError: a model is not there or cannot be used.
    """
    # Told the number of threads, MKL keeps to it, where it may else take fewer for a product and round it otherwise.
    torch.set_num_threads(torch.get_num_threads())
    data = settings.data
    train = load_split(data, "train")
    vlm = open_engine(settings.vlm, data.max_image_pixels)
    note(announce(settings, vlm.device))

    def load_encoder(name: str | None) -> Encoder:
        if name in (None, VLM_ENCODER):
            return VlmEncoder(lambda: vlm, settings.vlm, data.max_image_pixels)
        return load_clip(str(name), resolve_device(settings.vlm.device), data.max_image_pixels)

    encoder = load_encoder(data.encoder)
    sampler_encoder = encoder if data.sampler_encoder == data.encoder else load_encoder(data.sampler_encoder)
    broken: dict[int, str] = {}
    embeddings_file = None
    if data.train_embeddings is None:
        encoded = _encode(settings, encoder, train, "train", broken)
        embeddings = encoded.relative_to(encoded, encoder.centred).of(data.embed)
    elif encoder.centred:
        raise DataError(
            f"--train-embeddings {data.train_embeddings} needs the encoder that made it for the queries: name it, as "
            f"in --encoder {CLIP_B32} (now it is {data.encoder!r})"
        )
    else:
        with unchanged(data.train_embeddings):
            embeddings = read_train_embeddings(data.train_embeddings, len(train))
            embeddings_file = fingerprint_file(data.train_embeddings)
        encoded = None
    return Session(settings, vlm, train, encoder, sampler_encoder, encoded, embeddings, embeddings_file, broken)


def announce(settings: Settings, device: str) -> str:
    """What a command runs on."""
    return f"Dataset {settings.data.dataset}, model {settings.vlm.model} on {device}, seed {settings.data.seed}."

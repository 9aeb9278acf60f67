"""The resources that stages share: dataset, embeddings, pools and the VLM. Each is opened when it is first needed."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from icdsel.console import note, progress, warn
from icdsel.data.datasets import Split, image_hint
from icdsel.errors import DataError, VlmError
from icdsel.records import Example
from icdsel.retrieval.agreement import agreement
from icdsel.retrieval.embeddings import Centre, Embeddings, Encoded, encode, encode_answers, read_train_embeddings
from icdsel.retrieval.encoders import Encoder, VlmEncoder, open_encoder
from icdsel.retrieval.pools import Pools, build_pools
from icdsel.retrieval.samplers import SAMPLERS
from icdsel.settings.devices import label
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings
from icdsel.settings.presets import CLIP_B32, TINY_VLM, VLM_ENCODER
from icdsel.settings.tables import VlmSettings
from icdsel.settings.worlds import is_world
from icdsel.stages.answer_cache import AnswerCache
from icdsel.stages.fit_split import load_fit_split
from icdsel.stages.in_order import in_order
from icdsel.stages.scorers import scorer_of
from icdsel.stages.threads import use_threads
from icdsel.store.fingerprints import fingerprint_examples, fingerprint_file, unchanged
from icdsel.tasks.scoring import SCORER_VERSION, Scorer
from icdsel.vlm.devices import vlm_devices
from icdsel.vlm.engines import EngineIdentity, Vlm, identify_engine, open_engine, recall_engine

OpenEngine = Callable[[VlmSettings, int], Vlm]
"""Opens the engine for these settings; the number is the maximum number of pixels of an image."""
_T = TypeVar("_T")
_Unit = TypeVar("_Unit")


@dataclass(frozen=True)
class Queries:
    """Queries with their embeddings and candidate pools.

    Attributes:
        examples: The queries.
        embeddings: Their embeddings for the selector, float32 (Q, d).
        pools: Their candidate pools.
    """

    examples: Sequence[Example]
    embeddings: Tensor
    pools: Pools


class _shared(Generic[_T]):
    """A property of `Session` that is computed at first access, once for all sessions with the same data and VLM."""

    def __init__(self, compute: "Callable[[Session], _T]") -> None:
        self._compute, self._name = compute, compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, session: "Session", owner: type) -> _T:
        opened = session._opened
        if self._name not in opened:
            opened[self._name] = self._compute(session)
        value: _T = opened[self._name]
        return value


class Session:
    """Dataset, embeddings, pools and the VLM, for one combination of `data` and `vlm` settings.

    Creating a session opens nothing. Properties open what they need at first access and keep it. They depend on the
    settings of `data` and `vlm` only, so that all sessions made by `under` share them.

    Args:
        settings: The settings.
        open_vlm: Opens the engine that runs the VLM.

    Attributes:
        lock: Held where answers are counted and shown, since several units may be answered at the same time.
    """

    def __init__(self, settings: Settings, open_vlm: OpenEngine = open_engine) -> None:
        use_threads(settings)
        self.settings = settings
        self._open_vlm = open_vlm
        self._opened: dict[Any, Any] = {}
        self._reuses_answers = True
        self._skipped: set[Path] = set()  # images that cannot be read, which the user has been told
        self.lock = Lock()

    def under(self, settings: Settings) -> "Session":
        """A session with other settings for proposals, training or inference that shares everything opened.

        Raises:
            ValueError: `settings` have other values for data or VLM.
        """
        if (settings.data, settings.vlm) != (self.settings.data, self.settings.vlm):
            raise ValueError("a session cannot be used with other settings for data or vlm")
        other = copy.copy(self)  # a shallow copy, so both share `_opened`
        other.settings = settings
        return other

    def without_answers(self) -> "Session":
        """The same session, whose VLM answers every prompt itself, as measurements of its speed require."""
        other = copy.copy(self)
        other._reuses_answers = False
        return other

    # ---- dataset ----

    @property
    def train(self) -> Split:
        """The training split."""
        return self.split("train")

    def split(self, name: str) -> Split:
        """A split of the dataset.

        Raises:
            DataError: The dataset does not exist or is damaged.
        """
        data = self.settings.data
        split = self._once(("split", name), lambda: load_fit_split(data, name))
        self._once("told", lambda: note(f"Dataset {data.dataset}, seed {data.seed}."))
        return split

    def scorer(self, split: str) -> Scorer:
        """How answers to queries of a split are scored."""
        return self._once(("scorer", split), lambda: scorer_of(self.settings).prepared(self.split(split)))

    def fingerprint(self, split: str) -> str:
        """The fingerprint of all examples of a split."""
        return self._once(("fingerprint", split), lambda: fingerprint_examples(self.split(split)))

    def _once(self, key: object, compute: Callable[[], _T]) -> _T:
        if key not in self._opened:
            self._opened[key] = compute()
        value: _T = self._opened[key]
        return value

    # ---- VLM ----

    @_shared
    def vlm(self) -> Vlm:
        """The engine that runs the VLM, opened.

        Raises:
            VlmError: The model does not exist or cannot be used, or its files changed since they were identified.
        """
        known = self._identified
        vlm = self._open_vlm(self.settings.vlm, self.settings.data.max_image_pixels)
        vlm.recognise(self._cache)
        if known and vlm.fingerprint != known.fingerprint:
            if self.settings.vlm.url:
                raise VlmError(
                    f"{vlm.device} serves another model under the name {vlm.name} than to earlier commands, or is "
                    "another version of the server: run the same command again to work with it from now on (results "
                    "of the earlier one are not mixed with it)"
                )
            raise VlmError(f"the files of {vlm.name} changed while they were read: run the same command again")
        vlm.calls.skipped = self._skipped
        note(f"Model {self.settings.vlm.model} on {vlm.device}.")
        return vlm

    @property
    def _cache(self) -> Path:
        """The folder for what later commands may use."""
        return self.settings.dataset_dir / "cache"

    @_shared
    def vlm_identity(self) -> EngineIdentity:
        """Fingerprint and dtype of the VLM. Does not load its weights, unless the engine knows them only then.

        Raises:
            VlmError: The model does not exist.
        """
        return self._identified or EngineIdentity(self.vlm.fingerprint, self.vlm.dtype)

    @_shared
    def _identified(self) -> EngineIdentity | None:
        """The engine's identity by its files as they are now, read once; None if it is known only after opening.

        Results are recorded with it, and a model whose files have changed by the time it is opened is rejected.
        """
        settings = self.settings
        if not is_world(settings.data.dataset) and "model" not in settings.vlm.model_fields_set:
            note(f"No --model is given: using {settings.vlm.model}, the default for all data but the bundled worlds.")
        return identify_engine(settings.vlm) or recall_engine(settings.vlm, self._cache)

    @property
    def answers(self) -> AnswerCache | None:
        """The answers of earlier commands; None if they are not to be reused."""
        return self._answers if self._reuses_answers and self.settings.vlm.reuse_answers else None

    @_shared
    def _answers(self) -> AnswerCache:
        inputs = identity(self.settings, "vlm", leave_out=["vlm.clean_answers"])  # applied to the cached texts
        inputs |= {"model": self.vlm_identity.fingerprint, "dtype": self.vlm_identity.dtype, "scorer": SCORER_VERSION}
        return AnswerCache(self._cache, inputs)

    def in_order(self, work: Callable[[_Unit], _T], units: Iterable[_Unit]) -> AbstractContextManager[Iterator[_T]]:
        """Works on as many units at the same time as the VLM can answer; results come in the order of the units.

        If the VLM is not open by now, it is one unit at a time.
        """
        if "vlm" not in self._opened:
            return in_order(work, units)
        return in_order(work, units, self.vlm.at_once, self.vlm.close)

    @property
    def vlm_device(self) -> str:
        """Where the VLM runs, for metadata and logs. Does not load the VLM."""
        settings = self.settings.vlm
        if settings.on_ray:
            return f"Ray {settings.ray_address or 'on this machine'}"
        return ", ".join(settings.url) if settings.url else label(vlm_devices(settings))

    def advice(self) -> str | None:
        """How the VLM could have been faster; None if there is no advice, or if it was not loaded."""
        return self.vlm.advice() if "vlm" in self._opened else None

    def cut_warning(self) -> str | None:
        """What to do if no answer is correct because most were cut off; None if most were not."""
        if "vlm" not in self._opened or (share := self.vlm.calls.cut_share) <= 0.5:
            return None
        return (
            f"no answer of the VLM is correct, and {share:.0%} were cut off at --max-new-tokens "
            f"{self.settings.vlm.max_new_tokens}: if right answers are longer, raise it (`icdsel check` says how long)"
        )

    # ---- embeddings ----

    @_shared
    def encoder(self) -> Encoder:
        """The encoder whose embeddings the selector sees."""
        return self._encoder(self.settings.data.encoder)

    @_shared
    def sampler_encoder(self) -> Encoder:
        """The encoder of samplers and nearest neighbours."""
        data = self.settings.data
        return self.encoder if data.sampler_encoder == data.encoder else self._encoder(data.sampler_encoder)

    def _encoder(self, name: str | None) -> Encoder:
        settings, most_pixels = self.settings.vlm, self.settings.data.max_image_pixels
        if name in (None, VLM_ENCODER) and settings.url:
            return open_encoder(VLM_ENCODER, _bundled_vlm(settings), most_pixels)
        if name in (None, VLM_ENCODER):
            return VlmEncoder(lambda: self.vlm, lambda: self.vlm_identity, settings, most_pixels)
        return open_encoder(str(name), settings, most_pixels)

    @_shared
    def embeddings(self) -> Tensor:
        """The training split's embeddings for the selector, float32 (N, d).

        Raises:
            DataError: An image cannot be read, or the file of `train_embeddings` cannot be used.
        """
        if self._given is not None:
            return self._given[0]
        return self.train_vectors.of(self.settings.data.embed)

    @_shared
    def train_vectors(self) -> Embeddings:
        """The training split's images and questions by the encoder of the policy's embeddings."""
        return self._encoded.relative_to(self.centre)

    @_shared
    def centre(self) -> Centre | None:
        """What is subtracted from the encoder's features; None if nothing is."""
        return self._encoded.centre if self.encoder.centred else None

    @_shared
    def _sampler_centre(self) -> Centre | None:
        return self._sampler_encoded.centre if self.sampler_encoder.centred else None

    def candidates(self, answers: bool) -> Tensor:
        """What a policy sees of the training split as candidates, float32.

        Args:
            answers: Whether it also sees the answers that they would show (`PointerConfig.answer_dim`).

        Returns:
            `embeddings` (N, d), or beside them the answers (N, d + a): their embeddings, and in the last column how far
            they agree with those of the nearest neighbours.
        """
        return self._with_answers if answers else self.embeddings

    @_shared
    def _with_answers(self) -> Tensor:
        with progress("Embedding answers of train", len(self.train)) as advance:
            vectors = encode_answers(self.train, self.encoder, self._cache, "train", advance)
        agreed = agreement(self.embeddings, [example.answer for example in self.train])
        return torch.cat([self.embeddings, vectors, agreed[:, None]], dim=-1)

    @_shared
    def _given(self) -> tuple[Tensor, str] | None:
        """The vectors (N, d) in the file of `train_embeddings`, and its fingerprint."""
        path = self.settings.data.train_embeddings
        if path is None:
            return None
        if self.encoder.centred:
            raise DataError(
                f"--train-embeddings {path} needs the same encoder for the queries: name it, as in "
                f"--encoder {CLIP_B32} (now it is {self.settings.data.encoder!r})"
            )
        with unchanged(path):
            return read_train_embeddings(path, len(self.train)), fingerprint_file(path)

    @_shared
    def _encoded(self) -> Encoded:
        """The encoder's raw features of the training split."""
        return self._encode(self.encoder, self.train, "train")

    @_shared
    def _sampler_encoded(self) -> Encoded:
        """The sampler encoder's raw features of the training split."""
        if self.sampler_encoder is self.encoder and self.settings.data.train_embeddings is None:
            return self._encoded
        return self._encode(self.sampler_encoder, self.train, "train", in_pools=not self._pools_need_similarity)

    @_shared
    def similar_train(self) -> Embeddings:
        """The training split's embeddings for samplers and nearest neighbours."""
        return self._sampler_encoded.relative_to(self._sampler_centre)

    def similar(self, queries: Sequence[Example], name: str) -> Embeddings:
        """Embeddings of `queries` for samplers and nearest neighbours; `name` is the split that they belong to."""
        if name == "train":
            rows = self._rows(queries)
            return Embeddings(self.similar_train.image[rows], self.similar_train.question[rows])
        encoded = self._encode(self.sampler_encoder, queries, name)
        return encoded.relative_to(self._sampler_centre)

    def _rows(self, queries: Sequence[Example]) -> list[int]:
        return [self.train.row[query.question_id] for query in queries]

    def _encode(self, encoder: Encoder, examples: Sequence[Example], name: str, in_pools: bool = False) -> Encoded:
        """Raw features of examples of a split; `in_pools`: pools keep examples whose image cannot be read.

        Raises:
            DataError: An image cannot be read, and `on_image_error` is "stop".
        """
        with progress(f"Embedding {name}", len(examples)) as advance:
            encoded = encode(examples, encoder, self._cache, name, advance)
        if encoded.broken:
            first = list(encoded.broken.values())[:3]
            message = (
                f"{len(encoded.broken)} of {len(examples)} {name} examples have an image that cannot be read, or that "
                "the model fails on:\n  "
            ) + "\n  ".join([*first, *(["…"] if len(encoded.broken) > len(first) else [])])
            if self.settings.data.on_image_error == "stop":
                if any(reason.endswith(" is missing") for reason in encoded.broken.values()):
                    message += f"\n{image_hint(self.settings.data)}"
                raise DataError(
                    f"{message}\nRepair them, set the folder of the images (--image-dir), or use --on-image-error skip."
                )
            pools = "Pools may contain them, and prompts that show them fail" if in_pools else "No pool contains them"
            warn(f"{message}\n{pools}; as queries they count as failed.")
            self._skipped.update(image for row in encoded.broken for image in examples[row].images)
        return encoded

    # ---- pools ----

    @property
    def _pools_need_similarity(self) -> bool:
        return SAMPLERS.named(self.settings.data.sampler).needs_embeddings

    @_shared
    def broken(self) -> frozenset[int]:
        """Rows of the training split that no pool contains, because their image cannot be read.

        These are the rows that an encoder failed on, of those encoders that the pools depend on. Which rows they are
        must not depend on what was opened before: they are part of the inputs of results.
        """
        if self.settings.data.on_image_error == "stop":  # the first such image ends the command
            return frozenset()
        rows: set[int] = set()
        if self.settings.data.train_embeddings is None:
            rows.update(self._encoded.broken)
        if self._pools_need_similarity:
            rows.update(self._sampler_encoded.broken)
        return frozenset(rows)

    def queries(self, queries: Sequence[Example], name: str, shots: int) -> Queries:
        """Embeddings and pools of at least `shots` candidates for `queries` of the split `name`.

        Raises:
            DataError: The training split is too small for the pools, or a pool for `shots`.
        """
        data = self.settings.data
        if name == "train":
            embeddings = self.embeddings[self._rows(queries)]
        else:
            embeddings = self._encode(self.encoder, queries, name).relative_to(self.centre).of(data.embed)
            if embeddings.shape[1] != self.embeddings.shape[1]:
                raise DataError(
                    f"{data.train_embeddings} holds vectors of width {self.embeddings.shape[1]}, the encoder "
                    f"{data.encoder!r} produces {embeddings.shape[1]}: name the encoder of the file with --encoder"
                )
        similar = lambda: (self.similar(queries, name), self.similar_train)  # noqa: E731
        pools = build_pools(queries, self.train, similar, data, self.broken)
        if (smallest := pools.smallest) < shots:
            for q, query in enumerate(queries):
                if query.pool is not None and len(pools[q]) == smallest:
                    raise DataError(
                        f"question {query.question_id} brings a pool of {len(query.pool)} examples, of which "
                        f"{smallest} may be shown: {shots} shots need more, so use fewer (--shots, --max-shots, "
                        "--pointer-shots)"
                    )
            raise DataError(
                f"{shots} shots do not fit into a pool of {smallest}: use fewer (--shots, --max-shots, "
                f"--pointer-shots), or a larger --pool-size"
            )
        return Queries(queries, embeddings, pools)

    # ---- inputs ----

    @_shared
    def identity(self) -> dict[str, str | None]:
        """Fingerprints of data, model and encoders: part of the inputs of every result.

        Does not load the VLM, unless `on_image_error` is "skip" and embeddings by the VLM are not cached.
        """
        inputs = {
            "dataset": self.fingerprint("train"),
            "model": self.vlm_identity.fingerprint,
            "dtype": self.vlm_identity.dtype,
            "encoder": self.encoder.fingerprint,
            "train_embeddings": self._given[1] if self._given else None,
        }
        if self.broken:
            inputs["broken_images"] = hashlib.sha256(repr(sorted(self.broken)).encode()).hexdigest()[:16]
        if self._pools_need_similarity:
            inputs["sampler_encoder"] = self.sampler_encoder.fingerprint
        return inputs


def _bundled_vlm(settings: VlmSettings) -> VlmSettings:
    """The bundled tiny VLM in this process, which embeds in place of servers: they have no features of images."""
    return settings.model_copy(update={"model": TINY_VLM, "engine": "auto", "url": ()})

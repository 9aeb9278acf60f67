"""`Selector`: chooses ICDs for new images and questions with a bundle, and has a VLM answer with them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Self, overload

from icdsel.artefacts.bundle.contents import Bundle
from icdsel.artefacts.bundle.reading import read_bundle
from icdsel.artefacts.hub import is_on_hub, local_bundle
from icdsel.choosing.answering import Answering
from icdsel.choosing.choice import Choice
from icdsel.choosing.encoded_queries import EncodedQueries, encode_queries
from icdsel.choosing.held_images import HeldImages, ImageLike, digest_of_image
from icdsel.choosing.pool import Pool
from icdsel.data.images import ImageError, open_image
from icdsel.errors import BundleError, CheckpointError, DataError
from icdsel.policy.network import PointerNetwork
from icdsel.records import Example, Shots, parsed_shots
from icdsel.retrieval.encoders import Encoder, open_encoder
from icdsel.settings.loading import Settings
from icdsel.vlm.prompts import PromptStyle
from icdsel.vlm.task_prompts import TaskPrompts

__all__ = ["Selector", "query_id"]


def query_id(*content: str) -> str:
    """The id of a query that belongs to no dataset: equal ones have equal ids."""
    return f"query-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]}"


class Selector:
    """Chooses, for an image and a question, the candidates of a bundle that are worth showing to a VLM.

    Choosing needs the encoder of the embeddings, but no VLM (unless that is the encoder) and no GPU. It chooses from
    all candidates of the bundle, but for those with the query's own image if they were left out in training too.

    An instance may be used by several threads: they take turns to embed.

    Args:
        bundle: The policy and the candidates.
        settings: The settings of the bundle on this machine (`Manifest.resolved`).
        encoder: The encoder of the embeddings.

    Raises:
        BundleError: It is not the encoder of the bundle.
    """

    def __init__(self, bundle: Bundle, settings: Settings, encoder: Encoder) -> None:
        expected = bundle.manifest.encoder
        if encoder.fingerprint != expected.fingerprint:
            raise BundleError(
                f"the candidates of {bundle.manifest.name!r} were embedded by another encoder, {expected.name} with "
                f"the fingerprint {expected.fingerprint}: that of {encoder.name} here is {encoder.fingerprint}. Its "
                "files, or the limits of images, are others: get the same version of it, or export the bundle again"
            )
        self.bundle, self.settings = bundle, settings
        self.style, self.prompts = PromptStyle.of(settings.vlm), TaskPrompts.of(settings.data)
        self._encoder, self._embedding = encoder, Lock()
        self._pool = Pool(bundle, settings)
        self._held = HeldImages()
        self._answering = Answering(settings)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        encoder: str | None = None,
        image_dir: str | Path | None = None,
    ) -> Self:
        """Loads a bundle: a folder that `icdsel export` wrote, or `hub:owner/name`.

        Nothing in a bundle is run, and nothing outside it is read; its files are compared with their digests.

        Args:
            path: The bundle; one on the hub is downloaded once.
            device: Where the encoder runs.
            encoder: Where the encoder is on this machine, if the bundle names a folder of another one.
            image_dir: A folder with the candidates' images, for a bundle without them.

        Raises:
            BundleError: It is missing or damaged, or its encoder is another one here.
            VlmError: The encoder cannot be loaded.
        """
        folder = local_bundle(str(path)) if is_on_hub(path) else Path(path).expanduser()
        bundle = read_bundle(folder, None if image_dir is None else Path(image_dir).expanduser())
        settings = bundle.manifest.resolved(device, encoder)
        return cls(bundle, settings, open_encoder(settings.data.encoder, settings.vlm, settings.data.max_image_pixels))

    def with_policy(self, network: PointerNetwork) -> Self:
        """The same candidates with another policy.

        Raises:
            CheckpointError: It does not fit the candidates' embeddings.
        """
        config, own = network.config, self.bundle.network.config
        if (config.d_model, config.answer_dim) != (own.d_model, own.answer_dim):
            raise CheckpointError(
                f"the policy sees embeddings of width {config.d_model} and answers of width {config.answer_dim}, those "
                f"of the candidates of {self.bundle.manifest.name!r} have {own.d_model} and {own.answer_dim}"
            )
        return type(self)(replace(self.bundle, network=network.eval()), self.settings, self._encoder)

    @property
    def names(self) -> tuple[str, ...]:
        """The selectors that can choose here: the policy, and the baselines that need no more than the bundle has."""
        return self._pool.names

    @property
    def can_stop(self) -> bool:
        """Whether the policy can decide how many ICDs it shows: whether `auto` is a number of shots."""
        return self.bundle.network.config.stop

    @overload
    def choose(self, image: ImageLike, question: str, shots: Shots = ..., selector: str = ...) -> Choice: ...
    @overload
    def choose(
        self, image: list[Any], question: list[str], shots: Shots = ..., selector: str = ...
    ) -> list[Choice]: ...
    def choose(
        self,
        image: ImageLike | list[Any],
        question: str | list[str],
        shots: Shots = 2,
        selector: str = "policy",
    ) -> Choice | list[Choice]:
        """Chooses the ICDs of a query, or of a list of them.

        Args:
            image: A path, the content of a file, or a picture of Pillow; or a list of these.
            question: The question about it; or a list of as many.
            shots: How many ICDs; or `auto` for as many as the policy decides, none too, if it was trained to stop.
                `auto+1` stops more readily, by 1 nat, `auto-0.5` less.
            selector: Who chooses: `policy`, or a baseline, such as `nearest-both`, `random` or `zero-shot` (`names`).

        Raises:
            DataError: An image cannot be read, or the lists have different lengths.
            SettingsError: There is no such selector, or the policy cannot choose so many.
        """
        chosen = self.choose_all(self._queries(image, question), shots, selector)
        return chosen if isinstance(image, list) else chosen[0]

    @overload
    def answer(
        self, image: ImageLike, question: str, vlm: str = ..., shots: Shots = ..., selector: str = ...
    ) -> str: ...
    @overload
    def answer(
        self,
        image: list[Any],
        question: list[str],
        vlm: str = ...,
        shots: Shots = ...,
        selector: str = ...,
    ) -> list[str]: ...
    def answer(
        self,
        image: ImageLike | list[Any],
        question: str | list[str],
        vlm: str = "",
        shots: Shots = 2,
        selector: str = "policy",
    ) -> str | list[str]:
        """Answers a query, or a list of them, with the ICDs chosen for it.

        Args:
            image: As for `choose`.
            question: As for `choose`.
            vlm: Who answers: a model by its name, a folder, or the address of a server, `http://host:8000/v1`. By
                default the VLM that the policy was trained with.
            shots: As for `choose`.
            selector: As for `choose`.

        Raises:
            DataError: As for `choose`.
            SettingsError: As for `choose`.
            VlmError: The VLM cannot be opened, or does not answer.
        """
        choices = self.choose_all(self._queries(image, question), shots, selector)
        answers = self._answering.answers(choices, vlm or self.bundle.manifest.vlm_name)
        return answers if isinstance(image, list) else answers[0]

    # ---- in parts, for programs that serve many ----

    def hold(self, image: ImageLike) -> Path:
        """The file of an image: its own path, or one in a private folder, whose name depends on the content alone.

        Raises:
            ImageError: It is no image, is damaged, or has too many pixels.
        """
        path = self._held.path_of(image)
        try:
            open_image(path, self.settings.data.max_image_pixels)
        except ImageError as error:
            self._held.forget(path)
            raise ImageError(self._held.named_for_users(str(error), path)) from None
        return path

    def forget(self, path: Path) -> None:
        """Removes the file of an image that `hold` wrote."""
        self._held.forget(path)

    def query(self, image: ImageLike, question: str) -> Example:
        """An image and a question as an example without answers; its id depends on their content alone.

        Raises:
            DataError: The image cannot be read.
        """
        if not isinstance(question, str) or not question.strip():
            raise DataError("the question is empty")
        try:
            path = self._held.path_of(image)
            digest = digest_of_image(path)
        except ImageError as error:
            raise DataError(str(error)) from None
        return Example(query_id(digest, question), digest[:32], path, question, "", ())

    def _queries(self, image: ImageLike | list[Any], question: str | list[str]) -> list[Example]:
        if not isinstance(image, list):
            if not isinstance(question, str):
                raise DataError("one image needs one question, a string")
            return [self.query(image, question)]
        if not isinstance(question, list) or len(image) != len(question):
            raise DataError(f"{len(image)} images need a list of as many questions")
        return [self.query(own, text) for own, text in zip(image, question, strict=True)]

    def choose_all(self, queries: Sequence[Example], shots: Shots = 2, selector: str = "policy") -> list[Choice]:
        """Chooses the ICDs of queries with ids of their own, such as those of a dataset's split.

        Raises:
            DataError: An image cannot be read.
            SettingsError: As for `choose`.
        """
        if not queries:
            return []
        shots = self._pool.allowed(parsed_shots(shots) if isinstance(shots, str) else shots, selector)
        encoded = self.encode(queries)
        if encoded.broken:
            place, reason = next(iter(encoded.broken.items()))
            raise DataError(self._held.named_for_users(reason, queries[place].image))
        return self.choose_encoded(encoded, shots, selector)

    def encode(self, queries: Sequence[Example]) -> EncodedQueries:
        """Embeds queries; the images of some may be broken. One thread at a time does it."""
        with self._embedding:
            return encode_queries(self.bundle, self._encoder, queries, self.settings.data.exclude_same_image)

    def choose_encoded(
        self, encoded: EncodedQueries, shots: Shots = 2, selector: str = "policy", scored: bool = True
    ) -> list[Choice]:
        """Chooses the ICDs of embedded queries.

        Args:
            encoded: The queries.
            shots: As for `choose`.
            selector: As for `choose`.
            scored: Whether choices of the policy have `scores`, which take time.

        Raises:
            SettingsError: As for `choose`.
        """
        most = self.settings.data.max_image_pixels
        train = self.bundle.train
        found = self._pool.choose(encoded, self._pool.allowed(shots, selector), selector, scored)
        return [
            Choice(query, tuple(train[row] for row in one.rows), one.scores, self.style, self.prompts, most)
            for query, one in zip(encoded.queries, found, strict=True)
        ]

    def close(self) -> None:
        """Ends VLMs that `answer` has opened, and removes the files of images."""
        self._answering.close()
        self._held.close()

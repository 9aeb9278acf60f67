"""What the proxy needs of whoever chooses demonstrations: `icdsel.choosing.selector.Selector`, or a fake in tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from icdsel.artefacts.bundle.manifest import Manifest
from icdsel.data.datasets import Split
from icdsel.records import Example, Shots
from icdsel.settings.loading import Settings


class Chosen(Protocol):
    """The demonstrations of one query."""

    @property
    def query(self) -> Example:
        """The query."""

    @property
    def icds(self) -> tuple[Example, ...]:
        """The demonstrations in prompt order."""

    @property
    def scores(self) -> tuple[float, ...] | None:
        """The log-prob of each in nats, where the selector has one."""


class Encoded(Protocol):
    """Encoded queries."""

    @property
    def queries(self) -> Sequence[Example]:
        """The queries."""

    @property
    def broken(self) -> Mapping[int, str]:
        """Why the image of a query could not be read, by its position."""


class Candidates(Protocol):
    """Whatever holds the candidates."""

    @property
    def manifest(self) -> Manifest:
        """What the bundle is."""

    @property
    def train(self) -> Split:
        """The candidates, by their rows."""


class Chooser(Protocol):
    """Chooses demonstrations. One call of `encode` runs at a time; everything else may be called by any thread."""

    @property
    def bundle(self) -> Candidates:
        """The candidates."""

    @property
    def settings(self) -> Settings:
        """How prompts are worded, and the limits of images."""

    @property
    def names(self) -> tuple[str, ...]:
        """The selectors that can choose here."""

    @property
    def can_stop(self) -> bool:
        """Whether the policy can decide how many to show."""

    def hold(self, image: bytes) -> Path:
        """The image of a request as a file, named by its digest.

        Raises:
            ImageError: It is no image, or too large.
        """

    def forget(self, path: Path) -> None:
        """Removes such a file."""

    def query(self, image: Path, question: str) -> Example:
        """A query, whose id depends on the image's content and the question.

        Raises:
            DataError: It is not possible.
        """

    def encode(self, queries: Sequence[Example]) -> Any:
        """The embeddings of queries, an `Encoded`."""

    def choose_encoded(self, encoded: Any, shots: Shots, selector: str, scored: bool) -> Sequence[Chosen]:
        """Demonstrations for each of the encoded queries, with log-probs only if they are to be `scored`.

        Raises:
            UserError: This selector cannot choose so many.
        """

    def close(self) -> None:
        """Ends what it has opened, and removes the images that it holds."""

"""The interface of an engine: whatever runs a vision-language model and answers prompts with it.

To add an engine, subclass `Engine`: `name`, `fingerprint` and `answer` are required, everything else has a default.
Then register a function that opens it, see `icdsel.vlm.engines`.

An engine does not handle failures. It raises, or returns answers with an `error`; retries, smaller batches, timeouts
and the limit of failed calls are the same for every engine (`icdsel.vlm.supervision`).
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from icdsel.records import Answer, Example

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Request:
    """One prompt: ICDs in prompt order, the query, and the reference answers whose log-probs are wanted."""

    icds: tuple[Example, ...]
    query: Example
    references: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[Example, ...]:
        """The examples of the prompt, in order: the ICDs, then the query."""
        return (*self.icds, self.query)

    @property
    def images(self) -> tuple[Path, ...]:
        """The images of the prompt, in order."""
        return tuple(image for example in self.shown for image in example.images)


class Engine(Protocol):
    """Runs a vision-language model.

    The answer to a prompt does not depend on its batch, the order of requests or the state of caches.

    Attributes:
        name: The model's name, as the user specified it.
        fingerprint: Identifies the weights and everything else that determines how a prompt is processed. Results are
            reused only if it is the same.
        dtype: The dtype that the model computes in, such as "float32" or "bfloat16"; part of a result's identity.
        device: Where the model runs, as a label for logs.
        chunk: Number of requests that are planned together (`batches`).
        at_once: How many calls of `answer` may run at the same time, in different threads. A server, or several
            devices, are busy only if there is more than one.
        can_score_references: Whether answers include the log-probs of a request's references.
        why_no_references: If they do not, the reason, for messages.
        can_embed: Whether `embed_images` and `embed_texts` work.
        retries_itself: Whether an answer with an error has been tried several times, within time limits of the engine's
            own: it is final, and a call of `answer` may take any time.
    """

    name: str
    fingerprint: str
    dtype: str = "unknown"
    device: str = "unknown"
    chunk: int = 64
    at_once: int = 1
    can_score_references: bool = False
    why_no_references: str = "this engine cannot tell them"
    can_embed: bool = False
    retries_itself: bool = False

    @abstractmethod
    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers requests in one call of the model.

        If a single request fails, for example because an image cannot be read, its answer has an `error`. An exception
        counts as a failure of the whole batch, which is then split; but a `UserError` ends the command.
        """

    def batches(self, requests: Sequence[Request], upcoming: Sequence[Request] = ()) -> Iterable[Sequence[int]]:
        """Groups requests into efficient batches for `answer`, in an efficient order.

        Args:
            requests: The requests that will be answered now; an engine may load their images here.
            upcoming: The requests that will be answered next; an engine may start to load their images.

        Returns:
            Batches of positions in `requests`; each position occurs exactly once.
        """
        del upcoming
        return [range(len(requests))] if requests else []

    def embed_images(self, paths: Sequence[Path]) -> "tuple[Tensor, dict[int, str]]":
        """Returns features, float32 (N, d) on the CPU, and position → reason for failed images, whose rows are 0."""
        raise NotImplementedError

    def embed_texts(self, texts: Sequence[str]) -> "Tensor":
        """Returns features of texts, float32 (N, d) on the CPU, of the same width as those of images."""
        raise NotImplementedError

    def release_memory(self) -> None:
        """Returns unused memory to the device. Called after a call has failed."""
        return

    def advice(self) -> str | None:
        """How the user could speed up work like this, such as by a larger cache; None if there is no advice."""
        return None

    def recognise(self, folder: Path) -> None:
        """Called once, with a folder of results, before anything is asked.

        An engine that knows its model only by what it answers may take the `fingerprint` of an earlier command here.
        """
        del folder

    def close(self) -> None:
        """Ends the calls in progress soon, and frees what the engine holds. It is not used again."""
        return

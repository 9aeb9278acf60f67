"""The interface of an engine: whatever runs a vision-language model and answers prompts with it.

To add an engine, subclass `Engine`: `name`, `fingerprint` and `answer` are required, everything else has a default.
Then register a function that opens it, see `icdsel.vlm.engines`.

An engine does not deal with failures. It raises, or returns answers with an `error`; retries, smaller batches, timeouts
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


class Engine(Protocol):
    """Runs a vision-language model.

    For any batch, order or cache state the answers are those of one prompt at a time.

    Attributes:
        name: What the user calls the model.
        fingerprint: Identifies the weights and everything else that decides how a prompt is read. Results are reused
            only if it is the same.
        dtype: Arithmetic of the model, such as "float32" or "bfloat16"; part of a result's identity.
        device: Where the model runs, as a label for logs.
        chunk: Number of requests that are planned together (`batches`).
        can_score_references: Whether answers carry the log-probs of a request's references.
        can_embed: Whether `embed_images` and `embed_texts` work.
    """

    name: str
    fingerprint: str
    dtype: str = "unknown"
    device: str = "unknown"
    chunk: int = 64
    can_score_references: bool = False
    can_embed: bool = False

    @abstractmethod
    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers requests in one call of the model.

        A request that fails by itself (an image that cannot be read, say) gets an answer with an `error`. Anything
        raised is taken for a failure of the whole batch, which is then split. A `UserError` ends the command.
        """

    def batches(self, requests: Sequence[Request], upcoming: Sequence[Request] = ()) -> Iterable[Sequence[int]]:
        """Groups requests into the batches that `answer` is best called with, in the best order.

        Args:
            requests: What will be answered now; an engine may load what it needs for them.
            upcoming: What will be answered next; an engine may begin to load what it needs for them.

        Returns:
            Positions in `requests`, each of them once.
        """
        del upcoming
        return [range(len(requests))] if requests else []

    def embed_images(self, paths: Sequence[Path]) -> "tuple[Tensor, dict[int, str]]":
        """Features of images, float32 (N, d) on the CPU; position → reason of those that failed, whose rows are 0."""
        raise NotImplementedError

    def embed_texts(self, texts: Sequence[str]) -> "Tensor":
        """Features of texts, float32 (N, d) on the CPU, of the same width as those of images."""
        raise NotImplementedError

    def release_memory(self) -> None:
        """Returns unused memory to the device. Called after a call has failed."""
        return

    def advice(self) -> str | None:
        """How the user could make the work so far faster, such as a larger cache; None if there is nothing to say."""
        return None

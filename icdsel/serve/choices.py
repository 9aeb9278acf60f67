"""From an image and a question to the demonstrations in front of them."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from icdsel.console import plain
from icdsel.data.images import ImageError, pixels_in
from icdsel.errors import UserError
from icdsel.records import Example, Shots, shots_text
from icdsel.serve.batching import Batcher
from icdsel.serve.chooser import Chooser, Chosen
from icdsel.serve.errors import ApiError, bad_request
from icdsel.serve.limits import Limits
from icdsel.serve.metrics import Metrics

_DECODERS = 2  # threads that check images


@dataclass(frozen=True)
class Plan:
    """Who chooses, and how many."""

    selector: str
    shots: Shots


@dataclass(frozen=True)
class Choices:
    """What was chosen for one query.

    Attributes:
        chosen: By each plan, in order.
        encode_ms: How long encoding took, in milliseconds, for the whole batch.
        choose_ms: How long choosing took.
    """

    chosen: tuple[Chosen, ...]
    encode_ms: float
    choose_ms: float


@dataclass(frozen=True)
class _Job:
    query: Example
    plans: tuple[Plan, ...]
    scored: bool


class ChoiceService:
    """Chooses for requests, those that wait together in one batch.

    Args:
        chooser: Whoever chooses.
        limits: The limits of a request.
        metrics: Where times are counted.
    """

    def __init__(self, chooser: Chooser, limits: Limits, metrics: Metrics) -> None:
        self.chooser, self._limits, self._metrics = chooser, limits, metrics
        self._pixels: dict[Path, int] = {}  # of each held image
        self._batcher = Batcher(
            self._choose,
            limits.batch,
            "choosing",
            metrics.batch_size.observe,
            lambda job: self._pixels.get(job.query.image, 0),
            limits.batch_pixels,
        )
        self._images = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decoding")
        self._users: Counter[str] = Counter()  # of each held image, by its digest

    @asynccontextmanager
    async def held(self, content: bytes, param: str) -> AsyncIterator[Path]:
        """The file of a request's image, for as long as a request with the same image is in progress.

        Raises:
            ApiError: It is no image, or too large.
        """
        digest = hashlib.sha256(content).hexdigest()
        self._users[digest] += 1  # before it is written: another request may be about to remove the same file
        written = asyncio.get_running_loop().run_in_executor(self._images, self._hold, content, param)
        try:
            yield await asyncio.shield(written)
        except ImageError as error:
            raise bad_request(plain(str(error)), "invalid_image", param) from None
        finally:
            self._users[digest] -= 1
            written.add_done_callback(lambda done: self._release(digest, done))  # also if the client left before

    def _hold(self, content: bytes, param: str) -> Path:
        most = self._limits.image_pixels
        pixels = pixels_in(content, most)
        if pixels > most:
            raise ApiError(413, f"an image has more than {most:,} pixels: make it smaller", "too_large", param)
        path = self.chooser.hold(content)
        self._pixels[path] = pixels
        return path

    def _release(self, digest: str, written: "asyncio.Future[Path]") -> None:
        """Removes an image that no request needs any more."""
        if self._users[digest] > 0:
            return
        del self._users[digest]
        if not written.cancelled() and written.exception() is None:
            self._pixels.pop(written.result(), None)
            self.chooser.forget(written.result())

    def query(self, image: Path, question: str) -> Example:
        """A request's query as an example; the same image and question have the same id.

        Raises:
            ApiError: There is no question.
        """
        try:
            return self.chooser.query(image, question)
        except UserError as error:
            raise bad_request(plain(str(error))) from None

    def plan(self, selector: str, shots: Shots) -> Plan:
        """A plan that can be followed.

        Raises:
            ApiError: There is no such selector, or it is to show too many.
        """
        if selector not in self.chooser.names:
            known = ", ".join(self.chooser.names)
            raise bad_request(f"there is no selector {plain(selector)!r} here: use one of {known}", param="selector")
        if isinstance(shots, int) and shots > self._limits.most_shots:
            raise bad_request(
                f"{shots_text(shots)} are more than the limit of {self._limits.most_shots}", param="shots"
            )
        return Plan(selector, shots)

    async def choose(self, query: Example, plans: Sequence[Plan], scored: bool = True) -> Choices:
        """Chooses demonstrations, with log-probs only if they are to be `scored`.

        Raises:
            ApiError: It is not possible.
        """
        try:
            choices = await self._batcher.result(_Job(query, tuple(plans), scored))
        except (UserError, ImageError) as error:
            raise bad_request(plain(str(error)), "cannot_choose") from None
        most = max(len(chosen.icds) for chosen in choices.chosen)
        if most > self._limits.most_shots:  # the policy's own number, for `auto`
            raise bad_request(
                f"auto is {shots_text(most)} here, more than the limit of {self._limits.most_shots}: give a number",
                param="shots",
            )
        for plan in plans:
            self._metrics.chosen.labels(plan.selector).inc()
        return choices

    def close(self) -> None:
        """Ends the threads."""
        self._batcher.close()
        self._images.shutdown(wait=False, cancel_futures=True)

    def _choose(self, jobs: Sequence[_Job]) -> list[Choices]:
        """Encodes and chooses for all jobs; those with the same plans together."""
        alike: dict[tuple[tuple[Plan, ...], bool], list[int]] = {}
        for at, job in enumerate(jobs):
            alike.setdefault((job.plans, job.scored), []).append(at)
        made: dict[int, Choices] = {}
        for (plans, scored), places in alike.items():
            started = time.perf_counter()
            encoded = self.chooser.encode([jobs[at].query for at in places])
            if encoded.broken:
                at, reason = next(iter(encoded.broken.items()))
                raise ImageError(
                    reason.replace(str(encoded.queries[at].image), "the image")
                )  # then each is tried alone
            then = time.perf_counter()
            by_plan = [self.chooser.choose_encoded(encoded, plan.shots, plan.selector, scored) for plan in plans]
            ended = time.perf_counter()
            self._metrics.encode_seconds.observe(then - started)
            self._metrics.choose_seconds.observe(ended - then)
            for k, at in enumerate(places):
                chosen = tuple(choices[k] for choices in by_plan)
                made[at] = Choices(chosen, 1000 * (then - started), 1000 * (ended - then))
        return [made[at] for at in range(len(jobs))]

"""What the proxy does with a request, apart from HTTP's own matters."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starlette.responses import Response

from icdsel.console import logger, plain
from icdsel.data.images import ImageError
from icdsel.records import Example, Shots
from icdsel.selection import SELECTORS
from icdsel.serve.chat import ChatRequest, with_prompt
from icdsel.serve.choices import Choices, ChoiceService, Plan
from icdsel.serve.chooser import Chooser, Chosen
from icdsel.serve.errors import ApiError, bad_request
from icdsel.serve.feedback import Feedback, Served
from icdsel.serve.images import ImageSource, media_type
from icdsel.serve.limits import Limits, Opened
from icdsel.serve.metrics import Metrics
from icdsel.serve.prompt import PromptWriter
from icdsel.serve.responses import EventStream, body_with, chunk_with, ids_header, with_first
from icdsel.serve.schemas import Candidate, ChoiceRequest, ChoiceResponse, Icd, SelectorChoice, Timing
from icdsel.serve.upstream import Reply, Turn, Upstream
from icdsel.store.reading import read_whole
from icdsel.vlm.server.images import data_url

_SKIPPED = "X-Icdsel-Skipped"
_GRACE = 0.5  # seconds in which an upstream tells by itself that it was too slow
_LARGEST_CANDIDATE = 256 * 2**20  # bytes of an image file


@dataclass(frozen=True)
class _Prepared:
    """A request with its demonstrations.

    Attributes:
        turn: What the upstream gets.
        shown: What the field `icdsel` of the response says.
        headers: What its headers say.
    """

    turn: Turn
    shown: Mapping[str, Any]
    headers: Mapping[str, str]


class Service:
    """Answers chat requests with demonstrations in front, and tells choices.

    Args:
        chooser: Whoever chooses.
        upstream: Whoever answers.
        metrics: Where everything is counted; the upstream counts there too.
        default: Who chooses, and how many, where a request does not say.
        limits: The limits of a request.
        opened: Where images may come from.
        feedback: Where scores go; None if there is no feedback.
    """

    def __init__(
        self,
        chooser: Chooser,
        upstream: Upstream,
        metrics: Metrics,
        default: Plan,
        limits: Limits,
        opened: Opened,
        feedback: Feedback | None = None,
    ) -> None:
        self.chooser, self.upstream, self.metrics, self.limits = chooser, upstream, metrics, limits
        self.default, self.feedback = default, feedback
        self.choices = ChoiceService(chooser, limits, metrics)
        self._images, self._prompts = ImageSource(opened, limits), PromptWriter(chooser.settings)

    async def close(self) -> None:
        """Ends connections and threads."""
        self.choices.close()
        self._prompts.close()
        await self._images.close()
        await self.upstream.close()
        if self.feedback is not None:
            self.feedback.close()
        self.chooser.close()

    # ---- chat ----

    async def chat(self, asked: ChatRequest, request_id: str, ends: float) -> Response:
        """The response to a chat request.

        Args:
            asked: The request.
            request_id: Its id.
            ends: The time of the event loop by which the response has to be complete.

        Raises:
            ApiError: There is no answer.
        """
        try:
            async with asyncio.timeout_at(ends + _GRACE), AsyncExitStack() as held:
                prepared = await self._prepared(asked, request_id, held, ends)
                started = time.perf_counter()
                reply = await self.upstream.chat(prepared.turn)
                self.metrics.upstream_seconds.observe(time.perf_counter() - started)
        except TimeoutError:
            raise ApiError(504, f"no answer within {self.limits.seconds:g} seconds", "timeout") from None
        return await self._response(reply, prepared, asked, ends)

    async def _prepared(self, asked: ChatRequest, request_id: str, held: AsyncExitStack, ends: float) -> _Prepared:
        plan = self._plan(asked.options.selector, asked.options.shots)
        contents, paths = [], []
        for image in asked.images:
            content = await self._images.content(image.url, image.param)
            paths.append(await held.enter_async_context(self.choices.held(content, image.param)))
            contents.append(content)
            if not image.url.startswith("data:"):
                image.holder["url"] = data_url(content, media_type(content))
        turn = Turn(asked.body, None, asked.system is not None, paths[0].name if paths else request_id, ends)
        if not asked.is_plain:
            return self._unchanged(asked, turn, request_id)
        query = self.choices.query(paths[0], asked.question)
        if asked.skipped is not None:
            self._remember(request_id, query, (), contents[0])
            return self._unchanged(asked, replace(turn, shown=self._prompts.request((), query)), request_id)
        choices, _ = await asyncio.gather(
            self.choices.choose(query, [plan], scored=asked.options.shown), self._prompts.prepare(query)
        )
        self._remember(request_id, query, choices.chosen[0].icds, contents[0])
        return await self._with_icds(asked, turn, request_id, choices, plan)

    def _unchanged(self, asked: ChatRequest, turn: Turn, request_id: str) -> _Prepared:
        reason = str(asked.skipped)
        self.metrics.skipped.labels(reason).inc()
        shown: dict[str, Any] = {"request_id": request_id, "skipped": reason, "icds": []}
        return _Prepared(turn, shown, {_SKIPPED: reason, "X-Icdsel-Icds": ""})

    async def _with_icds(
        self, asked: ChatRequest, turn: Turn, request_id: str, choices: Choices, plan: Plan
    ) -> _Prepared:
        [chosen] = choices.chosen
        self.metrics.shown.observe(len(chosen.icds))
        body = with_prompt(asked, await self._messages(chosen))
        changed = replace(turn, body=body, shown=self._prompts.request(chosen.icds, chosen.query))
        choice = self._choice(chosen, plan).model_dump(exclude={"messages"})
        timing = Timing(encode=choices.encode_ms, choose=choices.choose_ms).model_dump()
        headers = {
            "X-Icdsel-Icds": ids_header(chosen.icds),
            "X-Icdsel-Selector": plan.selector,
            "X-Icdsel-Encode-Ms": f"{choices.encode_ms:.2f}",
            "X-Icdsel-Choose-Ms": f"{choices.choose_ms:.2f}",
        }
        return _Prepared(changed, {"request_id": request_id, **choice, "timing_ms": timing}, headers)

    async def _response(self, reply: Reply, prepared: _Prepared, asked: ChatRequest, ends: float) -> Response:
        headers = {**reply.headers, **prepared.headers}
        told = asked.options.shown and reply.status == 200
        if reply.events is not None:
            first = chunk_with(prepared.shown, asked.body.get("model")) if told else b""
            return EventStream(with_first(first, reply.events) if told else reply.events, ends, headers)
        body = await asyncio.to_thread(body_with, prepared.shown, reply.body) if told else reply.body
        return Response(body, reply.status, headers, reply.media_type)

    def _remember(self, request_id: str, query: Example, icds: tuple[Example, ...], content: bytes) -> None:
        if self.feedback is not None:
            self.feedback.remember(request_id, Served(query, icds, content, time.monotonic()))

    async def _messages(self, chosen: Chosen) -> list[dict[str, Any]]:
        try:
            return await self._prompts.messages(chosen)
        except ImageError as error:  # of a demonstration: the query's was read before
            logger.error("a demonstration's image cannot be read: %s", plain(str(error)))
            message = "the image of a demonstration cannot be read; the proxy's log says why"
            raise ApiError(500, message, "internal_error") from None

    # ---- choices ----

    async def choose(self, asked: ChoiceRequest, request_id: str) -> ChoiceResponse:
        """What selectors choose for a query.

        Raises:
            ApiError: It is not possible.
        """
        if len(asked.question) > self.limits.text:
            raise bad_request(f"the question has more than {self.limits.text:,} characters", "too_large", "question")
        names = asked.selectors or [self.default.selector]
        if len(set(names)) < len(names):
            raise bad_request("a selector is named twice", param="selectors")
        plans = [self._plan(name, asked.shots) for name in names]
        try:
            async with asyncio.timeout(self.limits.seconds):
                content = await self._images.content(asked.image, "image")
                async with self.choices.held(content, "image") as path:
                    choices = await self.choices.choose(self.choices.query(path, asked.question), plans)
                    made = await self._told(choices, plans, asked.messages)
        except TimeoutError:
            raise ApiError(504, f"nothing chosen within {self.limits.seconds:g} seconds", "timeout") from None
        timing = Timing(encode=choices.encode_ms, choose=choices.choose_ms)
        return ChoiceResponse(request_id=request_id, choices=made, timing_ms=timing)

    async def _told(self, choices: Choices, plans: list[Plan], with_messages: bool) -> list[SelectorChoice]:
        made = [self._choice(chosen, plan) for chosen, plan in zip(choices.chosen, plans, strict=True)]
        if not with_messages:
            return made
        messages, size = [], 0
        for chosen in choices.chosen:
            messages.append(await self._messages(chosen))
            size += _images_size(messages[-1])
            if size > self.limits.body_bytes:
                shown = f"the messages have more than {self.limits.body_mb:g} MB"
                raise ApiError(413, f"{shown}: ask for fewer selectors or demonstrations", "too_large", "messages")
        return [one.model_copy(update={"messages": own}) for one, own in zip(made, messages, strict=True)]

    def _plan(self, selector: str | None, shots: Shots | None) -> Plan:
        name = selector or self.default.selector
        if shots is None:
            shots = self.default.shots
            if isinstance(shots, str) and name in SELECTORS and not SELECTORS[name].can_stop:
                shots = self.chooser.bundle.manifest.shots  # only the policy can decide how many
        return self.choices.plan(name, shots)

    def _choice(self, chosen: Chosen, plan: Plan) -> SelectorChoice:
        icds = [self._icd(icd) for icd in chosen.icds]
        scores = None if chosen.scores is None else list(chosen.scores)
        return SelectorChoice(selector=plan.selector, shots=plan.shots, icds=icds, scores=scores)

    def _icd(self, example: Example) -> Icd:
        return Icd(
            question_id=example.question_id,
            question=example.readable,
            answer=example.answer,
            image=f"/v1/candidates/{self.chooser.bundle.train.row[example.question_id]}/image",
        )

    # ---- candidates ----

    def candidate(self, row: int) -> Candidate:
        """A candidate.

        Raises:
            ApiError: There is no such candidate.
        """
        return Candidate(row=row, **self._icd(self._example(row)).model_dump())

    def _example(self, row: int) -> Example:
        if not 0 <= row < len(self.chooser.bundle.train):
            raise ApiError(404, "there is no candidate of this number", "not_found", "row")
        example: Example = self.chooser.bundle.train[row]
        return example

    async def candidate_image(self, row: int) -> bytes:
        """The file of a candidate's image.

        Raises:
            ApiError: There is no such candidate, or its image is gone.
        """
        path: Path = self._example(row).image
        try:
            return await asyncio.to_thread(read_whole, path, _LARGEST_CANDIDATE)
        except OSError:
            raise ApiError(404, "the image of this candidate is missing", "not_found", "row") from None


def _images_size(messages: Sequence[Mapping[str, Any]]) -> int:
    """The characters of all images in messages."""
    parts = (part for message in messages if isinstance(message["content"], list) for part in message["content"])
    return sum(len(part["image_url"]["url"]) for part in parts if part["type"] == "image_url")

"""A model in this process as upstream: prompts that wait together are answered together, greedily."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from icdsel.console import plain
from icdsel.errors import UserError
from icdsel.records import Answer
from icdsel.serve.batching import Batcher
from icdsel.serve.errors import ApiError, bad_request
from icdsel.serve.events import event
from icdsel.serve.metrics import Metrics
from icdsel.serve.upstream import Events, Reply, Turn
from icdsel.vlm.engine import Request
from icdsel.vlm.engines import Vlm

_NOT_POSSIBLE = {"n": (None, 1), "logprobs": (None, False), "tools": (None, []), "response_format": (None,)}
"""Fields with the values that change nothing. Others, such as `temperature`, are ignored: decoding is greedy."""


class LocalUpstream:
    """Answers with an engine of this process, in the wording that it was opened with.

    Args:
        engine: The engine.
        most: Prompts in one call of it, at most.
        seconds: The longest time of a request, for messages.
        metrics: Where failures are counted.
        clean: Cleans an answer, as `icdsel infer` does.
    """

    def __init__(
        self, engine: Vlm, most: int, seconds: float, metrics: Metrics, clean: Callable[[str], str] = str
    ) -> None:
        self._engine, self._seconds, self._metrics, self._clean = engine, seconds, metrics, clean
        self._batcher: Batcher[Request, Answer] = Batcher(self._answer, most, "answering")

    @property
    def name(self) -> str:
        """The model and its device."""
        return f"{self._engine.name} on {self._engine.device}"

    async def chat(self, turn: Turn) -> Reply:
        """The answer to a question about one image."""
        shown = self._possible(turn)
        try:
            async with asyncio.timeout_at(turn.ends):
                answer = await self._batcher.result(shown)
        except TimeoutError:
            raise self._failed(504, f"no answer within {self._seconds:g} seconds", "upstream_timeout") from None
        except UserError as error:
            raise self._failed(
                502, f"the model cannot be used: {plain(_without_paths(str(error), shown))}", "upstream_error"
            ) from None
        if answer.error is not None:
            raise self._failed(502, f"the model failed: {plain(_without_paths(answer.error, shown))}", "upstream_error")
        if turn.body.get("stream"):
            return Reply(200, events=Events(_events(self._completion(answer))), media_type="text/event-stream")
        return Reply(200, json.dumps(self._completion(answer)).encode())

    async def models(self, ends: float) -> Reply:
        """The one model."""
        del ends
        card = {"id": self._engine.name, "object": "model", "created": 0, "owned_by": "icdsel"}
        return Reply(200, json.dumps({"object": "list", "data": [card]}).encode())

    async def close(self) -> None:
        """Ends the thread and the engine."""
        self._batcher.close()
        self._engine.close()

    def _answer(self, requests: Sequence[Request]) -> list[Answer]:
        return self._engine.answer(requests)

    def _possible(self, turn: Turn) -> Request:
        """The prompt of a request.

        Raises:
            ApiError: The engine cannot answer such a request.
        """
        wanted = turn.body.get("model")
        if wanted not in (None, self._engine.name):
            raise ApiError(
                404, f"there is no model {plain(wanted)!r}: use {self._engine.name!r}", "model_not_found", "model"
            )
        for field, harmless in _NOT_POSSIBLE.items():
            if turn.body.get(field) not in harmless:
                raise bad_request(f"the model in this process does not support {field}", "not_supported", field)
        if turn.shown is None:
            raise bad_request(
                "the model in this process answers one question about one image; --vlm-url names a server for others",
                "not_supported",
                "messages",
            )
        if turn.system:
            raise bad_request(
                "the model in this process has a system message of its own: leave yours out",
                "not_supported",
                "messages",
            )
        return turn.shown

    def _completion(self, answer: Answer) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self._engine.name,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": self._clean(answer.text)},
                    "finish_reason": "length" if answer.cut else "stop",
                }
            ],
        }

    def _failed(self, status: int, message: str, code: str) -> ApiError:
        self._metrics.upstream_errors.labels(code.removeprefix("upstream_")).inc()
        return ApiError(status, message, code)


def _without_paths(message: str, request: Request) -> str:
    """A message without the places of the images on this machine."""
    for image in request.images:
        message = message.replace(str(image), "an image")
    return message


async def _events(completion: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
    """A completion as the events of a stream."""
    start = {key: completion[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    [choice] = completion["choices"]
    deltas = [(choice["message"], None), ({}, choice["finish_reason"])]
    for delta, reason in deltas:
        yield event(start | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
    yield b"data: [DONE]\n\n"

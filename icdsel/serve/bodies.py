"""Reads the body of a request: bounded in size and time, and only as JSON."""

import asyncio
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from icdsel.console import plain
from icdsel.serve.errors import ApiError, bad_request, of_validation
from icdsel.serve.limits import Limits
from icdsel.store.json_reading import parsed

_MOST_VALUES = 200_000
"""Values in a body, by its punctuation. Images have none; a million small messages would keep the parser busy."""
_Model = TypeVar("_Model", bound=BaseModel)


async def read_object(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object in a request.

    Raises:
        ApiError: There is none, or it is too large, or arrives too slowly.
        ClientDisconnect: The client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also: a form of another website, which needs no permission to send this one
        raise ApiError(415, "the body has to be JSON: send Content-Type: application/json", "unsupported_media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "a compressed body is not accepted: send it as it is", "unsupported_media_type")
    content = await _content(request, limits)
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > _MOST_VALUES:
        raise ApiError(413, f"the body has more than {_MOST_VALUES:,} values", "too_large")
    try:
        value = parsed(content)
    except (ValueError, RecursionError, MemoryError) as error:
        raise bad_request(plain(f"the body is not valid JSON: {error}"), "invalid_json") from None
    if not isinstance(value, dict):
        raise bad_request("the body is not a JSON object", "invalid_json")
    return value


async def read_model(request: Request, limits: Limits, model: type[_Model]) -> _Model:
    """The body as a model.

    Raises:
        ApiError: It is not one.
        ClientDisconnect: The client has gone.
    """
    return validated(await read_object(request, limits), model)


def validated(value: Any, model: type[_Model], param: str = "") -> _Model:
    """A value as a model; `param` is its place in the body.

    Raises:
        ApiError: It is not one.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise of_validation(error, param) from None


async def _content(request: Request, limits: Limits) -> bytes:
    too_large = ApiError(413, f"the body has more than {limits.body_mb:g} MB", "too_large")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > limits.body_bytes:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                content += part
                if len(content) > limits.body_bytes:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {limits.body_seconds:g} seconds", "timeout") from None
    return bytes(content)

"""Errors in the form that clients of OpenAI's protocol expect: an HTTP status, and `error.message` in the body."""

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from icdsel.console import logger, plain
from icdsel.errors import reason_of
from icdsel.serve.events import event

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_LONGEST = 1000  # characters of a message


_PLAINLY = {"extra_forbidden": " is unknown", "missing": " is missing"}
"""What pydantic says less plainly, by its type."""


class ApiError(Exception):
    """A request cannot be served.

    Args:
        status: The HTTP status.
        message: Why; shown to the client.
        code: A word for programs, such as `image_not_allowed`.
        param: The field of the request.
        headers: Headers of the response.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message[:_LONGEST], code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The body of the response."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "code": self.code, "param": self.param}}

    @property
    def event(self) -> bytes:
        """The error as an event in a stream that has begun."""
        return event(self.body)


def bad_request(message: str, code: str = "invalid_request", param: str | None = None) -> ApiError:
    """The request itself is wrong."""
    return ApiError(400, message, code, param)


def of_validation(error: ValidationError | RequestValidationError, within: str = "") -> ApiError:
    """The first thing that is wrong with a body, or with the part `within` it, without repeating what was sent."""
    first = error.errors()[0]
    parts = (within, *(str(part) for part in first["loc"] if part not in ("body", "path", "query")))
    place = ".".join(filter(None, parts))
    told = _PLAINLY.get(first["type"], f": {first['msg'][:1].lower()}{first['msg'][1:]}")
    return bad_request(plain(f"{place or 'the body'}{told}"), param=plain(place) or None)


def response_of(error: ApiError) -> JSONResponse:
    """The response to a request that cannot be served."""
    return JSONResponse(error.body, error.status, error.headers)


async def on_api_error(_: Request, error: Exception) -> JSONResponse:
    """Handles an `ApiError`."""
    assert isinstance(error, ApiError)
    return response_of(error)


async def on_validation_error(_: Request, error: Exception) -> JSONResponse:
    """Handles what FastAPI finds wrong with a path or a query."""
    assert isinstance(error, RequestValidationError)
    return response_of(of_validation(error))


async def on_http_error(_: Request, error: Exception) -> JSONResponse:
    """Handles what Starlette finds wrong: no such path, another method."""
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request")
    return response_of(ApiError(error.status_code, str(error.detail), code, headers=error.headers))


def unexpected(error: BaseException) -> ApiError:
    """An error that should not happen: the log has its reason and place, the client only that it happened."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        place, trace = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
    logger.error("a request failed: %s: %s (%s)", type(error).__name__, plain(reason_of(error)), place)
    return _internal()


async def on_unexpected_error(_: Request, __: Exception) -> JSONResponse:
    """Handles any other error, which is then raised again and logged by the guard."""
    return response_of(_internal())


def _internal() -> ApiError:
    return ApiError(500, "the proxy failed on this request; its log says why", "internal_error")

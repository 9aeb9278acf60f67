"""The application: the routes of the proxy, and their description."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from icdsel import __version__
from icdsel.serve.bodies import read_model, read_object
from icdsel.serve.chat import read_chat
from icdsel.serve.errors import ApiError, on_api_error, on_http_error, on_unexpected_error, on_validation_error
from icdsel.serve.images import media_type
from icdsel.serve.metrics import CONTENT_TYPE
from icdsel.serve.responses import unless_gone
from icdsel.serve.schemas import (
    CHAT_BODY,
    Candidate,
    ChoiceRequest,
    ChoiceResponse,
    ErrorResponse,
    FeedbackRequest,
    FeedbackResponse,
    Health,
    Selectors,
)
from icdsel.serve.security import AccessKey, Guard, local_names, request_id_of
from icdsel.serve.service import Service

PAGE = Path(str(files("icdsel.serve"))) / "page"
"""The folder of the page at `/`."""
_EVERYWHERE = {401: "The key is missing or wrong.", 403: "Not for this host or website."}
_BODIES = {
    400: "The request is wrong.",
    408: "The body arrived too slowly.",
    413: "Above a limit.",
    415: "The body is not JSON.",
    500: "The proxy failed.",
    503: "Too many requests are in progress.",
    504: "Not in time.",
}
_UPSTREAM = {404: "There is no such model.", 502: "The upstream is away, or failed."}
_NO_CANDIDATE = {400: "Not a number.", 404: "There is no such candidate."}
_Row = Annotated[int, InPath(ge=0, le=2**31 - 1)]


def make_app(service: Service, key: AccessKey, host: str) -> ASGIApp:
    """The application.

    Args:
        service: What it does.
        key: The key that clients have to send, or none.
        host: The name or address that it listens at.
    """
    api = FastAPI(
        title="icdsel serve",
        version=__version__,
        summary="An OpenAI-compatible proxy that puts chosen demonstrations in front of questions about images.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=_closing(service),
    )
    api.add_exception_handler(ApiError, on_api_error)
    api.add_exception_handler(RequestValidationError, on_validation_error)
    api.add_exception_handler(HTTPException, on_http_error)
    api.add_exception_handler(Exception, on_unexpected_error)
    _add_chat(api, service)
    _add_choices(api, service)
    _add_state(api, service)
    pages = _pages()
    api.router.routes.extend(Route(path, _file(file), methods=["GET"]) for path, file in pages.items())
    _describe(api, bool(key))
    return Guard(api, key, local_names(host), {"/health", *pages}, service.limits, service.metrics)


def _pages() -> dict[str, Path]:
    """The files of the page by their paths; that of the page itself is `/` too."""
    files_of_page = {f"/{path.relative_to(PAGE).as_posix()}": path for path in PAGE.rglob("*") if path.is_file()}
    return {"/": PAGE / "index.html", **files_of_page}


def _file(path: Path) -> Callable[[Request], Awaitable[Response]]:
    async def send(_: Request) -> Response:
        return FileResponse(path)

    return send


def _add_chat(api: FastAPI, service: Service) -> None:
    limits = service.limits

    @api.post(
        "/v1/chat/completions",
        response_class=Response,
        responses=_errors(_BODIES, _UPSTREAM)
        | {
            200: {
                "description": "A completion of the upstream, or its stream.",
                "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
            },
            "4XX": {"model": ErrorResponse, "description": "An error of the upstream."},
            "5XX": {"model": ErrorResponse, "description": "An error of the upstream."},
        },
        openapi_extra=_body(CHAT_BODY),
    )
    async def chat_completions(request: Request) -> Response:
        """Answers a chat request of OpenAI's protocol.

        One question about one image gets demonstrations in front; everything else goes through unchanged, and
        `X-Icdsel-Skipped` says why. The field `icdsel`, or the headers `X-Icdsel` (on, off), `X-Icdsel-Shots` and
        `X-Icdsel-Selector`, change that.
        """
        ends = asyncio.get_running_loop().time() + limits.seconds
        asked = read_chat(await read_object(request, limits), request.headers, limits)
        return await unless_gone(request, service.chat(asked, request_id_of(request.scope), ends))

    @api.get(
        "/v1/models",
        response_class=Response,
        responses=_errors(_UPSTREAM, {504: "Not in time."})
        | {200: {"description": "The models of the upstream.", "content": {"application/json": {}}}},
    )
    async def models(request: Request) -> Response:
        """Lists the models of the upstream."""
        ends = asyncio.get_running_loop().time() + limits.seconds
        reply = await unless_gone(request, service.upstream.models(ends))
        return Response(reply.body, reply.status, dict(reply.headers), reply.media_type)


def _add_choices(api: FastAPI, service: Service) -> None:
    @api.post(
        "/v1/choose",
        response_model_exclude_unset=False,
        responses=_errors(_BODIES),
        openapi_extra=_body(ChoiceRequest.model_json_schema()),
    )
    async def choose(request: Request) -> ChoiceResponse:
        """Tells what selectors choose for a question about an image, without asking the upstream."""
        asked = await read_model(request, service.limits, ChoiceRequest)
        return await unless_gone(request, service.choose(asked, request_id_of(request.scope)))

    @api.get("/v1/selectors", responses=_errors())
    async def selectors() -> Selectors:
        """Lists who can choose."""
        return Selectors(
            selectors=list(service.chooser.names),
            default_selector=service.default.selector,
            default_shots=service.default.shots,
            auto=service.chooser.can_stop,
            candidates=len(service.chooser.bundle.train),
        )

    @api.get("/v1/candidates/{row}", responses=_errors(_NO_CANDIDATE))
    async def candidate(row: _Row) -> Candidate:
        """Describes a candidate, by its number."""
        return service.candidate(row)

    @api.get(
        "/v1/candidates/{row}/image",
        response_class=Response,
        responses=_errors(_NO_CANDIDATE)
        | {
            200: {"description": "The image.", "content": {"image/*": {}}},
            304: {"description": "It is the one that you have."},
        },
    )
    async def candidate_image(row: _Row, request: Request) -> Response:
        """Gives the image of a candidate, by its number."""
        content = await service.candidate_image(row)
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
            "Cache-Control": "private, max-age=86400",
        }
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(None, 304, headers)
        return Response(content, 200, headers, media_type(content))

    @api.post(
        "/v1/feedback",
        responses=_errors(_BODIES, {404: "No such request, or feedback is off."}),
        openapi_extra=_body(FeedbackRequest.model_json_schema()),
    )
    async def feedback(request: Request) -> FeedbackResponse:
        """Journals how good the answer to a request was, between 0 and 1."""
        if service.feedback is None:
            raise ApiError(404, "this proxy keeps no feedback (--feedback FILE.jsonl)", "feedback_off")
        asked = await read_model(request, service.limits, FeedbackRequest)
        group = await asyncio.to_thread(service.feedback.score, asked.request_id, asked.score)
        service.metrics.feedback.inc()
        return FeedbackResponse(request_id=asked.request_id, question_id=str(group.question_id))


def _add_state(api: FastAPI, service: Service) -> None:
    @api.get("/health", responses=_errors())
    async def health() -> Health:
        """Tells that the proxy is up. It needs no key."""
        return Health(
            version=__version__,
            candidates=len(service.chooser.bundle.train),
            feedback=service.feedback is not None,
        )

    @api.get(
        "/metrics",
        response_class=Response,
        responses=_errors() | {200: {"description": "Text for Prometheus.", "content": {"text/plain": {}}}},
    )
    async def metrics() -> Response:
        """Gives the counters to Prometheus."""
        return Response(service.metrics.text(), 200, {"Content-Type": CONTENT_TYPE})


def _closing(service: Service) -> Any:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await service.close()

    return lifespan


def _errors(*statuses: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its description."""
    merged = _EVERYWHERE | {status: text for more in statuses for status, text in more.items()}
    return {status: {"model": ErrorResponse, "description": merged[status]} for status in sorted(merged)}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    """The description of a body that the route reads itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _describe(api: FastAPI, with_key: bool) -> None:
    """Completes the description: the key, and no response that FastAPI assumes but never sends."""
    described = api.openapi()
    for path, methods in described["paths"].items():
        for method in methods.values():
            method["responses"].pop("422", None)
            if with_key and path != "/health":
                method["security"] = [{"key": []}]
    for name in ("HTTPValidationError", "ValidationError"):
        described["components"]["schemas"].pop(name, None)
    if with_key:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}

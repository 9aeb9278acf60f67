"""The description at /openapi.json against the proxy: generated requests get what it promises, and never a failure."""

from collections.abc import Iterator

import httpx
import pytest
from echo_server import echo_server
from fake_chooser import png
from hypothesis import HealthCheck, given, settings
from serving import Running, chat_body, data_url, proxy

schemathesis = pytest.importorskip("schemathesis")
openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("description")
    with echo_server() as upstream, proxy(folder, upstream.url, feedback=folder / "feedback.jsonl") as started:
        yield started


@pytest.fixture(scope="module")
def description(running: Running) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{running.url}/openapi.json")


NOT_DESCRIBED = [openapi_checks.positive_data_acceptance]
"""A schema cannot say what an image is, nor which contents are sent on."""
ROUTES = (
    ("/v1/chat/completions", "post"),
    ("/v1/choose", "post"),
    ("/v1/feedback", "post"),
    ("/v1/models", "get"),
    ("/v1/selectors", "get"),
    ("/v1/candidates/{row}", "get"),
    ("/v1/candidates/{row}/image", "get"),
    ("/health", "get"),
    ("/metrics", "get"),
)


@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_generated_requests_get_what_the_description_promises(
    description: schemathesis.BaseSchema, path: str, method: str
) -> None:
    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=description[path][method].as_strategy())
    def every(case: schemathesis.Case) -> None:
        case.call_and_validate(excluded_checks=NOT_DESCRIBED)

    every()


def test_every_route_is_described(running: Running) -> None:
    described = httpx.get(f"{running.url}/openapi.json").json()
    routes = {(path, method) for path, methods in described["paths"].items() for method in methods}
    assert routes == set(ROUTES)
    for methods in described["paths"].values():
        for method in methods.values():
            assert method["description"] and "200" in method["responses"] and "422" not in method["responses"]


def test_sensible_requests_fit_the_description(description: schemathesis.BaseSchema) -> None:
    for path, body in (
        ("/v1/chat/completions", chat_body(icdsel={"return": True})),
        ("/v1/choose", {"image": data_url(png()), "question": "Which?", "messages": True}),
    ):
        case = description[path]["POST"].Case(body=body, media_type="application/json")
        assert case.call_and_validate().status_code == 200

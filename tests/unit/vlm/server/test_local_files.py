"""Servers that are sent the paths of images, and may not read them."""

from typing import Any

import pytest
from fake_server import Raw, fake_server, is_probe

from icdsel.errors import VlmError
from icdsel.vlm.engine import Request

NOT_AT_ALL = Raw.error(500, "Cannot load local files without `--allowed-local-media-path`.")
NOT_THIS_ONE = Raw.error(400, "The file path /a must be a subpath of `--allowed-local-media-path /b`.")


@pytest.mark.parametrize("refusal", [NOT_AT_ALL, NOT_THIS_ONE])
def test_a_server_that_may_not_read_files_is_told_before_anything_else_is_asked(
    refusal: Raw, requests: list[Request], opened: Any
):
    with (
        fake_server() as willing,
        fake_server(fault=lambda number, body: refusal if "file://" in str(body) else None) as server,
    ):
        engine = opened(willing, server, file_urls=True)
        with pytest.raises(VlmError, match=r"does not read file://.*: start vLLM with --allowed-local-media"):
            engine.answer(requests)
        assert len(willing.prompts) == len(server.prompts) == 1
        assert not opened(willing, server).answer(requests)[0].error  # which sends the images themselves


def test_a_server_that_may_is_asked_once(requests: list[Request], opened: Any):
    with fake_server() as server:
        engine = opened(server, file_urls=True)
        for _ in range(2):
            assert not any(answer.error for answer in engine.answer(requests))
    [check, *prompts] = server.prompts
    assert check["max_tokens"] == 1 and len(prompts) == 2 * len(requests)
    assert all("file://" in str(body) and "base64" not in str(body) for body in server.prompts)


def test_a_file_that_may_not_be_read_is_not_asked_for_again(requests: list[Request], opened: Any):
    with fake_server() as server:
        engine = opened(server, file_urls=True)
        engine.answer(requests[:1])
        before = len(server.prompts)
        server.fault = lambda number, body: NOT_AT_ALL if "file://" in str(body) else None
        [answer] = engine.answer(requests[1:2])
        assert answer.error is not None and "or leave out --file-urls" in answer.error
        assert len(server.prompts) == before + 1


def test_a_failure_of_the_check_that_says_nothing_of_files_is_left_to_the_prompts(requests: list[Request], opened: Any):
    def fails(number: int, body: dict[str, Any]) -> Any:
        return Raw.error(500, "boom") if body["max_tokens"] == 1 and not is_probe(body) else None

    with fake_server(fault=fails) as server:
        assert not any(answer.error for answer in opened(server, file_urls=True).answer(requests))
        assert len(server.prompts) == 1 + len(requests)

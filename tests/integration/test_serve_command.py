"""`icdsel serve` as a process, with a bundle: its choices and answers are those of `icdsel infer`."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from bundles import write_small_bundle
from command_line import icdsel
from echo_server import EchoServer, echo_server
from serving import chat_body, data_url

from icdsel.settings.kinds import SERVE_KEY_VARIABLE
from icdsel.stages.session import Session


@pytest.fixture(scope="module")
def upstream() -> Iterator[EchoServer]:
    with echo_server() as server:
        yield server


@dataclass
class Small:
    bundle: Path
    session: Session
    work: Path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    work = tmp_path_factory.mktemp("work")
    return Small(work / "bundle", write_small_bundle(work / "bundle", work), work)


def start(*flags: object, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **variables}
    command = [sys.executable, "-m", "icdsel", "serve", *map(str, flags)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextmanager
def serving(*flags: object, **variables: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    process = start("--port", 0, *flags, **variables)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"Serving at (\S+)/v1", line):
                break
        else:
            raise AssertionError(f"it ended with {process.wait(10)}")
        with httpx.Client(base_url=found[1], timeout=30) as client:
            yield client, process
    finally:
        process.kill()
        process.communicate()


def refused(*flags: object) -> str:
    return " ".join(icdsel("serve", *flags, code=2).split())


def predictions(work: Path) -> list[dict[str, Any]]:
    """What `icdsel infer` chooses and answers for held-out queries, 2 shots."""
    checkpoint = work / "results/world/model_cpk/small/rce_epoch1.pt"
    places = ("--data-dir", work / "data", "--results-dir", work / "results", "--pool-size", "all")
    icdsel("infer", *places, "--checkpoint", checkpoint, "--selector", "policy", "--shots", 2, "--n", 12)
    [file] = work.glob("results/world/infer/**/policy*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_choices_and_answers_are_those_of_infer(small: Small) -> None:
    expected = predictions(small.work)
    held_out = small.session.split("validation")
    with serving("--run", small.bundle, "--model", "tiny-vlm", "--shots", 2) as (client, _process):

        def ask(row: dict[str, Any]) -> tuple[list[str], str]:
            query = held_out.by_id(row["question_id"])
            body = chat_body(query.question, query.image.read_bytes()) | {"model": "tiny-vlm"}
            response = client.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            return response.headers["X-Icdsel-Icds"].split(","), response.json()["choices"][0]["message"]["content"]

        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(ask, expected))
        assert [ids for ids, _ in found] == [[str(i) for i in row["icds"]] for row in expected]
        assert [answer for _, answer in found] == [row["prediction"] for row in expected]
        assert len({answer for _, answer in found}) > 1
        text = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]})
        assert text.status_code == 400 and "one question about one image" in text.json()["error"]["message"]


def test_keys_files_and_a_signal_that_lets_requests_in_progress_end(small: Small, upstream: EchoServer):
    image, key = small.session.split("validation")[0].image, "clients-key-0123456789"
    flags = ("--run", small.bundle, "--vlm-url", upstream.url, "--allow-image-dir", image.parent, "--shots", 1)
    with serving(*flags, **{SERVE_KEY_VARIABLE: key}) as (client, process), ThreadPoolExecutor(1) as threads:
        body = chat_body("Which?", image.as_uri())
        assert client.post("/v1/chat/completions", json=body).status_code == 401
        client.headers["Authorization"] = f"Bearer {key}"
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        assert upstream.asked[-1]["messages"][-1]["content"][-2]["image_url"]["url"] == data_url(image.read_bytes())
        assert key not in json.dumps(upstream.headers[-1])

        streamed = chat_body("Which?", image.read_bytes(), stream=True, user="slow-stream")
        asked = threads.submit(client.post, "/v1/chat/completions", json=streamed)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert "[DONE]" in asked.result(20).text
        assert process.wait(20) == 143
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{client.base_url}/health")


def test_requests_that_do_not_end_are_given_up(small: Small, upstream: EchoServer):
    with (
        serving("--run", small.bundle, "--vlm-url", upstream.url, "--grace", 1) as (client, process),
        ThreadPoolExecutor(1) as threads,
    ):
        asked = threads.submit(client.post, "/v1/chat/completions", json=chat_body(user="hang"))
        time.sleep(0.5)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130 and time.monotonic() - started < 8
        with pytest.raises(httpx.HTTPError):
            asked.result(20).raise_for_status()


def test_mistakes_are_one_message_that_says_what_to_do(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = ("--run", small.bundle, "--port", 0)
    assert f"export {SERVE_KEY_VARIABLE}" in refused(*run, "--host", "0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "is in use" in refused("--run", small.bundle, "--port", taken.getsockname()[1])
    assert "none" in refused("--run", tmp_path / "none", "--port", 0)
    assert "is not an address" in refused(*run, "--vlm-url", "h")
    assert "cannot choose here" in refused(*run, "--selector", "mine")
    assert "neither a number nor auto" in refused(*run, "--shots", "many")
    assert "above the limit" in refused(*run, "--shots", 17)
    assert "not a folder" in refused(*run, "--allow-image-dir", tmp_path / "none")
    assert "must end in .jsonl" in refused(*run, "--feedback", tmp_path / "f.json", "--vlm-url", "http://h/v1")
    monkeypatch.setenv(SERVE_KEY_VARIABLE, "secret words")
    message = refused(*run)
    assert "is not a key" in message and "secret words" not in message

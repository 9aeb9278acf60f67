"""The check of servers at start-up: what it finds, and what it tells the user to change."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_server as fake_server_module
import pytest
from fake_server import KEY, Raw, Shown, fake_server, is_probe, shown_in

from icdsel.errors import VlmError
from icdsel.settings import load_settings
from icdsel.settings.kinds import API_KEY_VARIABLE
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.server import probing
from icdsel.vlm.server.failures import Unreachable
from icdsel.vlm.server.key import ApiKey
from icdsel.vlm.server.naming import with_served_model
from icdsel.vlm.server.startup import open_client, unusable


def test_a_server_is_known_again_by_its_answers(opened: Any):
    with fake_server() as a, fake_server() as same, fake_server(salt="other weights") as other:
        prints = [opened(server).fingerprint for server in (a, same, other)]
        texts = [opened(server).fingerprint for server in ()]
    assert prints[0] == prints[1] != prints[2] and not texts


def test_without_log_probs_it_is_known_by_its_texts(opened: Any, capfd: pytest.CaptureFixture[str]):
    with fake_server(log_probs=False) as a, fake_server(log_probs=False, answer_of=lambda shown: "yes") as b:
        assert opened(a).fingerprint != opened(b).fingerprint
    said = capfd.readouterr().err
    assert said.count("whether it sees images cannot be told") == 1 and b.url in said


def test_log_probs_that_are_refused_are_not_needed(opened: Any):
    def without(number: int, body: dict[str, Any]) -> Any:
        return Raw.error(400, "logprobs are not supported") if body.get("logprobs") else None

    with fake_server(fault=without) as server, fake_server(log_probs=False) as same:
        assert opened(server).fingerprint == opened(same).fingerprint


def test_a_dialect_and_its_version_belong_to_the_fingerprint(opened: Any):
    with fake_server(owner="vllm") as a, fake_server() as b:
        known, other = opened(a).served, opened(b).served
    assert (known.dialect.name, known.version) == ("vLLM", "1.2.3") and (other.version, other.probed) == (
        "",
        known.probed,
    )
    assert known.fingerprint != other.fingerprint


# ---- what cannot be reached ----


@pytest.fixture
def nobody() -> Iterator[str]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


def test_a_refused_connection(nobody: str, opened: Any):
    with pytest.raises(VlmError, match=rf"{nobody} cannot be used: no connection.*Start the server.*--vlm-url"):
        opened(nobody)


def test_a_host_without_an_address(opened: Any):
    with pytest.raises(VlmError, match=r"cannot be used: no connection.*correct host and port"):
        opened("http://host.invalid:8000/v1")


def test_a_server_that_says_nothing(opened: Any):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        accepted: list[Any] = []
        threading.Thread(target=lambda: accepted.append(silent.accept()), daemon=True).start()
        with pytest.raises(VlmError, match=r"no answer after 0.2 seconds"):
            opened(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", request_timeout=0.2)


def test_proxies_are_asked_for_other_machines_alone(opened: Any, monkeypatch: pytest.MonkeyPatch):
    with fake_server() as proxy, fake_server() as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        opened(server)
        assert not proxy.headers
        with pytest.raises(VlmError, match="HTTP 404"):
            opened("http://host.invalid:8000/v1")
        assert proxy.headers[0]["Host"] == "host.invalid:8000"
        monkeypatch.setenv("NO_PROXY", "host.invalid")
        with pytest.raises(VlmError, match="no connection"):
            opened("http://host.invalid:8000/v1")


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "all_proxy"])
def test_a_proxy_is_named_where_it_may_be_wrong(name: str, opened: Any, monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv(name, f"http://user:pass-of-proxy@127.0.0.1:{port}")
    through = rf"no connection through the proxy that {name} names .* Name the host in NO_PROXY .* or correct {name}"
    with pytest.raises(VlmError, match=through) as refused:
        opened("http://host.invalid:8000/v1")
    assert "start the server" not in str(refused.value) and "pass-of-proxy" not in str(refused.value)
    with fake_server() as proxy:
        monkeypatch.setenv(name, proxy.url)
        with pytest.raises(VlmError, match=rf"cannot be used through the proxy that {name} names: HTTP 404"):
            opened("http://host.invalid:8000/v1")
    for direct in ("other, host.invalid", "*"):
        monkeypatch.setenv("NO_PROXY", direct)
        with pytest.raises(VlmError, match=r"no connection \(") as refused:
            opened("http://host.invalid:8000/v1")
        assert "proxy" not in str(refused.value)


def test_a_proxy_that_cannot_be_used(opened: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALL_PROXY", "gopher://user:pass-of-proxy@host")
    with pytest.raises(VlmError, match="a proxy of the environment cannot be used") as refused:
        opened("http://host.invalid:8000/v1")
    assert "pass-of-proxy" not in str(refused.value)


def test_variables_of_proxies_that_cannot_be_read(opened: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "[::")
    with pytest.raises(VlmError, match=r"a proxy of the environment cannot be used .*NO_PROXY"):
        opened("http://host.invalid:8000/v1")


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_used(
    content: str | None, opened: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    if content:
        (tmp_path / "own.pem").write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
    with pytest.raises(VlmError, match=r"the certificates of the environment cannot be used .*SSL_CERT_FILE"):
        opened("https://host.invalid:8000/v1")


def test_a_host_that_cannot_be_one(opened: Any):
    with pytest.raises(VlmError, match="http://xn--a:8000/v1 cannot be used: it is not an address"):
        opened("http://xn--a:8000/v1")


def test_a_server_that_does_not_encrypt(opened: Any):
    with fake_server() as server, pytest.raises(VlmError, match=r"no connection.*name it with http:// in --vlm-url"):
        opened(f"https{server.url.removeprefix('http')}")


@pytest.mark.parametrize("reason", ["[SSL: CERTIFICATE_VERIFY_FAILED] self-signed", "[Errno 111] refused"])
def test_only_a_certificate_is_remedied_with_certificates(reason: str):
    settings = VlmSettings(url=("https://a/v1",))
    said = str(unusable(open_client(settings, "https://a/v1", ApiKey()), Unreachable(reason)))
    assert ("SSL_CERT_FILE" in said) == ("CERTIFICATE" in reason) == ("correct host" not in said)


def test_an_address_without_v1(opened: Any):
    with (
        fake_server() as server,
        pytest.raises(VlmError, match=r"HTTP 404: Not Found. Name the address that ends in /v1"),
    ):
        opened(server.url.removesuffix("/v1"))


@pytest.mark.parametrize("key", ["", "sk-wrong-key-0123456789"])
def test_a_key_that_is_missing_or_wrong(key: str, opened: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(API_KEY_VARIABLE, key)
    with fake_server(key=KEY) as server, pytest.raises(VlmError) as refused:
        opened(server)
    said = str(refused.value)
    assert "HTTP 401: Incorrect API key provided" in said and f"xport the server's key as {API_KEY_VARIABLE}" in said
    assert not key or (key not in said and "[key]" in said)


def test_a_model_that_is_not_served(opened: Any):
    with fake_server("a", "b") as server, pytest.raises(VlmError, match=r"does not serve 'fake-model', but 'a', 'b'"):
        opened(server)


def test_a_short_name_is_the_model_itself(opened: Any):
    with fake_server("qwen2.5-vl-3b") as server:
        assert opened(server, model="qwen2.5-vl-3b").served.model == "qwen2.5-vl-3b"


def test_a_server_of_something_else(opened: Any):
    with fake_server() as server:
        server.models = ("fake-model",)
        server._http.RequestHandlerClass = type(  # every page is a greeting
            "Greeter", (server._http.RequestHandlerClass,), {"do_GET": lambda self: self._send(Raw.value({"hello": 1}))}
        )
        with pytest.raises(VlmError, match="not a list of models, so it does not speak OpenAI's protocol"):
            opened(server)


@pytest.mark.parametrize("name", [None, 5, ["fake-model"]])
def test_a_list_of_models_without_names(name: Any, opened: Any):
    with fake_server() as server, pytest.raises(VlmError, match="not a list of models"):
        server.models = (name,)
        opened(server, model=str(name))


def test_replies_that_do_not_name_the_model(opened: Any):
    def unnamed(reply: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in reply.items() if name != "model"}

    with (
        fake_server(fault=lambda number, body: unnamed) as server,
        pytest.raises(VlmError, match="cannot be used: its replies do not name the model"),
    ):
        opened(server)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("At most 1 image(s) may be provided in one prompt.", "--limit-mm-per-prompt"),
        ("fake-model is not a multimodal model", "serve a vision-language model"),
        ("This model's maximum context length is 100 tokens", "--max-model-len"),
    ],
)
def test_a_server_that_cannot_read_a_prompt_of_three_images(said: str, remedy: str, opened: Any):
    with fake_server(fault=lambda number, body: Raw.error(400, said)) as server, pytest.raises(VlmError) as refused:
        opened(server)
    assert said in str(refused.value) and remedy in str(refused.value)


# ---- what answers, but wrongly ----


@pytest.mark.parametrize(
    ("seen", "kinds"),
    [
        (lambda pixels: ["none"] * 3, "first image and last image and order of images"),
        (lambda pixels: [pixels[0]] * 3, "last image"),
        (lambda pixels: [pixels[-1]] * 3, "first image and order of images"),
        (sorted, "order of images"),
    ],
)
def test_a_server_that_drops_or_confuses_images(seen: Any, kinds: str, opened: Any, monkeypatch: pytest.MonkeyPatch):
    def wrongly(messages: list[dict[str, Any]]) -> list[Shown]:
        shown = shown_in(messages)
        pixels = seen([each.pixels for each in shown])
        return [replace(each, pixels=own) for each, own in zip(shown, pixels, strict=True)]

    monkeypatch.setattr(fake_server_module, "shown_in", wrongly)
    with fake_server() as server, pytest.raises(VlmError, match=rf"that differ in their {kinds} with the same prob"):
        opened(server)


def test_a_cache_that_confuses_images_is_found(opened: Any):
    answered: dict[str, Any] = {}

    def cached(number: int, body: dict[str, Any]) -> Any:
        if "cache_salt" in body:
            return None
        texts = str([part for part in body["messages"][-1]["content"] if part["type"] == "text"])
        return lambda reply: answered.setdefault(texts, reply)

    with (
        fake_server(owner="vllm", fault=cached) as server,
        pytest.raises(
            VlmError, match=r"as if it had other images: its caches confuse prompts .*--no-enable-prefix-cach"
        ),
    ):
        opened(server)


def test_a_server_that_answers_at_random_is_found(opened: Any):
    count = iter(range(1000))
    with (
        fake_server(log_probs=False, answer_of=lambda shown: f"{next(count)}") as server,
        pytest.raises(VlmError, match=r"answers the same prompt differently .*greedily"),
    ):
        opened(server)


def test_images_that_are_confused_only_while_several_are_read_are_found(opened: Any):
    together = threading.Barrier(4, timeout=10)
    replies: list[dict[str, Any]] = []

    def mixed(number: int, body: dict[str, Any]) -> Any:
        """The prompts that are read together get the answer of one of them."""
        if number < 8:
            return None
        replies.append(server.reply(body))
        together.wait()
        return lambda reply: replies[0]

    with fake_server(fault=mixed) as server, pytest.raises(VlmError, match="as if it had other images"):
        opened(server)


def test_a_busy_server_is_asked_again_at_the_start(opened: Any):
    def busy(number: int, body: dict[str, Any]) -> Any:
        return Raw.error(429, "slow down", Retry_After="0.01") if number % 2 else None

    with fake_server(fault=busy) as server:
        assert opened(server).served.probed


def test_a_server_that_stays_busy_cannot_be_used(opened: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probing, "PATIENCE", 0.1)
    with (
        fake_server(fault=lambda number, body: Raw.error(429, "slow down", Retry_After="0.06")) as server,
        pytest.raises(VlmError, match=r"cannot be used: HTTP 429: slow down. It is busy: try again later"),
    ):
        opened(server)


def test_a_little_noise_in_log_probs_changes_nothing(opened: Any):
    def noisy(number: int, body: dict[str, Any]) -> Any:
        def change(reply: dict[str, Any]) -> dict[str, Any]:
            for top in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
                top["logprob"] -= 0.01 * (number % 3)
            return reply

        return change

    with fake_server() as exact, fake_server(fault=noisy) as server:
        assert opened(exact, server).served == opened(exact).served


# ---- which model ----


def test_the_only_model_is_taken_if_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with fake_server("mine") as server, fake_server("a", "b") as several:
        taken = with_served_model(load_settings({"vlm": {"url": server.url}}))
        assert taken.vlm.model == "mine" and "model" in taken.vlm.model_fields_set
        named = load_settings({"vlm": {"url": several.url, "model": "c"}})
        assert with_served_model(named) is named
        with pytest.raises(VlmError, match=r"serves 'a', 'b': name one with --model"):
            with_served_model(load_settings({"vlm": {"url": several.url}}))
        for name in ("a\nb", "x" * 300):
            server.models = (name,)
            with pytest.raises(VlmError, match=r"name one with --model"):
                with_served_model(load_settings({"vlm": {"url": server.url}}))
    assert not server.asked


def test_probes_depend_on_no_data(opened: Any):
    with fake_server() as server:
        opened(server, system_prompt="Be brief.", icd_template="{question}: {answer}", layout="turns")
        opened(server)
    first, second = ([str(body["messages"]) for body in asked] for asked in (server.asked[:12], server.asked[12:]))
    assert sorted(first) == sorted(second) and first[:8] == second[:8] == first[:4] * 2
    assert all(map(is_probe, server.asked)) and len(set(first)) == 4

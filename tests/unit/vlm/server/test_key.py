"""A key goes to the servers that the user names, and nowhere else."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from fake_server import KEY, Raw, fake_server
from test_server_engine import after_probes, are_right, changed

from icdsel.errors import SettingsError, VlmError
from icdsel.settings import load_settings
from icdsel.settings.hints import stray_variables
from icdsel.settings.kinds import API_KEY_VARIABLE
from icdsel.vlm.engine import Request
from icdsel.vlm.server.client import is_readable
from icdsel.vlm.server.key import ApiKey
from icdsel.vlm.server.naming import with_served_model


@pytest.fixture(autouse=True)
def exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, KEY)


def test_every_request_carries_it_and_no_message_does(
    requests: list[Request], opened: Any, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    echo = after_probes(lambda number, body: Raw.error(400, f"your key is {KEY}") if number == 0 else None)
    with fake_server(key=KEY, fault=echo) as server:
        engine = opened(server)
        answers = engine.answer(requests)
        assert {headers.get("Authorization") for headers in server.headers} == {f"Bearer {KEY}"}
    assert [answer.error for answer in answers if answer.error] == ["HTTP 400: your key is [key]"]
    assert KEY not in caplog.text and KEY not in repr(vars(engine)) + repr(engine.served)


def test_a_redirect_to_another_place_gets_nothing(requests: list[Request], opened: Any):
    with fake_server(key=KEY) as other:
        away = Raw(307, b"", {"Location": f"{other.url}/chat/completions"})
        with fake_server(key=KEY, fault=after_probes(lambda number, body: away)) as server:
            [answer] = opened(server).answer(requests[:1])
        assert "which is not followed" in str(answer.error) and not other.headers


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://gpu1:8000/v1", True),
        ("HTTP://gpu1:8000/v1", True),
        ("https://gpu1/v1", False),
        ("http://127.0.0.1:1/v1", False),
        ("http://[::1]:1/v1", False),
        ("http://localhost:1/v1", False),
    ],
)
def test_an_unencrypted_way_is_known(url: str, warned: bool):
    assert is_readable(url) == warned


def test_a_key_on_an_unencrypted_way_is_warned_of(opened: Any, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(VlmError):
        opened("http://host.invalid:1/v1")
    said = " ".join(capsys.readouterr().err.split())
    assert "the key goes to http://host.invalid:1/v1 unencrypted" in said and KEY not in said


def test_an_answer_that_gives_it_away_is_not_kept(requests: list[Request], opened: Any):
    with fake_server(key=KEY, fault=after_probes(lambda number, body: changed(content=f"It is {KEY}"))) as server:
        [answer] = opened(server).answer(requests[:1])
    assert answer.error == "its answer contains the key, and is not kept"


def test_a_name_that_gives_it_away_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with fake_server(KEY, key=KEY) as server, pytest.raises(VlmError, match="contains the key") as refused:
        with_served_model(load_settings({"vlm": {"url": server.url}}))
    assert KEY not in str(refused.value)


def test_tokens_that_give_it_away_are_not_kept(opened: Any):
    def told(reply: dict[str, Any]) -> dict[str, Any]:
        for top in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            top["token"] += KEY
        return reply

    with (
        fake_server(key=KEY, fault=lambda number, body: told) as server,
        pytest.raises(VlmError, match="contains the key") as refused,
    ):
        opened(server)
    assert KEY not in str(refused.value)


def test_an_excerpt_that_ends_within_it_shows_no_part_of_it(requests: list[Request], opened: Any):
    page = Raw(200, b"<" * 62 + KEY.encode() + b">")
    with fake_server(key=KEY, fault=after_probes(lambda number, body: page)) as server:
        [answer] = opened(server, retries=0).answer(requests[:1])
    assert "not JSON" in str(answer.error) and KEY[:6] not in str(answer.error)


@pytest.mark.parametrize("key", ['quote"0123456789', "back\\slash0123456789"])
def test_it_is_found_in_json(key: str):
    assert ApiKey(key).is_in_json(json.dumps([f"It is {key}."])) and not ApiKey(key).is_in_json('["It is."]')


def test_a_placeholder_is_no_secret(requests: list[Request], opened: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "unknown")  # some answers are just that
    with fake_server(key="unknown") as server:
        assert are_right(opened(server).answer(requests), requests)


def test_objects_hide_it():
    key = ApiKey(KEY)
    assert KEY not in f"{key} {key!r} {vars(ApiKey)}" and key.headers["Authorization"].endswith(KEY)
    with pytest.raises(TypeError):
        pickle.dumps(key)


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel", "nul\0"])
def test_what_no_header_can_hold_is_refused_unseen(key: str):
    with pytest.raises(VlmError) as refused:
        ApiKey(key)
    assert key not in str(refused.value)
    assert ApiKey(f" {KEY}\n").headers == ApiKey(KEY).headers and not ApiKey().headers


@pytest.mark.parametrize("url", [f"http://user:{KEY}@host/v1", f"http://host/v1?key={KEY}", f"http://host/v1#{KEY}"])
def test_an_address_has_no_place_for_it(url: str):
    with pytest.raises(SettingsError) as refused:
        load_settings({"vlm": {"url": url}})
    assert KEY not in str(refused.value) and API_KEY_VARIABLE in str(refused.value)


@pytest.mark.parametrize("line", [f'api_key = "{KEY}"', f'key = "{KEY}"', f'url_key = "{KEY}"'])
def test_a_file_has_no_place_for_it(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("icdsel.toml").write_text(f"[vlm]\n{line}\n")
    with pytest.raises(SettingsError) as refused:
        load_settings({})
    assert KEY not in str(refused.value) and f"variable {API_KEY_VARIABLE} alone" in str(refused.value)


def test_its_variable_is_no_stray_one():
    assert not [warning for warning in stray_variables() if API_KEY_VARIABLE in warning]
    assert API_KEY_VARIABLE in stray_variables({"ICDSEL_VLM_APIKEY": KEY})[0]
    assert KEY not in stray_variables({"ICDSEL_VLM_APIKEY": KEY})[0]


@pytest.mark.parametrize(
    "url",
    ["host:8000/v1", "ftp://host/v1", "http://", "http:///v1", "http://host:port/v1", "http://ho st/v1", "http://["],
)
def test_other_addresses_are_refused(url: str):
    with pytest.raises(SettingsError, match="--vlm-url"):
        load_settings({"vlm": {"url": url}})


@pytest.mark.parametrize(
    ("url", "said"),
    [(",", "it names no server"), ("http://a/v1,http://b/v1, http://a/v1/", "http://a/v1 is named twice")],
)
def test_servers_are_named_and_named_once(url: str, said: str):
    with pytest.raises(SettingsError, match=f"--vlm-url.*{said}"):
        load_settings({"vlm": {"url": url}})


def test_addresses_are_separated_by_commas_and_lose_their_last_slash():
    assert load_settings({"vlm": {"url": "http://a:1/v1/, https://b/v1"}}).vlm.url == ("http://a:1/v1", "https://b/v1")


@pytest.mark.parametrize("key", ["token", "EMPTY", "none"])
def test_a_placeholder_is_not_hidden(key: str):
    text = f"completion_{key}s"
    assert ApiKey(key).hidden_in(text) == text
    stream = ApiKey(key).stream
    assert stream.next(text.encode()) + stream.last() == text.encode()


@pytest.mark.parametrize("size", [1, 2, 7, len(KEY) - 1, len(KEY), 1000])
def test_it_is_hidden_in_a_stream_cut_anywhere(size: int):
    text, stream = f"data: s sk {KEY}{KEY} sk-ve\n\ndata: {KEY[:5]}{KEY} end\n\n".encode(), ApiKey(KEY).stream
    shown = b"".join(stream.next(text[at : at + size]) for at in range(0, len(text), size)) + stream.last()
    assert shown == text.replace(KEY.encode(), b"[key]")


def test_a_stream_keeps_no_whole_line_back_and_shows_no_beginning_of_the_key():
    stream = ApiKey(KEY).stream
    assert stream.next(b"data: a\n\n") == b"data: a\n\n"
    assert stream.next(KEY[:-1].encode()) + stream.last() == b"[key]"

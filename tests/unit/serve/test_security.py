import pickle

import pytest

from icdsel.errors import SettingsError
from icdsel.serve.security import AccessKey, _hostname, local_names
from icdsel.settings.kinds import SERVE_KEY_VARIABLE

KEY = "a-key-of-enough-letters-0123"


def test_the_key_alone_opens():
    key = AccessKey(KEY)
    assert key.opens(f"Bearer {KEY}") and key.opens(f"bearer {KEY} ")
    for wrong in (
        "",
        KEY,
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        "Bearer ",
        "Bearer é",
        "Bearer \udc80",
    ):
        assert not key.opens(wrong)


def test_a_key_is_never_shown_or_written_down():
    key = AccessKey(KEY)
    assert KEY not in repr(key) + str(key) + f"{key}"
    with pytest.raises(TypeError):
        pickle.dumps(key)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.5"])
def test_loopback_needs_no_key(host):
    assert not AccessKey.exported(host, {})
    assert AccessKey.exported(host, {SERVE_KEY_VARIABLE: KEY})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_another_host_without_a_key_is_an_error_that_says_what_to_do(host):
    with pytest.raises(SettingsError, match=f"export {SERVE_KEY_VARIABLE}"):
        AccessKey.exported(host, {})
    assert AccessKey.exported(host, {SERVE_KEY_VARIABLE: KEY})


@pytest.mark.parametrize("key", ["short", "a key of some words and spaces", "ü" * 20])
def test_a_bad_key_is_refused_without_showing_it(key):
    with pytest.raises(SettingsError, match="is not a key") as caught:
        AccessKey.exported("127.0.0.1", {SERVE_KEY_VARIABLE: key})
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("127.0.0.1:8100", "127.0.0.1"),
        ("LOCALHOST", "localhost"),
        ("[::1]:8100", "::1"),
        ("evil.example", "evil.example"),
        ("127.0.0.1.evil.example:80", "127.0.0.1.evil.example"),
        ("127.0.0.1@evil.example", "evil.example"),
        ("", ""),
        ("[", ""),
    ],
)
def test_the_name_in_a_host_header(header, name):
    assert _hostname(header) == name


def test_names_of_this_machine():
    assert {"localhost", "127.0.0.1", "::1"} <= local_names("127.0.0.1") and "127.0.0.9" in local_names("127.0.0.9")

import pytest

from icdsel.errors import SettingsError
from icdsel.serve.limits import named_hosts


def test_hosts_are_names_or_addresses():
    text = " Example.org , 10.0.0.1,[::1],2001:DB8::1,images.example.org.,"
    assert named_hosts(text) == {"example.org", "10.0.0.1", "::1", "2001:db8::1", "images.example.org"}
    assert named_hosts("") == frozenset()


@pytest.mark.parametrize("name", ["host:8080", "http://host", "host/path", "*.example.org", "[::1]:80", "me@host"])
def test_what_would_never_match_is_an_error_that_says_so(name: str):
    with pytest.raises(SettingsError, match="without a scheme, port") as caught:
        named_hosts(f"example.org,{name}")
    assert repr(name) in str(caught.value)

"""Which proxy of the environment stands between this machine and a server, for messages."""

import os
from urllib.parse import urlsplit
from urllib.request import proxy_bypass


def proxy_variable(address: str) -> str | None:
    """The variable that names the proxy for an address; None if it is asked directly.

    Of two spellings, the one in lower case counts, and a proxy for the scheme before one for all.
    """
    parts = urlsplit(address)
    if proxy_bypass(parts.netloc):
        return None
    names = [f"{scheme}_proxy" for scheme in (parts.scheme, "all")]
    return next((each for name in names for each in (name, name.upper()) if os.environ.get(each)), None)

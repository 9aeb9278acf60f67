"""One server: JSON out, JSON in. The only place that speaks HTTP.

Redirects are never followed: neither the key nor a prompt goes to an address that the user has not named.
"""

import asyncio
import json
import math
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from time import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from icdsel import __version__
from icdsel.console import plain
from icdsel.errors import VlmError, reason_of
from icdsel.vlm.server.failures import Busy, Rejected, Temporary, Unreachable, Unusable
from icdsel.vlm.server.key import ApiKey
from icdsel.vlm.server.proxies import proxy_variable
from icdsel.vlm.server.remedies import is_about_files

CONNECT_TIMEOUT = 10.0
LARGEST_REPLY = 16 * 2**20
"""Bytes of a reply; an answer of a few tokens with log-probs has some kilobytes."""
_IDLE = 3.0  # seconds that an unused connection is kept; servers close theirs after 5
_LONGEST_WAIT = 300.0  # seconds that a server can make its clients wait
_GONE = (502, 503, 504)
_LONGEST_EXCERPT = 80  # characters of a reply that is not JSON, in a message


def http_client(address: str, key: ApiKey, timeout: float, connections: int) -> httpx.AsyncClient:
    """A client for one server, which follows no redirect, and uses no proxy to this machine.

    Args:
        address: Such as `http://host:8000/v1`.
        key: The key, which it sends.
        timeout: Seconds that a read or a write may take.
        connections: How many requests are under way at once, at most.

    Raises:
        VlmError: A proxy of the environment, or its certificates, cannot be used.
    """
    try:
        certificates = httpx.create_ssl_context()  # those of the environment, for this machine too
    except OSError as error:
        raise VlmError(
            f"the certificates of the environment cannot be used ({reason_of(error)}): SSL_CERT_FILE names a file "
            "of PEM certificates"
        ) from None
    try:
        return httpx.AsyncClient(
            headers={"User-Agent": f"icdsel/{__version__}", "Accept-Encoding": "identity"} | key.headers,
            timeout=httpx.Timeout(timeout, connect=min(CONNECT_TIMEOUT, timeout), pool=None),
            limits=httpx.Limits(max_connections=connections + 2, keepalive_expiry=_IDLE),
            follow_redirects=False,
            verify=certificates,
            trust_env=not is_loopback(address),  # no proxy to this machine
        )
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise VlmError(
            f"a proxy of the environment cannot be used ({reason_of(error)}): see ALL_PROXY, HTTPS_PROXY, "
            "HTTP_PROXY and NO_PROXY"
        ) from None


class Client:
    """Requests to one server.

    Args:
        address: Such as `http://host:8000/v1`.
        key: The key.
        timeout: Seconds that a request may take.
        connections: How many requests are under way at once, at most.

    Attributes:
        address: The address.
        proxy: The variable that names the proxy through which it is asked; None if there is none.

    Raises:
        VlmError: A proxy of the environment, or its certificates, cannot be used.
    """

    def __init__(self, address: str, key: ApiKey, timeout: float, connections: int) -> None:
        self.address, self._key, self._timeout = address, key, timeout
        self.proxy = None if is_loopback(address) else proxy_variable(address)
        self._http = http_client(address, key, timeout, connections)

    @property
    def root(self) -> str:
        """The address without the path of the protocol, below which servers have routes of their own."""
        return self.address.removesuffix("/v1")

    async def close(self) -> None:
        """Closes its connections."""
        await self._http.aclose()

    async def get(self, address: str) -> Any:
        """The JSON at an address.

        Raises:
            ServerFailure: There is none.
        """
        return await self._json("GET", address)

    async def chat(self, body: bytes) -> Any:
        """The reply to a chat completion.

        Raises:
            ServerFailure: There is none.
        """
        return await self._json("POST", f"{self.address}/chat/completions", body)

    async def _json(self, method: str, address: str, body: bytes | None = None) -> Any:
        response, content = await self._send(method, address, body)
        status = response.status_code
        if status == httpx.codes.TOO_MANY_REQUESTS or (status in _GONE and "retry-after" in response.headers):
            raise Busy(self._reason(status, content), _wait(response.headers.get("retry-after", "")))
        if status in _GONE:
            raise Unreachable(self._reason(status, content))
        reason = self._reason(status, content)
        if (status >= 500 and not is_about_files(reason)) or status == httpx.codes.REQUEST_TIMEOUT:
            raise Temporary(reason)
        if 300 <= status < 400:
            place = plain(self._key.hidden_in(response.headers.get("location", "another address")))
            raise Rejected(status, f"it redirects to {place}, which is not followed: name that address instead")
        if status >= 400:
            raise Rejected(status, reason)
        return self._value(content)

    def _value(self, content: bytes) -> Any:
        """The JSON in a reply, which files can hold, and which does not give the key away.

        Raises:
            ServerFailure: There is none.
        """
        try:
            value = json.loads(content)
            written = json.dumps(value, ensure_ascii=False)
            written.encode()
        except UnicodeEncodeError:
            raise Unusable("its reply has half a character (a lone surrogate), which no file can hold") from None
        except (ValueError, RecursionError):
            shown = plain(self._key.hidden_in(content[:2000].decode(errors="replace"))[:_LONGEST_EXCERPT])
            raise Temporary(f"its reply is not JSON, or cut off: {shown!r}") from None
        if self._key.is_in_json(written):  # not only in the answer: names of models and tokens are recorded as well
            raise Unusable("its answer contains the key, and is not kept")
        return value

    async def _send(self, method: str, address: str, body: bytes | None) -> tuple[httpx.Response, bytes]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        content = bytearray()
        try:
            async with (
                asyncio.timeout(self._timeout),  # as a whole: bytes may trickle
                self._http.stream(method, address, content=body, headers=headers) as response,
            ):
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise Unusable("its reply is compressed, which was not asked for")
                async for part in response.aiter_raw():
                    content += part
                    if len(content) > LARGEST_REPLY:
                        raise Unusable(f"its reply has more than {LARGEST_REPLY:,} bytes")
        except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout):
            raise Temporary(f"no answer after {self._timeout:g} seconds (--request-timeout)") from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            through = f" through the proxy that {self.proxy} names" if self.proxy else ""
            raise Unreachable(f"no connection{through} ({self._text(error)})") from None
        except httpx.TransportError as error:  # it may have been started again, with another model
            raise Unreachable(f"the connection broke ({self._text(error)})") from None
        except (httpx.InvalidURL, UnicodeError) as error:  # a host that no name can be, such as xn--a
            raise Rejected(0, f"it is not an address ({self._text(error)})") from None
        return response, bytes(content)

    def _text(self, error: Exception) -> str:
        return plain(self._key.hidden_in(reason_of(error)))

    def _reason(self, status: int, content: bytes) -> str:
        """What a server says about a request that failed."""
        said = plain(self._key.hidden_in(_message(content)))
        return f"HTTP {status}: {said}" if said else f"HTTP {status}"


def _message(content: bytes) -> str:
    """The message in the body of an error: those of OpenAI, vLLM, SGLang and FastAPI have it in different places."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return content[:2000].decode(errors="replace")
    for name in ("error", "detail", "message"):
        while isinstance(value, dict) and name in value:
            value = value[name]
    return value if isinstance(value, str) else json.dumps(value)


def _wait(header: str) -> float | None:
    """The seconds of a Retry-After header, which may be a number or a date; None if it names no time to come.

    A server that says 0 each time would otherwise be asked without a pause.
    """
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(seconds, _LONGEST_WAIT) if math.isfinite(seconds) and seconds > 0 else None


def is_readable(address: str) -> bool:
    """Whether others can read on the way what is sent to an address."""
    return urlsplit(address).scheme == "http" and not is_loopback(address)


def is_loopback(address: str) -> bool:
    """Whether an address is on this machine."""
    host = urlsplit(address).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")

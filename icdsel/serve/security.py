"""Who may ask: the key, the name by which the proxy is addressed, and how many requests run at once."""

import hmac
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from icdsel.errors import SettingsError
from icdsel.serve.errors import ApiError, response_of, unexpected
from icdsel.serve.limits import Limits
from icdsel.serve.metrics import Metrics
from icdsel.settings.kinds import SERVE_KEY_VARIABLE
from icdsel.vlm.server.client import is_loopback

REQUEST_ID = "X-Icdsel-Request-Id"
_COUNTED = ("/v1/chat/completions", "/v1/choose")
_LEAST_KEY = 16  # characters
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class AccessKey:
    """The key that clients have to send, or none. No message or representation shows it."""

    def __init__(self, key: str = "") -> None:
        self._key = key.strip().encode()

    @classmethod
    def exported(cls, host: str, environment: Mapping[str, str] = os.environ) -> "AccessKey":
        """The key of the environment.

        Raises:
            SettingsError: Others can reach the host, and there is no key, or one that is easily guessed.
        """
        key = environment.get(SERVE_KEY_VARIABLE, "").strip()
        if key and (not (key.isascii() and key.isprintable()) or " " in key or len(key) < _LEAST_KEY):
            raise SettingsError(
                f"{SERVE_KEY_VARIABLE} is not a key: it needs {_LEAST_KEY} or more letters and digits, such as those "
                "that `openssl rand -hex 32` prints"
            )
        if not key and not is_loopback(f"http://{_bracketed(host)}"):
            raise SettingsError(
                f"--host {host} can be reached by others: export a key that clients have to send, as in "
                f"`export {SERVE_KEY_VARIABLE}=$(openssl rand -hex 32)`, or leave out --host"
            )
        return cls(key)

    def __bool__(self) -> bool:
        return bool(self._key)

    def __repr__(self) -> str:
        return "AccessKey([key])" if self else "AccessKey()"

    def __reduce__(self) -> str:
        raise TypeError("a key is not written down")

    def opens(self, authorization: str) -> bool:
        """Whether an Authorization header carries the key; the time that this takes does not tell how much is right."""
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode(errors="replace"), self._key)
        return same and scheme.lower() == "bearer"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def local_names(host: str) -> frozenset[str]:
    """The names by which a proxy on loopback may be addressed.

    A website that has its own name lead to this machine (DNS rebinding) addresses it by another one.
    """
    return frozenset({"localhost", "127.0.0.1", "::1", host.lower().strip("[]")})


class Guard:
    """Lets requests in that may be, gives each its id, and counts them.

    Args:
        app: What serves them.
        key: The key, or none.
        names: The names by which the proxy may be addressed, if there is no key.
        open_paths: Paths that need no key.
        limits: How many run at once.
        metrics: Where they are counted.
    """

    def __init__(
        self,
        app: ASGIApp,
        key: AccessKey,
        names: Iterable[str],
        open_paths: Iterable[str],
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._app, self._key, self._names = app, key, frozenset(names)
        self._open, self._most, self._metrics = frozenset(open_paths), limits.at_once, metrics
        self._now = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, started = f"icdsel-{secrets.token_hex(12)}", time.perf_counter()
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                headers.setdefault("Cache-Control", "no-store")
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        counted = scope["method"] == "POST" and scope["path"] in _COUNTED
        try:
            self._require_allowed(scope)
            if counted and self._now >= self._most:
                raise ApiError(
                    503, f"{self._now} requests are in progress: try again", "busy", None, {"Retry-After": "1"}
                )
            self._count(counted, 1)
            try:
                await self._app(scope, receive, sent)
            finally:
                self._count(counted, -1)
        except ApiError as error:
            await response_of(error)(scope, receive, sent)
        except ClientDisconnect:
            status = status or 499
        except Exception as error:  # noqa: BLE001 - it is logged; the server goes on
            failure = unexpected(error)
            if not status:
                await response_of(failure)(scope, receive, sent)
        finally:
            route = getattr(scope.get("route"), "path", "") or "other"
            self._metrics.requests.labels(route, str(status or 499)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)

    def _count(self, counted: bool, step: int) -> None:
        if counted:
            self._now += step
            self._metrics.in_progress.inc(step)

    def _require_allowed(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if not self._key and _hostname(headers.get("host", "")) not in self._names:
            raise ApiError(403, "this proxy is for this machine: address it as 127.0.0.1 or localhost", "wrong_host")
        origin = headers.get("origin")
        if origin is not None and _place(origin) != headers.get("host", ""):
            raise ApiError(403, "requests of other websites are not served", "wrong_origin")
        if self._key and scope["path"] not in self._open and not self._key.opens(headers.get("authorization", "")):
            raise ApiError(
                401,
                "the API key is missing or wrong: send it as `Authorization: Bearer KEY`",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _place(origin: str) -> str | None:
    """The host and port in an Origin header; None if it is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _hostname(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def request_id_of(scope: Any) -> str:
    """The id that the guard gave a request."""
    return str(scope["state"]["request_id"])

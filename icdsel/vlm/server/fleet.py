"""Several servers of one model: which one is asked, how often, and what happens when one is busy, fails or is gone.

A query always goes to the same server while that is up, so that its prefix cache is used. A server that is gone is left
out at once, and tried again in the background: no prompt waits for it, unless there is no other. If none is left, all
wait together, `PATIENCE` seconds, and then the command ends.

A server may be started again with other weights without any request noticing it: connections that were idle are opened
again quietly. So answers count once their server has answered a probe after them, as before (`confirms`).
"""

import asyncio
import hashlib
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from icdsel.console import note, warn
from icdsel.errors import CallsError
from icdsel.vlm.server.client import Client
from icdsel.vlm.server.failures import Busy, Rejected, ServerFailure, Temporary, Unreachable, Unusable

PATIENCE = 30.0
"""Seconds without any server after which the command ends."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds until a prompt is sent again: they double with each failure, and are drawn from the upper half."""
TOLD_FROM = 10.0
"""Seconds from which on the user is told that a server asks to wait."""
FIRST_LOOK, LONGEST_LOOK = 0.2, 10.0
"""Seconds until a server that is gone is tried again; they double too."""
MOST_IN_A_ROW = 5
"""Failures in a row after which a server counts as gone until it answers something."""

Check = Callable[[Client, bool], Awaitable[None]]
"""Checks whether a server is still the same: whole if it has come back, else briefly. Raises a `ServerFailure` if it is
not ready, a `VlmError` if it must not be used."""


def waiting_time(failures: int) -> float:
    """Seconds to wait after so many failures (at least 1), with a random part, so that prompts do not come together."""
    return float(min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(failures - 1, 30)) * random.uniform(0.5, 1))


class Server:
    """The state of one server, used in the event loop only."""

    def __init__(self, client: Client, concurrency: int) -> None:
        self.client = client
        self.slots = asyncio.Semaphore(concurrency)
        self.up = True
        self.excluded = False
        self.failures = 0  # in a row
        self.busy = 0  # times in a row
        self.free_at = 0.0  # the loop's time until which it has asked to wait

    def rank(self, place: str) -> bytes:
        """Servers are tried in this order; a server that is gone moves no other query than its own."""
        return hashlib.sha256(f"{self.client.address}\n{place}".encode(errors="surrogatepass")).digest()


class Fleet:
    """Servers of one model.

    Args:
        clients: One for each server.
        concurrency: Requests that each server is sent at once, at most.
        retries: How often a request is sent again after failures.
        most_seconds: How long a request is tried altogether, such as while servers are busy, once it is its turn.
        check: Checks a server that has come back, or has answered.
    """

    def __init__(
        self, clients: Sequence[Client], concurrency: int, retries: int, most_seconds: float, check: Check
    ) -> None:
        self._servers = [Server(client, concurrency) for client in clients]
        self._retries, self._most_seconds, self._check = retries, most_seconds, check
        self._changed = asyncio.Event()  # replaced whenever it is set
        self._outage: float | None = None  # the loop's time since when no server is up
        self._last_reason = ""
        self._looking: set[asyncio.Task[None]] = set()

    async def chat(self, place: str, body: Callable[[], Awaitable[bytes]]) -> tuple[Any, Server]:
        """Has a server answer, and returns its reply, and which server it is.

        Args:
            place: Identifies the query; equal ones go to the same server.
            body: Makes the body of the request, when it is about to be sent.

        Raises:
            ServerFailure: The request was rejected, or failed too often.
            CallsError: No server is left.
        """
        now = asyncio.get_running_loop().time
        end, failures = math.inf, 0
        while True:
            server = await self._server(place)
            async with server.slots:
                end = min(end, now() + self._most_seconds)  # the time of a prompt begins when it is its turn
                await self._until_free(server)
                if not server.up:
                    continue  # it went while this request waited
                try:
                    reply = await server.client.chat(await body())
                except Busy as error:
                    failure: ServerFailure = error
                    self._wait_for(server, error)
                except Temporary as error:
                    failure, failures = error, failures + 1
                    await self._failed(server, error)
                except (Rejected, Unusable):
                    server.failures = 0
                    raise
                else:
                    server.failures = server.busy = 0
                    return reply, server
            if failures > self._retries or now() >= end:
                times = f" ({failures} times)" if failures > 1 else ""
                raise type(failure)(*_arguments(failure, f"{failure}{times}"))
            if failures and server.up:
                await asyncio.sleep(waiting_time(failures))

    async def confirms(self, server: Server) -> bool:
        """Whether a server that has answered is still the same one; if not, its answers may be another model's.

        Raises:
            CallsError: No server is left.
        """
        for _ in range(MOST_IN_A_ROW):
            await self._server(server.client.address)  # while there is no other one, it may come back
            if not server.up:
                return False
            try:
                async with server.slots:
                    await self._until_free(server)
                    await self._check(server.client, False)
            except Busy as busy:
                self._wait_for(server, busy)
            except Temporary as failure:
                await self._failed(server, failure)
                await asyncio.sleep(waiting_time(server.failures))
            except ServerFailure as failure:
                self._leave_out(server, failure)
            except Exception as error:  # noqa: BLE001 - such as another model
                self._exclude(server, error)
            else:
                server.failures = 0
                return True
        return False

    # ---- servers that fail ----

    async def _server(self, place: str) -> Server:
        """The server that a query goes to; waits for one if none is up.

        Raises:
            CallsError: None has come back in time.
        """
        while True:
            up = [server for server in self._servers if server.up]
            if up:
                return min(up, key=lambda server: server.rank(place))
            now = asyncio.get_running_loop().time()
            self._outage = now if self._outage is None else self._outage
            left = self._outage + PATIENCE - now
            usable = [server for server in self._servers if not server.excluded]
            if left <= 0 or not usable:
                which = " and ".join(server.client.address for server in self._servers)
                raise CallsError(
                    f"no server is left: {which} ({self._last_reason}). Completed work is kept: start the server and "
                    "run the same command again."
                )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)

    async def _until_free(self, server: Server) -> None:
        """Waits as long as a busy server has asked to."""
        seconds = server.free_at - asyncio.get_running_loop().time()
        if seconds > 0:
            await asyncio.sleep(seconds + random.uniform(0, FIRST_WAIT))

    def _wait_for(self, server: Server, busy: Busy) -> None:
        """Lets all requests to a busy server wait, not just the one that it turned away."""
        now = asyncio.get_running_loop().time()
        if server.free_at <= now:  # requests that were sent together are turned away together, and count once
            server.busy += 1
        seconds = waiting_time(server.busy) if busy.seconds is None else busy.seconds
        if seconds >= TOLD_FROM and server.free_at <= now:
            warn(f"{server.client.address} is busy, its prompts wait {seconds:.0f} seconds: {busy}")
        server.free_at = max(server.free_at, now + seconds)

    async def _failed(self, server: Server, failure: Temporary) -> None:
        server.failures += 1
        if isinstance(failure, Unreachable) or server.failures >= MOST_IN_A_ROW:
            self._leave_out(server, failure)

    def _leave_out(self, server: Server, failure: ServerFailure) -> None:
        """Asks nothing of a server until it is back."""
        if not server.up:
            return
        server.up, self._last_reason = False, str(failure)
        task = asyncio.get_running_loop().create_task(self._look_for(server, str(failure)))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    def _exclude(self, server: Server, error: Exception) -> None:
        """Asks nothing of a server any more."""
        if server.excluded:
            return
        server.up, server.excluded, self._last_reason = False, True, str(error)
        warn(f"{server.client.address} is not used any more: {error}")
        self._wake()

    async def _look_for(self, server: Server, reason: str) -> None:
        """Tries a server that is gone until it is back."""
        wait, told, address = FIRST_LOOK, False, server.client.address
        while not server.excluded:
            await asyncio.sleep(wait)
            try:
                await self._check(server.client, True)
            except ServerFailure:
                if not told:
                    told = True
                    others = any(other.up for other in self._servers)
                    then = "other servers take its prompts" if others else f"waiting {PATIENCE:g} seconds for it"
                    warn(f"{address} fails: {reason}; {then}")
                wait = min(2 * wait, LONGEST_LOOK)
                continue
            except Exception as error:  # noqa: BLE001 - such as another model
                self._exclude(server, error)
                return
            if not server.excluded:
                server.up, server.failures, self._outage = True, 0, None
                if told:
                    note(f"{address} is back")
                self._wake()
            return

    def _wake(self) -> None:
        """Lets the prompts go on that wait for a server."""
        self._changed.set()
        self._changed = asyncio.Event()


def _arguments(failure: ServerFailure, message: str) -> tuple[Any, ...]:
    """The arguments of a failure of the same class with another message."""
    return (message, failure.seconds) if isinstance(failure, Busy) else (message,)

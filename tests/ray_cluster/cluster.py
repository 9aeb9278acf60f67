"""A Ray cluster of three machines: a head, where icdsel is started, and two with actors."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from .network import Machine, Network

PORT = 6379
CPUS = 2
"""Actors that each of the two machines has room for, with one thread each."""
ACTOR = "ray::EngineActor"
_START = 120  # seconds


class Cluster:
    """A context with a cluster that runs.

    Args:
        place: A folder for Ray's files; a short path, since Ray puts sockets into it.
    """

    def __init__(self, place: Path) -> None:
        self._place, self._network = place, Network("head", "one", "two")
        self.head, *self.machines = self._network.machines
        self.address = f"{self.head.address}:{PORT}"
        token = place / "token"
        place.mkdir(parents=True, exist_ok=True)
        token.write_text(secrets.token_hex(32))
        own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self.environment: Mapping[str, str] = os.environ | own

    def __enter__(self) -> "Cluster":
        self._network.__enter__()
        options = ("--port", PORT, "--num-cpus", 0, "--include-dashboard", "false", "--temp-dir", self._place / "ray")
        self._start(self.head, "--head", *options)
        for machine in self.machines:
            self.add(machine)
        return self

    def __exit__(self, *_: object) -> None:
        self._network.__exit__()

    def add(self, machine: Machine) -> None:
        """Lets a machine join the cluster, also once more after it was killed."""
        self._start(machine, "--address", self.address, "--num-cpus", CPUS)

    def _start(self, machine: Machine, *options: object) -> None:
        ray = Path(sys.executable).with_name("ray")
        words = (ray, "start", "--node-ip-address", machine.address, *options)
        output = self._place / f"start-{machine.name}.txt"
        with output.open("w") as file:  # not a pipe, which the processes that it starts would keep open
            started = machine.start(words, self.environment, stdout=file, stderr=subprocess.STDOUT, cwd=self._place)
            if started.wait(_START):
                raise RuntimeError(f"ray start on {machine.name} failed:\n{output.read_text()}")

    def actors(self) -> dict[str, list[int]]:
        """The processes of actors by the name of their machine."""
        return {machine.name: machine.processes(ACTOR) for machine in self.machines}

    def wait_until_idle(self, seconds: float = 60) -> float:
        """Waits until no actor is left; the seconds that it took.

        Raises:
            TimeoutError: Some are left after `seconds`.
        """
        began = time.monotonic()
        while left := self.actors():
            if not any(left.values()):
                break
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"actors are left: {left}")
            time.sleep(0.1)
        return time.monotonic() - began

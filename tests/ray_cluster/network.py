"""Machines on one machine: network namespaces that are joined by a bridge, each with an address of its own.

A machine can be killed with everything that runs on it, or unplugged, which is what a dead switch or a power cut looks
like from outside. It needs Linux, root, and `ip` (iproute2). Files are those of the host: a shared file system.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_PREFIX = "icdsel"
_NETWORK = "198.18.77."  # a range for tests of networks (RFC 2544), which leads nowhere else


def why_not() -> str | None:
    """Why there can be no network on this machine; None if there can."""
    if shutil.which("ip") is None:
        return "`ip` is missing (Debian: apt-get install iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return tried.stderr.strip() or None


class Machine:
    """A network namespace.

    Args:
        name: Its name.
        number: The last part of its address.
    """

    def __init__(self, name: str, number: int) -> None:
        self.name, self.namespace, self.address = name, f"{_PREFIX}-{name}", f"{_NETWORK}{number}"
        self._port = f"port-{name}"

    def start(self, words: Sequence[object], environment: Mapping[str, str], **options: Any) -> "subprocess.Popen[str]":
        """Starts a program on the machine, which has a host name of its own."""
        named = ["unshare", "--uts", "sh", "-c", f'hostname {self.name} && exec "$@"', "sh"]
        command = ["ip", "netns", "exec", self.namespace, *named, *map(str, words)]
        return subprocess.Popen(command, env=environment, text=True, **options)

    def processes(self, named: str = "") -> list[int]:
        """The processes on the machine, or those whose title or command line begins like this."""
        found = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True).stdout
        return [pid for pid in map(int, found.split()) if _title(pid).startswith(named)]

    def kill(self) -> None:
        """Kills everything on the machine at once: first stopped, so that nobody sees another one die."""
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def unplug(self) -> None:
        """Cuts the machine off, without a word to anyone."""
        _ip("-n", self._hub, "link", "set", self._port, "down")

    def plug(self) -> None:
        """Connects the machine again."""
        _ip("-n", self._hub, "link", "set", self._port, "up")

    _hub = f"{_PREFIX}-hub"


class Network:
    """A context with machines, numbered from 1. When it is left, everything on them is killed."""

    def __init__(self, *names: str) -> None:
        self.machines = [Machine(name, number) for number, name in enumerate(names, 1)]

    def __enter__(self) -> "Network":
        self._remove()
        hub = Machine._hub
        _ip("netns", "add", hub)
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        for machine in self.machines:
            space = machine.namespace
            _ip("netns", "add", space)
            _ip("link", "add", machine._port, "netns", hub, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("-n", hub, "link", "set", machine._port, "master", "bridge", "up")
            _ip("-n", space, "addr", "add", f"{machine.address}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        for machine in self.machines:
            machine.kill()
        existing = subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout.split()
        for namespace in (Machine._hub, *(machine.namespace for machine in self.machines)):
            if namespace in existing:
                _ip("netns", "del", namespace)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it has just ended
        return ""

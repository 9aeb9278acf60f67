"""Runs commands on a cluster whose workers and machines are lost in the middle, and compares every byte.

`python -m tests.ray_cluster`, run from the checkout as root, prints a table and exits with 1 if anything differs from
what a single process leaves. It takes about 15 minutes on two cores.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .cluster import ACTOR, CPUS, Cluster
from .network import Machine, why_not
from .work import COMMANDS, Event, Folders, Run, run

WORKERS = 2 * CPUS
COLUMNS = ("command", "what happened, at which share of the work", "noticed after, s", "lists answered again",
           "seconds", "files that differ")  # fmt: skip


class Trial:
    """Runs on one cluster, with their table.

    Args:
        cluster: The cluster.
        folders: Where commands are run.
    """

    def __init__(self, cluster: Cluster, folders: Folders) -> None:
        self.cluster, self.folders, self.wrong = cluster, folders, list[str]()
        self._runs = 0
        print(f"| {' | '.join(COLUMNS)} |\n|---|---|--:|--:|--:|--:|", flush=True)

    def alone(self, command: str) -> None:
        """A single process without Ray, which the others are compared with."""
        self.folders.run_alone(command)
        self._row(command, "one process, without Ray", "", "", self.folders.seconds[command], "")

    def on_cluster(self, command: str, *events: Event) -> None:
        """A command on the cluster, in whose middle things happen."""
        self._runs += 1
        folder = self.folders.new(f"run {self._runs}", command)
        done = run(self.cluster, self.folders, command, folder, events, WORKERS)
        self._check(command, done, 0)
        self._compared(command, folder, events, done)

    def ended(self, command: str, by: signal.Signals, share: float, resume_alone: bool = False) -> None:
        """A command that is ended, and run again: on the cluster, or in a single process."""
        self._runs += 1
        folder = self.folders.new(f"run {self._runs}", command)
        event = Event(f"{by.name} to icdsel", share, lambda process: process.send_signal(by))
        first = run(self.cluster, self.folders, command, folder, [event], WORKERS)
        self._check(command, first, -by if by == signal.SIGKILL else 128 + by)
        seconds = self.cluster.wait_until_idle()
        event.what += f", no actor left after {seconds:.1f} s, then run again"
        if resume_alone:
            event.what += " in one process"
            began = time.monotonic()
            self.folders.run_in(folder, *COMMANDS[command])
            again = Run(0, time.monotonic() - began)
        else:
            again = run(self.cluster, self.folders, command, folder, [], WORKERS)
        self._check(command, again, 0)
        self._compared(command, folder, [event], again)

    def _check(self, command: str, done: Run, code: int) -> None:
        if done.code != code:
            tail = "\n".join(line for _, line in done.lines[-20:])
            self.wrong.append(f"{command}: exit code {done.code}, not {code}:\n{tail}")

    def _compared(self, command: str, folder: Path, events: Sequence[Event], done: Run) -> None:
        missed = [event.what for event in events if event.at is None]
        self.wrong += [f"{command}: ended before: {what}" for what in missed]
        differing = self.folders.differing(command, folder)
        self.wrong += [f"{command}: {name} differs" for name in differing]
        noticed = [f"{e.noticed - e.at:.1f}" for e in events if e.at is not None and e.noticed is not None]
        what = "; ".join(f"{event.what} ({event.share:.0%})" for event in events) or "nothing"
        self._row(command, what, ", ".join(noticed), done.lost, done.seconds, len(differing))
        for at, line in done.lines:
            print(f"{at:8.1f}  {line}", file=sys.stderr, flush=True)

    def _row(self, command: str, what: str, noticed: str, lost: object, seconds: float, differing: object) -> None:
        print(f"| {command} | {what} | {noticed} | {lost} | {seconds:.0f} | {differing} |", flush=True)


def main() -> None:
    """Runs everything, or what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=320, help="queries of each command")
    parser.add_argument("--only", action="append", default=[], choices=[*COMMANDS, "unplugged", "signals"])
    asked = parser.parse_args()
    if reason := why_not():
        sys.exit(f"no cluster can be made here: {reason}")
    with tempfile.TemporaryDirectory(prefix="rc-") as place:
        folders = Folders(Path(place) / "work", asked.queries)
        with Cluster(Path(place)) as cluster:
            wrong = trials(cluster, folders, set(asked.only) or {*COMMANDS, "unplugged", "signals"})
    print("\n".join(wrong) or "Nothing differs.")
    sys.exit(bool(wrong))


def trials(cluster: Cluster, folders: Folders, asked: set[str]) -> list[str]:
    """Runs what is asked for; what was wrong."""
    trial, (one, two) = Trial(cluster, folders), cluster.machines
    for command in COMMANDS:
        if command == "gen-rl-data" or command in asked:
            trial.alone(command)
        if command in asked:
            if command == "gen-rl-data":
                trial.on_cluster(command)
            trial.on_cluster(command, _worker(one, 0.25), _machine(two, 0.5))
            cluster.add(two)
    if "unplugged" in asked:
        trial.on_cluster("gen-rl-data", Event("a machine unplugged", 0.25, lambda _: one.unplug(), one.name))
        one.plug()
        one.kill()
        cluster.add(one)
    if "signals" in asked:
        for by in (signal.SIGKILL, signal.SIGINT):
            trial.ended("gen-rl-data", by, 0.5)
        trial.ended("gen-rl-data", signal.SIGTERM, 0.5, resume_alone=True)
    return trial.wrong


def _worker(machine: Machine, share: float) -> Event:
    def kill(_: object) -> None:
        os.kill(machine.processes(ACTOR)[0], signal.SIGKILL)

    return Event("a worker killed", share, kill, machine.name)


def _machine(machine: Machine, share: float) -> Event:
    return Event("a machine killed", share, lambda _: machine.kill(), machine.name)


if __name__ == "__main__":
    main()

"""Workers as actors of Ray: on this machine, or on the machines of a cluster."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from icdsel.console import note
from icdsel.errors import UserError, VlmError
from icdsel.settings.devices import available_threads
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.workers.pool import EnginePool
from icdsel.vlm.workers.ray_actor import Arrival, EngineActor, Plan, versions
from icdsel.vlm.workers.ray_cluster import Cluster, Share, connect
from icdsel.vlm.workers.worker import Reply, WorkerLostError, opener

_FIRST_TELL, _TELL = 10.0, 60.0
"""Seconds after which the user is told, and told again, that workers wait for a place."""
_here = cache(versions)


def open_ray(settings: VlmSettings, max_image_pixels: int) -> EnginePool:
    """Starts an actor with an engine for each GPU of the cluster, or for each share of its CPUs.

    Raises:
        VlmError: Ray or the cluster cannot be used or has no place for the workers, or its machines differ from this.
    """
    import torch

    threads = torch.get_num_threads()
    cluster, device = _cluster(settings), device_of(settings)
    share = cluster.share(settings.workers, threads, device == "cuda")
    count = settings.workers or max(1, cluster.room(share))
    places = Places(cluster, share, count, settings.ray_wait)
    plan = Plan.here(settings, opener(settings, max_image_pixels, device))
    workers = [RayWorker(f"worker {n}", places, plan) for n in range(1, count + 1)]
    pool = EnginePool(workers, f"{device} ({count} workers of Ray)", settings.max_failed, torch.get_num_threads)
    note(f"{count} workers on {cluster}: {', '.join(sorted({each.machine for each in pool.described}))}.")
    return pool


def device_of(settings: VlmSettings) -> str:
    """The kind of device of all workers: `cpu`, or `cuda` if the cluster has GPUs.

    Raises:
        VlmError: The cluster cannot be used.
    """
    if settings.device != "auto":
        return settings.device
    if settings.ray_address is None:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda" if _cluster(settings).has_gpus else "cpu"


def _cluster(settings: VlmSettings) -> Cluster:
    import torch

    wanted = (settings.workers or 1) * torch.get_num_threads()
    return connect(settings.ray_address, max(available_threads({}), wanted))


@dataclass(frozen=True)
class Placed:
    """An actor, and its arrival at its place."""

    actor: Any
    arrival: Future[Arrival]


class Places:
    """The places of actors on a cluster.

    Args:
        cluster: The cluster.
        share: What each actor needs.
        count: How many actors there are.
        patience: Seconds that an actor waits for a place.
    """

    def __init__(self, cluster: Cluster, share: Share, count: int, patience: float) -> None:
        self.cluster, self._share, self._count, self._patience = cluster, share, count, patience
        remote = cluster.ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0, max_task_retries=0)
        self._actors = remote(EngineActor).options(scheduling_strategy="SPREAD")
        self._lock, self._told = threading.Lock(), -_TELL

    def place(self, plan: Plan) -> "Placed":
        """An actor that is on its way to a place."""
        actor = self._actors.remote(plan)
        return Placed(actor, actor.arrive.remote().future())

    def wait(self, arrival: "Future[Any]", stop: "Future[Any]") -> None:
        """Waits for an actor's arrival, or until it is to stop.

        Raises:
            VlmError: There is no place in time.
        """
        end, pause = time.monotonic() + self._patience, _FIRST_TELL
        while not wait([arrival, stop], max(0.0, min(pause, end - time.monotonic())), FIRST_COMPLETED).done:
            if time.monotonic() >= end:
                raise VlmError(
                    f"a worker found no place within {_duration(self._patience)} (--ray-wait): {self._situation()}. "
                    "Ask for less (--workers, --threads, --device cpu), or add machines, or wait until others have "
                    "finished"
                )
            self._tell()
            pause = _TELL

    def _situation(self) -> str:
        workers = f"{self._count} workers need" if self._count > 1 else "a worker needs"
        each = " each" if self._count > 1 else ""
        return f"{workers} {self._share}{each}; {self.cluster} has {self.cluster.described()}"

    def _tell(self) -> None:
        """Tells the user, once for all actors that wait."""
        with self._lock:
            if time.monotonic() - self._told < _TELL:
                return
            self._told = time.monotonic()
        places = f"places for {self._count} workers" if self._count > 1 else "a place for a worker"
        note(f"waiting for {places}, up to {_duration(self._patience)} (--ray-wait): {self._situation()}")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 120 and seconds % 60 == 0 else f"{seconds:g} seconds"


class RayWorker:
    """A worker in an actor of Ray.

    Args:
        name: What messages call it; the name of its machine is added.
        places: Where actors are placed.
        plan: What the actor runs.
    """

    def __init__(self, name: str, places: Places, plan: Plan) -> None:
        self.name, self._name = name, name
        self._places, self._plan = places, plan
        self._placed: Placed | None = None
        self._lock = threading.Lock()
        self._stop: Future[Any] = Future()

    def start(self) -> None:
        """Places an actor, and waits until it has arrived, unless there is one.

        Raises:
            WorkerLostError: It ended at once.
            VlmError: The actor finds no place, or its machine lacks icdsel or has another version of it.
        """
        with self._lock:
            if self._stop.done():
                raise WorkerLostError("it was stopped")
            if self._placed is None:
                self._placed = self._places.place(self._plan)
            placed = self._placed
        try:
            with self._raising(placed):
                self._places.wait(placed.arrival, self._stop)
                self._welcome(self._result(placed.arrival))
        except UserError:
            self._forget(placed)
            raise

    def call(self, method: str, *values: Any) -> Reply:
        """Calls a method of the `EngineWorker` in the actor, and waits for it.

        Raises:
            WorkerLostError: The actor, or its machine, ended before it replied, or there is none.
            UserError: Raised by the method, or the actor does not see an image that this machine sees.
        """
        placed = self._placed
        if placed is None:
            raise WorkerLostError("it has no place")
        with self._raising(placed):
            answered: tuple[Reply, list[Path]] = self._result(placed.actor.call.remote(method, values).future())
        reply, unseen = answered
        if images := [path for path in unseen if path.exists()]:
            raise VlmError(
                f"{self.name} does not see {images[0]}, which this machine sees: all machines of a Ray cluster must "
                "see the same files under the same paths, as on a shared file system. Completed work is kept"
            )
        return reply

    def _result(self, future: "Future[Any]") -> Any:
        """The result of a future, unless the worker is stopped before: a machine out of reach may never reply."""
        wait([future, self._stop], return_when=FIRST_COMPLETED)
        if not future.done():
            raise WorkerLostError("it was stopped")
        return future.result()

    @contextmanager
    def _raising(self, placed: Placed) -> Iterator[None]:
        """Turns Ray's errors into those that a worker raises."""
        errors = self._places.cluster.ray.exceptions
        try:
            yield
        except errors.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except errors.RayError as error:
            self._forget(placed)
            if missing := _missing(error):
                raise VlmError(
                    f"a machine of {self._places.cluster} cannot import {missing}: install the same icdsel, with its "
                    "dependencies, in the Python that runs `ray start` on every machine"
                ) from None
            raise WorkerLostError("it was stopped") if self._stop.done() else _lost(error) from None

    def stop(self) -> None:
        """Ends the actor at once."""
        with self._lock:
            placed = self._placed
            if not self._stop.done():
                self._stop.set_result(None)
        if placed:
            self._kill(placed.actor)

    def _forget(self, placed: Placed) -> None:
        """Another actor takes the place of one that is lost; called for each call that it was lost with."""
        with self._lock:
            if self._placed is placed:
                self._placed = None
        self._kill(placed.actor)  # it may be alive, but out of reach

    def _kill(self, actor: Any) -> None:
        with suppress(Exception):  # it has ended, or the connection to the cluster has
            self._places.cluster.ray.kill(actor)

    def _welcome(self, arrival: Arrival) -> None:
        """Names the worker after its machine.

        Raises:
            VlmError: The machine has other versions of what decides results.
        """
        self.name = f"{self._name} on {arrival.machine}"
        here = _here()
        different = [name for name in here if arrival.versions.get(name) != here[name]]
        if different:
            listed = ", ".join(f"{name} {arrival.versions.get(name)} (here {here[name]})" for name in different)
            raise VlmError(
                f"the machine {arrival.machine} has other versions, with which results may differ: {listed}. Install "
                "the same versions on all machines"
            )


def _missing(error: Exception) -> str | None:
    """The module that an actor could not import; None if that was not the reason why it ended."""
    for line in str(error).splitlines():
        if "ModuleNotFoundError: No module named" in line:
            return line.partition("No module named")[2].strip(" '\"")
    return None


def _lost(error: Exception) -> WorkerLostError:
    """Why an actor is lost. Ray's own texts have many lines, and list all that could be."""
    text = str(error)
    facts = dict(line.strip().partition(": ")[::2] for line in text.splitlines())
    where = f" on {facts['ip']}" if "ip" in facts else ""
    if "node has died" in text or "node was terminated" in text:
        return WorkerLostError(f"its machine{where} is gone", by_call=False)
    if "OUT_OF_MEMORY" in text or "OutOfMemory" in type(error).__name__:
        return WorkerLostError(f"Ray ended it{where} because memory ran out")
    if "unavailable" in text:
        return WorkerLostError("it is out of reach", by_call=False)
    return WorkerLostError(f"its process {facts.get('pid', '')}{where} ended")

"""A connection to Ray: a cluster that runs, or one that is started on this machine and ends with the process.

The only module that talks to Ray itself. Its errors become messages that say what is missing and what to do.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from icdsel.console import logger, note
from icdsel.errors import VlmError, reason_of

_OBJECT_STORE = 256 * 2**20
"""Bytes of memory for what Ray passes between processes of this machine; lists of answers are small."""
_REACHABLE = 10.0
"""Seconds in which the head of a cluster must take a connection."""
_PATIENCE = 120
"""Seconds in which a cluster must let a process in."""
_TRIAL = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='error')"
_TOKEN_MODE = "RAY_AUTH_MODE"
"""The variable by which Ray gives the cluster this machine's token, if it is "token"."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Share:
    """What each actor needs of its machine."""

    cpus: int
    gpus: float

    def __str__(self) -> str:
        cpus = f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}"
        return f"{self.gpus:g} GPU and {cpus}" if self.gpus else cpus

    def fits(self, cpus: float, gpus: float) -> int:
        """How many actors a machine has room for."""
        by_cpu = int(cpus // self.cpus)
        return min(by_cpu, int(gpus / self.gpus + 1e-6)) if self.gpus else by_cpu


class Cluster:
    """A cluster that this process is connected to. `address` is None if it was started here."""

    def __init__(self, ray: Any, address: str | None) -> None:
        self.ray, self.address = ray, address

    def __str__(self) -> str:
        if self.address is None:
            return "Ray on this machine"
        return "this machine's Ray cluster" if self.address == "auto" else f"the Ray cluster {self.address}"

    @property
    def machines(self) -> list[tuple[str, float, float]]:
        """Address, CPUs and GPUs of each machine that is alive."""
        alive = [node for node in self.ray.nodes() if node["Alive"]]
        resources = [(node["NodeManagerAddress"], node["Resources"]) for node in alive]
        return sorted((name, has.get("CPU", 0), has.get("GPU", 0)) for name, has in resources)

    @property
    def has_gpus(self) -> bool:
        """Whether any machine has a GPU."""
        return any(gpus for _, _, gpus in self.machines)

    def share(self, workers: int | None, threads: int, on_gpu: bool) -> Share:
        """What each of the workers gets: a GPU, or a part of one if there are more workers; or as many CPUs as threads.

        A worker on a GPU is counted with one CPU: GPUs have more CPUs beside them than threads are of use.
        """
        gpus = sum(gpus for _, _, gpus in self.machines)
        if not on_gpu:
            return Share(threads, 0)
        return Share(1, 1 if workers is None or not gpus else 1 / ceil(workers / gpus))

    def room(self, share: Share) -> int:
        """How many actors with such a share the machines have room for when nothing else runs on them."""
        return sum(share.fits(cpus, gpus) for _, cpus, gpus in self.machines)

    def described(self) -> str:
        """What the machines have, and what of it is free."""
        alike = Counter((cpus, gpus) for _, cpus, gpus in self.machines if cpus or gpus)
        having = [
            f"{count} machine{'s' if count > 1 else ''} with {cpus:g} CPUs and {gpus:g} GPUs"
            for (cpus, gpus), count in sorted(alike.items(), reverse=True)
        ]
        free = self.ray.available_resources()
        listed = ", ".join(having) or "no machine for workers"
        return f"{listed} (free: {free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs)"


def connect(address: str | None, cpus: int) -> Cluster:
    """Connects this process to a cluster, once.

    Args:
        address: `host:port` of the head, or `auto` for the cluster that this machine belongs to; None starts Ray on
            this machine, whatever the environment names.
        cpus: The CPUs that Ray may use if it is started here.

    Raises:
        VlmError: Ray is not installed, or there is no such cluster, or it does not take this process.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # icdsel reports nothing to anyone
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise VlmError('Ray is not installed: pip install "icdsel[ray]", on every machine of the cluster') from None
    cluster = Cluster(ray, address)
    if not ray.is_initialized():
        note(f"connecting to {cluster}" if address else "starting Ray on this machine")
        if address and _try(address, ray.__version__):
            ray._raylet.Config.initialize("")  # Ray has read the variables when it was imported
        options = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        with _signals_kept():
            _in_thread(lambda: _start(ray, address, {} if address else options))
        _keep_stdout_clean()
    return cluster


def _start(ray: Any, address: str | None, options: Mapping[str, Any]) -> None:
    job = _job(ray)
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="error", job_config=job, **options)
    except Exception as error:
        where = f"connect to the Ray cluster {address}" if address else "be started on this machine"
        raise VlmError(f"Ray could not {where}: {reason_of(error)}") from error


def _job(ray: Any) -> Any:
    """What Ray tells the processes of actors about this one, without the working directory as a place of modules.

    Ray would have them look there first, for any module, and it may hold somebody else's files. The folder of the
    user's program stays, also if it is the working directory: this process imports from it as well.
    """

    class Job(ray.job_config.JobConfig):  # type: ignore[misc]
        def _serialize(self) -> str:
            kept = {str(Path(sys.argv[0]).resolve().parent)} & set(sys.path)
            folders: list[str] = self._py_driver_sys_path
            self._py_driver_sys_path: list[str] = [folder for folder in folders if folder in kept]
            serialized: str = super()._serialize()
            return serialized

    return Job()


def _try(address: str, version: str) -> bool:
    """Connects from a process of its own first: if Ray cannot, it may end the process, with pages of text.

    Ray sends no token to an address that is named, unless a variable says so. Where a cluster asks for one, the
    variable is set, for this process too.

    Returns:
        Whether the variable was set.

    Raises:
        VlmError: It cannot connect.
    """
    if address != "auto":
        _require_reachable(address)
    why = _failure(address)
    if why is None:
        return False
    if _asks_for_token(why) and _TOKEN_MODE not in os.environ:
        os.environ[_TOKEN_MODE] = "token"
        why = _failure(address)
        if why is None:
            return True
        del os.environ[_TOKEN_MODE]
    raise VlmError(_why(why, address, version))


def _failure(address: str) -> str | None:
    """What Ray says about a connection that fails; None if it does not."""
    command = [sys.executable, "-P", "-c", _TRIAL, address]  # -P: a file ray.py in this folder is not Ray
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    options["cwd"] = os.sep  # Ray may start processes for the trial that look for modules in its folder
    said, late = list[str](), threading.Event()
    with subprocess.Popen(command, errors="replace", **options) as trial:

        def end() -> None:
            late.set()
            trial.kill()

        timer = threading.Timer(_PATIENCE, end)
        timer.start()
        try:
            for line in trial.stderr or ():
                said.append(line)
                if _asks_for_token(line):  # Ray would try for another 20 seconds
                    trial.kill()
                    break
            trial.wait()
        finally:
            timer.cancel()
            trial.kill()
    if late.is_set():
        raise VlmError(f"the Ray cluster {address} does not let this machine in within {_PATIENCE} seconds")
    return "".join(said) if trial.returncode else None


def _asks_for_token(text: str) -> bool:
    return "AuthToken" in text or "AuthenticationError" in text


def _why(text: str, address: str, version: str) -> str:
    """What to do about Ray's account of a connection that failed."""
    if _asks_for_token(text):
        mode = os.environ.get(_TOKEN_MODE, "token")
        return (
            f"the Ray cluster {address} asks for a token: give this machine the one of the head (~/.ray/auth_token or "
            "RAY_AUTH_TOKEN)" + (f", and set {_TOKEN_MODE}=token (now it is {mode})" if mode != "token" else "")
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if different := [i for i, line in enumerate(lines) if "ersion mismatch" in line]:
        told = " ".join(lines[different[-1] :][:7]).partition("ersion mismatch: ")[2]
        return f"the Ray cluster {address} has other versions: {told} Install the same Ray and Python on all machines"
    if address == "auto":
        return (
            "this machine belongs to no Ray cluster: start one (ray start --head), name its address (--ray-address "
            "host:6379), or let icdsel start Ray for this command (--ray)"
        )
    if "raylet" in text.lower() or "node_ip_address" in text:
        return (
            f"this machine is not part of the Ray cluster {address}: run icdsel on one of its machines, such as the "
            f"head, or let this one join it (ray start --address {address} --num-cpus 0)"
        )
    return (
        f"no connection to the Ray cluster {address} with Ray {version}, which must be the cluster's version: "
        f"{lines[-1] if lines else 'Ray ended without a word'}"
    )


def _require_reachable(address: str) -> None:
    """Ray itself would try for a long time.

    Raises:
        VlmError: Nobody takes a connection.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHABLE).close()
    except (OSError, UnicodeError) as error:  # the latter for what no name of a host can be, such as a..b
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise VlmError(
            f"no Ray cluster answers at {address} ({reason}): give the address that `ray start --head` "
            "printed on the first machine"
        ) from None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes over SIGTERM, which icdsel handles itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _in_thread(work: Callable[[], None]) -> None:
    """Does work in another thread: a signal that interrupts Ray while it starts would crash the process.

    The thread never ends, since the processes that Ray starts end with the thread that has started them.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            done.set_exception(error)
        else:
            done.set_result(None)
            threading.Event().wait()

    threading.Thread(target=run, daemon=True).start()
    done.result()


def _keep_stdout_clean() -> None:
    """Ray prints news of its processes to stdout, which holds results: they go to the log files instead."""

    def keep(data: Mapping[str, Any], *_values: object, **_options: object) -> None:
        for line in data.get("lines", ()):
            logger.debug(f"Ray: {line}")

    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = keep

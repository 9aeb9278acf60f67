"""What runs in an actor of Ray: an engine, and what makes its machine answer as the main process would.

Ray sends the class by name, so icdsel must be installed on every node. This module loads no torch and no Ray.
"""

import hashlib
import os
import signal
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import icdsel
from icdsel.errors import VlmError
from icdsel.settings.tables import VlmSettings
from icdsel.vlm import time_limit
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.workers.worker import EngineWorker, Reply, leave_stuck_call

_LIBRARIES = ("torch", "transformers", "numpy", "pillow")
_VARIABLES = (
    *("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY", "TRANSFORMERS_VERBOSITY"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "HF_HUB_CACHE"),
)


@dataclass(frozen=True)
class Plan:
    """What an actor is to run.

    Attributes:
        open_engine: Opens its engine.
        kinds: The engine and the layout that the settings name, in case a program of the user's own has added them.
        folder: The working directory of the main process, which relative paths start from.
        environment: Variables to set where a node has none.
    """

    open_engine: Callable[[], SupervisedEngine]
    kinds: tuple[Any, Any]
    folder: Path
    environment: Mapping[str, str]

    @classmethod
    def here(cls, settings: VlmSettings, open_engine: Callable[[], SupervisedEngine]) -> "Plan":
        """The plan of actors that are to answer as this process would.

        Raises:
            SettingsError: There is no engine or layout of that name.
        """
        from icdsel.vlm.engines import ENGINES
        from icdsel.vlm.prompts import LAYOUTS

        kinds = (ENGINES.named(settings.engine), LAYOUTS.named(settings.layout))
        environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        return cls(open_engine, kinds, Path.cwd(), environment)


@dataclass(frozen=True)
class Arrival:
    """Where an actor runs, and with which versions.

    Attributes:
        machine: The name of the machine.
        process: The number of the process.
        versions: Those of icdsel, of its source (a hash of all files) and of libraries that decide results.
    """

    machine: str
    process: int
    versions: Mapping[str, str]


def versions() -> dict[str, str]:
    """The versions of this machine, as in `Arrival`."""
    digest, package = hashlib.sha256(), Path(icdsel.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    found = {"icdsel": icdsel.__version__, "icdsel's source": digest.hexdigest()[:8]}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


class EngineActor:
    """The class of the actors. Its methods run one after the other in the main thread, where time limits work."""

    def __init__(self, plan: Plan) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the main process
        self._plan = plan
        self._worker = EngineWorker(plan.open_engine)

    def arrive(self) -> Arrival:
        """Prepares the process.

        Raises:
            VlmError: The machine does not see the working directory of the main process.
        """
        from icdsel.vlm.engines import ENGINES
        from icdsel.vlm.prompts import LAYOUTS

        plan, machine = self._plan, socket.gethostname()
        try:
            os.chdir(plan.folder)
        except OSError as error:
            raise VlmError(
                f"the machine {machine} cannot enter the working directory {plan.folder} ({error.strerror}): all "
                "machines of a Ray cluster must see the same files under the same paths, as on a shared file system"
            ) from None
        for name, value in plan.environment.items():
            os.environ.setdefault(name, value)
        engine, layout = plan.kinds
        ENGINES.setdefault(engine.name, engine)
        LAYOUTS.setdefault(layout.name, layout)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        time_limit.on_stuck = leave_stuck_call
        return Arrival(machine, os.getpid(), versions())

    def call(self, method: str, values: Sequence[Any]) -> tuple[Reply, list[Path]]:
        """Calls a method of the `EngineWorker`.

        Returns:
            Its reply, and images of failed calls that this machine does not see.
        """
        reply: Reply = getattr(self._worker, method)(*values)
        return reply, [path for path in _failed_images(method, values, reply) if not path.exists()]


def _failed_images(method: str, values: Sequence[Any], reply: Reply) -> list[Path]:
    """The images that a failed call has shown."""
    if method == "answer":
        failed = (request for request, answer in zip(values[1], reply.value, strict=True) if answer.error is not None)
        return list({image: None for request in failed for image in request.images})
    return [values[1][i] for i in reply.value[1]] if method == "embed_images" else []

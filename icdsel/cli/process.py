"""Changes that the program makes to its whole process. The library itself changes nothing global."""

import gc
import os
import sys
import warnings
from collections.abc import MutableMapping

from icdsel.console import warn
from icdsel.vlm import time_limit


def require_supported_system(system: str | None = None) -> None:
    """Ends the process with exit code 2 on Windows, which lacks what icdsel's files and time limits rely on.

    Args:
        system: The kind of system. [`os.name`]
    """
    if (system or os.name) != "posix":
        print("error: icdsel runs on Linux and macOS; on Windows, install and run it in WSL", file=sys.stderr)
        sys.exit(2)


# How long an idle thread of a parallel computation spins before it sleeps, for GNU's and Intel's OpenMP. By default it
# spins for milliseconds, and beside other busy processes keeps the CPU from the very thread that it waits for.
_WAITING = {"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


def wait_without_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets idle threads sleep at once, unless the user has set how they wait. Has no effect once torch is loaded."""
    if "OMP_WAIT_POLICY" not in environment:
        for name, value in _WAITING.items():
            environment.setdefault(name, value)


def set_up_process() -> None:
    """Prepares the process for a command: how threads wait, which messages of libraries are hidden, stuck calls."""
    wait_without_spinning()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about damaged metadata; one file can cause 60,000 of them
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is imported
    time_limit.on_stuck = leave_stuck_call


def answer_soon() -> None:
    """Keeps a thread that serves clients from waiting: for one that computes, and for the collection of garbage.

    Others are interrupted after 0.5 ms (Python's default is 5). What exists now, such as all candidates, is not looked
    at again whenever garbage is collected.
    """
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()


def leave_stuck_call(reason: str) -> None:
    """Ends the process at once, as a kill does; everything written to disk survives."""
    try:
        warn(f"{reason}: the process ends. {time_limit.RESUME}")
    finally:
        os._exit(1)

"""Changes that the program makes to its whole process. The library itself changes nothing global."""

import os
import warnings

from icdsel.console import warn
from icdsel.vlm import time_limit


def set_up_process() -> None:
    """Hides messages of libraries that users cannot act on, and lets a call that is stuck end the process."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about damaged metadata; one file can cause 60,000 of them
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is imported
    time_limit.on_stuck = leave_stuck_call


def leave_stuck_call(reason: str) -> None:
    """Ends the process at once, as a kill does; everything written to disk survives."""
    try:
        warn(f"{reason}: the process ends. {time_limit.RESUME}")
    finally:
        os._exit(1)

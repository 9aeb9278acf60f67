"""What the program changes for its whole process. The library changes nothing global by itself."""

import os
import warnings

from icdsel.console import warn
from icdsel.vlm import time_limit


def set_up_process() -> None:
    """Hides what libraries report and no user can act on, and lets a call that is stuck end the process."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged metadata, which a file may have 60,000 times
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is imported
    time_limit.on_stuck = leave_stuck_call


def leave_stuck_call(reason: str) -> None:
    """Ends the process at once, as a kill does, which everything written to disk survives."""
    try:
        warn(f"{reason}: the process ends. {time_limit.RESUME}")
    finally:
        os._exit(1)

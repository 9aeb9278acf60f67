"""The program: `icdsel`, and `python -m icdsel`."""

import io
import os
import sys
from contextlib import suppress
from multiprocessing import current_process
from typing import Any

from icdsel.cli.interruption import handle, leave
from icdsel.cli.process import require_supported_system, set_up_process


def main() -> None:
    """Runs the command line. A signal before or after a command's own work ends it without a traceback.

    A command that was interrupted or failed has cleaned up by then. The process ends without waiting for threads, as
    Python otherwise would: some may never return (one whose start was interrupted, one that reads from a dead disk).
    It does nothing in a new worker process, which first runs the program that started it, for what that registers.
    """
    if getattr(current_process(), "_inheriting", False):  # as multiprocessing itself finds out
        return
    require_supported_system()
    handle(leave)
    _open_streams()
    set_up_process()
    from icdsel.cli.app import app

    try:
        app()
    except SystemExit as ended:
        if not isinstance(ended.code, int) or not ended.code:
            raise
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOBase):  # None if it was closed
                with suppress(OSError):
                    stream.flush()
        os._exit(ended.code)


class _Lossy(io.FileIO):
    """A file that drops what cannot be written to it."""

    def write(self, content: Any, /) -> int:
        """Writes what it can and reports all of it as written."""
        try:
            written = super().write(content)
        except OSError:  # a full device, a pipe that nobody reads
            written = None
        return memoryview(content).nbytes if written is None else written  # also None if a full pipe does not block


def _open_streams() -> None:
    """Keeps output out of other files, and keeps the work going if stderr or a character cannot be written.

    If a standard stream was closed, the next file to be opened would take its number and get the output.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # the terminal's encoding may lack a character
    if isinstance(sys.stderr, io.TextIOWrapper):
        lossy = io.BufferedWriter(_Lossy(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(lossy, sys.stderr.encoding, errors="replace", line_buffering=True)


if __name__ == "__main__":
    main()

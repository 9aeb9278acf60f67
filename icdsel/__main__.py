"""The program: `icdsel`, and `python -m icdsel`."""

import io
import os
import sys

from icdsel.interruption import handle, leave


def main() -> None:
    """Runs the command line. A signal before or after a command's own work ends it without a traceback."""
    handle(leave)
    _open_streams()
    from icdsel.cli import app  # takes a while

    app()


def _open_streams() -> None:
    """Sees to it that what is said goes nowhere else, and that no letter of it is an error.

    Where a stream was closed, the next file that is opened would take its number, and get what is meant for a person.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # the terminal's alphabet may lack a letter


if __name__ == "__main__":
    main()

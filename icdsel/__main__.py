"""The program: `icdsel`, and `python -m icdsel`."""

from icdsel.interruption import handle, leave


def main() -> None:
    """Runs the command line. A signal before or after a command's own work ends it without a traceback."""
    handle(leave)
    from icdsel.cli import app  # takes a while

    app()


if __name__ == "__main__":
    main()

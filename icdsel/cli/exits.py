"""How a command ends: its exit code, and the message with it."""

import functools
import signal
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress

import typer

from icdsel.cli.interruption import KEPT, raised
from icdsel.console import err, note, show_messages, tell_error, warn
from icdsel.errors import CallsError, HubError, NoSignalError, UserError, is_mistake, lacks_memory, of_system
from icdsel.settings import Settings
from icdsel.settings.worlds import is_world
from icdsel.store.run_log import history

Command = Callable[..., None]


def with_exit_codes(command: Command, kept: str = KEPT) -> Command:
    """Ends a command that fails with one message: code 2 for a user's mistake, 1 if machine, VLM or data fail.

    An interruption ends it with 130 (Ctrl-C) or 143 (SIGTERM). `kept` says what is left of its work then.
    """

    @functools.wraps(command)
    def run(*args: object, **values: object) -> None:
        show_messages()
        try:
            main_thread = threading.current_thread() is threading.main_thread()  # only it may handle signals
            with raised(kept) if main_thread else nullcontext(), history():
                command(*args, **values)
        except UserError as error:
            tell_error(str(error))
            raise typer.Exit(1 if isinstance(error, CallsError | HubError | NoSignalError) else 2) from None
        except KeyboardInterrupt as stopped:
            err.print(f"interrupted; {kept}")
            raise typer.Exit(128 + (stopped.args or (signal.SIGINT,))[0]) from None
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            remedy = (
                "Use smaller values (--batch-size, --hidden-dim, --tower; --batch-tokens for the VLM), or free memory."
            )
            tell_error(f"out of memory: {reason}. {remedy} {kept.capitalize()}")
            raise typer.Exit(1) from None
        except OSError as error:
            mistaken = is_mistake(error)
            with suppress(OSError):  # it may be stderr that cannot be written
                tell_error(of_system(error) if mistaken else f"{of_system(error)} {kept.capitalize()}")
            raise typer.Exit(2 if mistaken else 1) from None

    return run


def finish(settings: Settings, failed: int = 0) -> None:
    """Ends a command's work with a hint on how to use one's own data, and with code 1 if VLM calls failed."""
    if is_world(settings.data.dataset):
        model = "" if settings.vlm.url else "--model qwen2.5-vl-3b "  # servers have theirs
        note(
            "This ran on the bundled world. For your own data, add --dataset okvqa --data-dir DIR --image-dir DIR "
            f"{model}(or put these settings into icdsel.toml)."
        )
    if failed:
        warn(f"{failed} VLM calls failed; the reasons are recorded with the answers, in this command's files")
        raise typer.Exit(1)

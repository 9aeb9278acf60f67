"""Whether what a server needs is installed. Imports none of it."""

import importlib.util

from icdsel.errors import SettingsError

_LIBRARIES = ("fastapi", "starlette", "uvicorn", "uvloop", "prometheus_client")


def require_libraries() -> None:
    """Checks, before any work, that what a server needs is installed.

    Raises:
        SettingsError: It is not.
    """
    if missing := [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]:
        raise SettingsError(f'`icdsel serve` needs {" and ".join(missing)}: pip install "icdsel[serve]"')

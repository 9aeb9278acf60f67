"""Whether this process may open as many connections as it is to have."""

import resource
from pathlib import Path

from icdsel.errors import SettingsError

_OTHERS = 32
"""File descriptors for what is opened beside connections: images, journals, logs."""


def require_descriptors(servers: int, concurrency: int) -> None:
    """Checks the limit of open files, which a connection counts against. Without one, servers would seem to fail.

    Raises:
        SettingsError: It is too low.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = servers * concurrency + len(list(Path("/dev/fd").iterdir())) + _OTHERS
    if limit != resource.RLIM_INFINITY and needed > limit:
        on = f"{servers} servers" if servers > 1 else "one server"
        raise SettingsError(
            f"--concurrency {concurrency} on {on} may need {needed} open files, "
            f"and this process may have {limit}: allow more (ulimit -n {needed}), or lower --concurrency"
        )

import os
import signal
from collections.abc import Iterator

import pytest

from icdsel.console import show_messages
from icdsel.settings.hints import OLD_VARIABLES
from icdsel.settings.names import ENV_PREFIX

# Tests run beside one another: threads of torch that wait for one another would only slow them. It has to be said
# before torch is loaded, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def nothing_exported() -> Iterator[None]:
    """No setting comes from the environment of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(ENV_PREFIX) or name in OLD_VARIABLES]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def messages_on_stderr() -> None:
    """Notes and warnings are printed, as they are on the command line."""
    show_messages()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Ctrl-C reaches the processes that tests start, also where a shell's background job had it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

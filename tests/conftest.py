import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from worlds import put_world

from icdsel.cli.process import wait_without_spinning
from icdsel.console import show_messages
from icdsel.data.world import write_world
from icdsel.settings.hints import OLD_VARIABLES
from icdsel.settings.names import ENV_PREFIX

if TYPE_CHECKING:
    from bundles import Bundled

# Tests run in parallel, so torch's own threads would only slow them down. This must be set before torch is loaded, here
# and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
wait_without_spinning()


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores, since some tests wait; at most 4, since each draws and reads its own."""
    return min(4, len(os.sched_getaffinity(0)) + 1)


@pytest.fixture(scope="session", autouse=True)
def nothing_exported() -> Iterator[None]:
    """Removes settings from the environment of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(ENV_PREFIX) or name in OLD_VARIABLES]:
            patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random numbers that a test draws without a generator are the same whatever ran before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def messages_on_stderr() -> None:
    """Notes and warnings are printed, as they are on the command line."""
    show_messages()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Lets Ctrl-C reach the processes that tests start, even if a shell's background job ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def world_into(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Puts the bundled world into a data folder. It is drawn once for all processes that run tests."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # that of all workers
    with FileLock(place / "world.lock"):
        if not (place / "world/annotations_validation.json").exists():  # the file that is written last
            write_world(place / "world")
    return partial(put_world, place / "world")


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> "Bundled":
    """A small bundle, and the session that it was made by; neither may be changed."""
    from bundles import Bundled, write_small_bundle

    place = tmp_path_factory.mktemp("bundled")
    return Bundled(place / "my-bundle", write_small_bundle(place / "my-bundle", place / "work"))


@pytest.fixture
def own_bundle(bundled: "Bundled", tmp_path: Path) -> Path:
    """A copy of the bundle that a test may change."""
    return Path(shutil.copytree(bundled.folder, tmp_path / "my-bundle"))

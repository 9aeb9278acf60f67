import os
from collections.abc import Iterator

import pytest

from icdsel.settings import ENV_PREFIX, OLD_VARIABLES


@pytest.fixture(scope="session", autouse=True)
def nothing_exported() -> Iterator[None]:
    """No setting comes from the environment of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(ENV_PREFIX) or name in OLD_VARIABLES]:
            patch.delenv(name)
        yield

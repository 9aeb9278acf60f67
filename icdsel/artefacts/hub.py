"""Bundles and RL data on the Hugging Face hub: `hub:owner/name`, or `hub:owner/name@revision`."""

import re
from pathlib import Path

from icdsel.artefacts.bundle.candidate_lines import CANDIDATES, IMAGES
from icdsel.artefacts.bundle.manifest import MANIFEST
from icdsel.artefacts.bundle.writing import CARD, POLICY, TABLES
from icdsel.errors import BundleError

PREFIX = "hub:"
_NAME = re.compile(r"hub:([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_FILES = (MANIFEST, POLICY, CANDIDATES, TABLES, CARD, f"{IMAGES}/*")


def is_on_hub(path: str | Path) -> bool:
    """Whether a path names something on the hub."""
    return str(path).startswith(PREFIX)


def local_bundle(name: str) -> Path:
    """The folder of a bundle on the hub, which is downloaded unless it is there already.

    Raises:
        BundleError: There is no such bundle, or the hub cannot be reached.
    """
    raise BundleError(f"{name}: not yet")

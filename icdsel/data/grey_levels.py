"""Grey pictures of more than 8 bits, as 8 bits: the range of their values says what is black and white."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image

_BITS_PER_SAMPLE = 258  # a tag of TIFF
Levels = Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]


def has_levels(image: Image.Image) -> bool:
    """Whether a picture holds integers of 16 or 32 bits, or real numbers."""
    return image.mode.startswith(("I", "F"))


def levels_of(image: Image.Image, bands: Iterable[Image.Image]) -> Levels:
    """A function from the values of a picture to 8 bits.

    * Integers up to 255 are 8-bit values, whatever the file has room for; up to 65,535 their upper eight bits count
      (of a TIFF of 12 bits, the upper eight of those).
    * Real numbers up to 1 are shares of white; up to 255 they are 8-bit values.

    Args:
        image: The picture.
        bands: All of it, in parts.

    Raises:
        ValueError: There are values outside of these ranges, which have no agreed meaning.
    """
    lowest, highest = 0.0, 0.0
    for band in bands:
        values = np.asarray(band)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError("its pixels are real numbers, some of them not finite; save it with 8 or 16 bits")
        lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
    if image.mode == "F":
        if lowest < 0 or highest > 255:
            raise ValueError(
                "its pixels are real numbers outside of 0 to 255, which have no agreed range; save it with 8 bits"
            )
        scale = 255.0 if highest <= 1 else 1.0
        return lambda values: np.rint(values * scale).astype(np.uint8)
    if lowest < 0 or highest > 0xFFFF:
        raise ValueError("its pixels are 32-bit integers, which have no agreed range; save it with 8 or 16 bits")
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE)
    shift = 0 if highest <= 0xFF else 4 if bits == (12,) else 8
    return lambda values: (values >> shift).astype(np.uint8)

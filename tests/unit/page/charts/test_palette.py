"""Colours and markers: every row has its own, whatever the reader's colour vision and background."""

from itertools import combinations

import numpy as np
import pytest

from icdsel.page.charts.palette import DARK, LIGHT, MARKERS, SYMBOLS, colour, dashes, marker

# Machado, Oliveira and Fernandes (2009), full severity, in linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
# The page and what is raised from it, in light and dark.
GROUNDS = {"light": ("#ffffff", "#f4f6f8"), "dark": ("#0f1317", "#171c22", "#1d232a")}
PALETTES = {"light": LIGHT, "dark": DARK}


def linear(text: str) -> np.ndarray:
    rgb = np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""
    dark, light = sorted(float(linear(text) @ [0.2126, 0.7152, 0.0722]) for text in (one, other))
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Linear sRGB to CIELAB, D65."""
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.119192, 0.9503041]]
    )
    xyz = to_xyz @ rgb / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(one: np.ndarray, other: np.ndarray) -> float:
    """The difference of two colours in CIELAB (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 1 + (1 - np.sqrt(mean**7 / (mean**7 + 25.0**7))) / 2
    c1, c2 = np.hypot(a1 * g, b1), np.hypot(a2 * g, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1 * g)) % 360, np.degrees(np.arctan2(b2, a2 * g)) % 360
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    middle = (h1 + h2) / 2 if abs(h1 - h2) <= 180 else (h1 + h2 + 360) / 2 % 360
    if not c1 * c2:
        middle = h1 + h2
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    waves = ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.2, 4, -63))
    t = 1 + sum(size * np.cos(np.radians(times * middle + shift)) for size, times, shift in waves)
    by = np.array([1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2), 1 + 0.045 * chroma])
    parts = np.array([(l2 - l1) / by[0], (c2 - c1) / by[1], hue / (1 + 0.015 * chroma * t)])
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    rotation *= np.sin(np.radians(60 * np.exp(-(((middle - 275) / 25) ** 2))))
    return float(np.sqrt(parts @ parts + rotation * parts[1] * parts[2]))


def test_the_difference_of_colours_is_that_of_the_published_table():
    """Three pairs of Sharma, Wu and Dalal (2005), table 1."""
    for one, other, known in (
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ):
        assert ciede2000(np.array(one), np.array(other)) == pytest.approx(known, abs=1e-4)


@pytest.mark.parametrize("scheme", PALETTES)
@pytest.mark.parametrize("vision", VISIONS)
def test_any_two_colours_are_told_apart(scheme, vision):
    seen = [lab(np.clip(np.array(VISIONS[vision]) @ linear(text), 0, 1)) for text in PALETTES[scheme]]
    nearest = min(ciede2000(one, other) for one, other in combinations(seen, 2))
    assert nearest >= (17 if vision == "normal" else 12)


@pytest.mark.parametrize("scheme", PALETTES)
def test_every_colour_has_contrast_to_its_backgrounds(scheme):
    assert len(LIGHT) == len(DARK) == len(set(LIGHT)) == len(set(DARK))
    assert min(contrast(own, ground) for own in PALETTES[scheme] for ground in GROUNDS[scheme]) >= 3


def test_looks_are_all_different():
    looks = [(colour(i), marker(i), dashes(i)) for i in range(56)]
    assert len({look[:2] for look in looks}) == 56  # without dashes: in tables
    assert len({(colour(i), dashes(i)) for i in range(32)}) == 32  # without markers: far from a point
    assert set(SYMBOLS) == set(MARKERS)
    assert len(set(SYMBOLS.values())) == len(MARKERS)

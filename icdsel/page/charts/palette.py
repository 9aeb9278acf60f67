"""The colours and markers of charts and tables, on a light background and on a dark one.

Any two colours differ by at least 12 (CIEDE2000) to people of every colour vision, on either background, and have a
contrast of at least 3:1 to it; a test computes both. The same place has a similar hue on both backgrounds. The search
started from a grid in OKLCH and maximised the smallest difference. Further rows repeat the colours with other markers
and dashes, which tables show too.
"""

LIGHT = ("#0b5fb4", "#c9765f", "#0f4f14", "#7d89d2", "#757313", "#632557", "#6d7277", "#92414e")
DARK = ("#5aaef5", "#db491e", "#bbfcb9", "#6770f0", "#f5f031", "#aa679b", "#dfe6eb", "#e58b97")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")

SYMBOLS = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "s": "M-3.5-3.5h7v7h-7z",
    "^": "M0-4.4L4.4 3.6H-4.4z",
    "D": "M0-4.6L4.6 0L0 4.6L-4.6 0z",
    "v": "M0 4.4L4.4-3.6H-4.4z",
    "P": "M-1.6-4.4h3.2v2.8h2.8v3.2h-2.8v2.8h-3.2v-2.8h-2.8v-3.2h2.8z",
    "X": "M-4.4-2.2L-2.2-4.4L0-2.2L2.2-4.4L4.4-2.2L2.2 0L4.4 2.2L2.2 4.4L0 2.2L-2.2 4.4L-4.4 2.2L-2.2 0z",
}
"""The markers as paths of SVG around (0, 0), at most 4.6 from it."""

TEXT = "#1b1f24"
LINE = "#d4d8dd"
PAPER = "#ffffff"


def colour(index: int) -> str:
    """The colour of the selector or run of this index."""
    return LIGHT[index % len(LIGHT)]


def marker(index: int) -> str:
    """The marker of this index; no pair of marker and colour is repeated before all have been used."""
    return MARKERS[index % len(MARKERS)]


def dashes(index: int) -> str:
    """The line style of this index, which changes when the colours repeat."""
    return DASHES[index // len(LIGHT) % len(DASHES)]

"""The colours and markers of charts, on a light background and on a dark one.

The light colours are those of Okabe and Ito (2008), which people of every colour vision can distinguish, with the pale
ones darkened to a contrast of 3:1 to white. Markers and dashes distinguish the same lines without colour.
"""

LIGHT = ("#0072b2", "#c95000", "#00856a", "#b04f8f", "#8a6d00", "#3b8fc4", "#5b5b5b", "#7048b6")
DARK = ("#5ab4ea", "#f59354", "#2fc9a0", "#e58fc8", "#e3c03a", "#a5d6f7", "#c0c0c0", "#b9a0f2")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")

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
